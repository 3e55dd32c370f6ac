"""Index sets: which units of an axis take part.

A pattern of batchwise dropout is a set of kept units. It is sorted and free of repeats, so that
a gather reads memory in ascending order and no two threads ever write to the same place, and it
knows the full size of its axis, so that everything that touches the same units can be checked
against it once, here, instead of in each kernel.
"""

from __future__ import annotations

import operator
from functools import lru_cache, reduce
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from numbadrop.address import address_of

__all__ = ["IndexSet", "as_matrix_index", "check_indices"]

Indices = NDArray[np.int64]


def check_indices(name: str, indices: ArrayLike, size: int) -> Indices:
    """Return `indices` as an ascending int64 array, or raise an error that names the fault.

    Parameters
    ----------
    name : str
        What the caller calls this argument; error messages start with it.
    indices : array_like of int, shape (k,), or of bool, shape (size,)
        Ascending, unique, in ``[0, size)``, at least one. A boolean mask is turned into the
        positions where it is true.
    size : int
        Number of units on the axis.

    Returns
    -------
    ndarray of int64, shape (k,)

    Raises
    ------
    TypeError
        If the elements are neither integers nor booleans.
    ValueError
        If `indices` is not one-dimensional, is empty, is a mask of the wrong length, or holds an
        index that is negative, too large, repeated or out of order.

    Examples
    --------
    >>> check_indices("rows", [0, 2, 5], 6)
    array([0, 2, 5])
    >>> check_indices("rows", [0, 2, 2], 6)
    Traceback (most recent call last):
        ...
    ValueError: rows must be ascending and unique, got 2 at position 1 followed by 2
    """
    array = np.asarray(indices)
    if array.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got an array of shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} is empty, at least one of {size} units must be kept")
    if array.dtype == np.bool_:
        if array.size != size:
            raise ValueError(
                f"{name} is a boolean mask of length {array.size}, the axis has {size} units"
            )
        array = np.flatnonzero(array)
        if array.size == 0:
            raise ValueError(f"{name} is empty, at least one of {size} units must be kept")
        return array.astype(np.int64, copy=False)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers or booleans, got dtype {array.dtype}")
    # The range is checked before the cast, which would wrap a huge unsigned index.
    if array.min() < 0 or array.max() >= size:
        at = int(np.flatnonzero((array < 0) | (array >= size))[0])
        raise ValueError(f"{name} must be in [0, {size}), got {array[at]} at position {at}")
    array = np.ascontiguousarray(array, dtype=np.int64)
    falls = array[1:] <= array[:-1]
    if falls.any():
        at = int(np.argmax(falls))
        raise ValueError(
            f"{name} must be ascending and unique, got {array[at]} at position {at} "
            f"followed by {array[at + 1]}"
        )
    return array


def _check_size(size: Any) -> int:
    try:
        return operator.index(size)
    except TypeError:
        raise TypeError(f"size must be an integer, got {size!r}") from None


class IndexSet:
    """A non-empty set of units on an axis of known size.

    Parameters
    ----------
    indices : array_like of int, shape (k,), or of bool, shape (size,)
        The units in the set: ascending, unique, in ``[0, size)``. Copied.
    size : int
        Number of units on the axis.

    Attributes
    ----------
    indices : ndarray of int64, shape (k,)
        Read-only.
    size : int
    is_all : bool
        Whether every unit is in the set.
    address : int
        What kernels read the set by: the address of `indices`, or 0 where `is_all`.
    words : tuple of int
        `address`, the number of units in the set, and `size`.
    resident : object or None
        What the kernels of a GPU read the set by, once it has been sent there.

    Raises
    ------
    TypeError, ValueError
        As `check_indices`.

    Examples
    --------
    >>> kept = IndexSet([1, 3, 4], size=6)
    >>> len(kept), kept.size, kept.is_all
    (3, 6, False)
    >>> kept.mask()
    array([False,  True, False,  True,  True, False])
    >>> IndexSet.all(3)
    IndexSet.all(3)
    """

    __slots__ = ("_hash", "address", "indices", "is_all", "resident", "size", "words")

    indices: Indices
    size: int
    is_all: bool
    address: int
    words: tuple[int, int, int]
    resident: Any
    _hash: int | None

    def __init__(self, indices: ArrayLike, size: int) -> None:
        size = _check_size(size)
        self._freeze(check_indices("indices", indices, size).copy(), size)

    def _freeze(self, indices: Indices, size: int) -> None:
        indices.flags.writeable = False
        object.__setattr__(self, "indices", indices)
        object.__setattr__(self, "size", size)
        count = len(indices)
        address = 0 if count == size else address_of(indices)
        object.__setattr__(self, "is_all", count == size)
        object.__setattr__(self, "address", address)
        object.__setattr__(self, "words", (address, count, size))
        object.__setattr__(self, "resident", None)
        object.__setattr__(self, "_hash", None)

    def keep_resident(self, resident: Any) -> None:
        """Keep what was sent to a GPU, for as long as the set lives."""
        object.__setattr__(self, "resident", resident)

    @classmethod
    def _trusted(cls, indices: Indices, size: int) -> IndexSet:
        """Make a set of right int64 indices that nobody else holds: nothing is checked."""
        made = cls.__new__(cls)
        made._freeze(indices, size)
        return made

    @classmethod
    def all(cls, size: int) -> IndexSet:
        """Return the set of every unit of an axis with `size` units."""
        size = _check_size(size)
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        return _all(size)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"an IndexSet is frozen, cannot set {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"an IndexSet is frozen, cannot delete {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return IndexSet, (self.indices, self.size)

    def __len__(self) -> int:
        return len(self.indices)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Return the indices, so that a set can stand in an index: ``array[..., units]``."""
        return np.array(self.indices, dtype, copy=copy)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, IndexSet):
            return NotImplemented
        return (
            self.size == other.size
            and len(self) == len(other)
            and (self.is_all or bool((self.indices == other.indices).all()))
        )

    def __hash__(self) -> int:
        known = self._hash
        if known is None:
            known = hash((self.size, self.indices.tobytes()))
            object.__setattr__(self, "_hash", known)
        return known

    def __repr__(self) -> str:
        if self.is_all:
            return f"IndexSet.all({self.size})"
        return f"IndexSet({np.array2string(self.indices, threshold=8)}, size={self.size})"

    def mask(self) -> NDArray[np.bool_]:
        """Return a boolean array of shape (size,), true for the units in the set."""
        mask = np.zeros(self.size, dtype=np.bool_)
        mask[self.indices] = True
        return mask

    def positions_of(self, other: IndexSet) -> IndexSet:
        """Return where the units of `other`, a subset, stand among the units of this set.

        Raises
        ------
        ValueError
            If the sets belong to axes of different sizes, or a unit of `other` is not in this set.

        Examples
        --------
        >>> IndexSet([1, 3, 4], 6).positions_of(IndexSet([1, 4], 6))
        IndexSet([0 2], size=3)
        """
        self._check_same_axis(other)
        if self.is_all:
            return other
        positions = np.searchsorted(self.indices, other.indices)
        missing = self.indices[np.minimum(positions, len(self) - 1)] != other.indices
        if missing.any():
            raise ValueError(f"unit {other.indices[missing][0]} of other is not in this set")
        return self._trusted(positions, len(self))

    def union(self, other: IndexSet) -> IndexSet:
        """Return the set of the units in either set.

        Examples
        --------
        >>> IndexSet([0, 2], 4).union(IndexSet([2, 3], 4))
        IndexSet([0 2 3], size=4)
        """
        self._check_same_axis(other)
        if self.is_all or self == other:
            return self
        return self._trusted(np.flatnonzero(self.mask() | other.mask()), self.size)

    def outer(self, other: IndexSet) -> IndexSet:
        """Return the set of all pairs, on the axis that two axes become in a reshape.

        Examples
        --------
        >>> IndexSet.all(2).outer(IndexSet([0, 2], 3))
        IndexSet([0 2 3 5], size=6)
        """
        size = self.size * other.size
        if self.is_all and other.is_all:
            return self.all(size)
        return self._trusted((self.indices[:, None] * other.size + other.indices).ravel(), size)

    def _check_same_axis(self, other: IndexSet) -> None:
        if self.size != other.size:
            raise ValueError(f"other is a set of {other.size} units, this axis has {self.size}")


@lru_cache(maxsize=32)
def _all(size: int) -> IndexSet:
    """Make the set of all units once for an axis of a net: it is asked for in every step."""
    return IndexSet._trusted(np.arange(size, dtype=np.int64), size)


def as_matrix_index(
    index: tuple[IndexSet | None, ...], shape: tuple[int, ...]
) -> tuple[IndexSet | None, IndexSet | None]:
    """Return the rows and columns of a block, where all axes but the last are taken for one.

    Parameters
    ----------
    index : tuple of IndexSet or None
        For each axis; None: all. Empty: the whole array.
    shape : tuple of int

    Returns
    -------
    rows, cols : IndexSet or None

    Examples
    --------
    >>> as_matrix_index((None, IndexSet([1], 3), None), (2, 3, 4))
    (IndexSet([1 4], size=6), None)
    """
    if len(index) == 2:  # spares the search
        rows, cols = index
        return rows, cols
    *leading, cols = index or (None,)
    if all(units is None for units in leading):
        return None, cols
    sets = (IndexSet.all(n) if u is None else u for u, n in zip(leading, shape, strict=False))
    return reduce(IndexSet.outer, sets), cols
