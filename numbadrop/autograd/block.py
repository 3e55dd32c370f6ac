"""A gradient that is zero outside one block of the array it belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbadrop.index_set import IndexSet

__all__ = ["Block"]

Array = NDArray[Any]
_size_of = attrgetter("size")


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A gradient that is zero outside one block of a larger array.

    Parameters
    ----------
    values : ndarray, shape (len(index[0]), len(index[1]), ...)
        The gradient of the elements in the block.
    index : tuple of IndexSet
        For each axis of the full array, the units that the block covers.

    Raises
    ------
    ValueError
        If the shape of `values` does not fit `index`.

    Examples
    --------
    >>> Block(np.ones((1, 2)), (IndexSet([1], 2), IndexSet([0, 2], 3))).dense()
    array([[0., 0., 0.],
           [1., 0., 1.]])
    """

    values: Array
    index: tuple[IndexSet, ...]

    # NumPy leaves `array + block` to the block.
    __array_ufunc__ = None

    def __post_init__(self) -> None:
        wanted = tuple(map(len, self.index))
        if self.values.shape != wanted:
            raise ValueError(f"values have shape {self.values.shape}, index wants {wanted}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the full array."""
        return tuple(map(_size_of, self.index))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return self.values.dtype

    def dense(self) -> Array:
        """Return the full array, with the zeros."""
        full = np.zeros(self.shape, self.dtype, like=self.values)
        full[np.ix_(*(units.indices for units in self.index))] = self.values
        return full

    def _on(self, index: tuple[IndexSet, ...]) -> Array:
        """Return the values of a block that holds this one, with zeros around it."""
        values = np.zeros(tuple(map(len, index)), self.dtype, like=self.values)
        places = map(IndexSet.positions_of, index, self.index)
        values[np.ix_(*(units.indices for units in places))] = self.values
        return values

    def __add__(self, other: Block | Array) -> Block | Array:
        """Return the sum: a block of the units of either block, or the full array."""
        if isinstance(other, Block):
            if self.index == other.index:
                return Block(self.values + other.values, self.index)
            index = tuple(map(IndexSet.union, self.index, other.index))
            total = self._on(index)
            total += other._on(index)
            return Block(total, index)
        total = self.dense()
        total += other
        return total

    __radd__ = __add__

    def __mul__(self, factor: float) -> Block:
        """Return the block times a number, as to clip a gradient."""
        if not isinstance(factor, Real):
            return NotImplemented
        # A number of NumPy's would change the dtype.
        return Block(self.values * float(factor), self.index)

    __rmul__ = __mul__
