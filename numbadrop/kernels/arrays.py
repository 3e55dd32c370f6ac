"""What the doors of all kernels check, before anything is computed or overwritten."""

from __future__ import annotations

import numbers
import operator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numbadrop.index_set import IndexSet, check_indices
from numbadrop.kernels.device import as_array, is_array, is_host

__all__ = [
    "LARGEST_FACTOR",
    "SMALLEST_SCALE",
    "Pair",
    "Units",
    "as_dense",
    "check_alike",
    "check_apart",
    "check_dtype",
    "check_images",
    "check_is_array",
    "check_matrices",
    "check_matrix",
    "check_out",
    "check_pair",
    "check_real",
    "check_rectifier",
    "check_same_memory",
    "check_units",
    "count_units",
    "resolve",
]

Units = IndexSet | ArrayLike | None
"""The kept units of an axis: a set, ascending unique integers, a boolean mask, or None for all."""

Pair = int | tuple[int, int]
"""One number for height and width, or one for each."""

Array = NDArray[Any]
SMALLEST_SCALE, LARGEST_FACTOR = 2.0**-126, 2.0**127
"""Factors between these are finite and not zero as float32, too."""
_LARGEST_PAIR = 2**31 - 1
"""Of numbers up to this one, products do not leave the range of int64 in a kernel."""
_DOUBLE = np.dtype(np.float64)
_DTYPES = (np.dtype(np.float32), _DOUBLE)
_LARGEST_OF = {dtype: float(np.finfo(dtype).max) for dtype in _DTYPES}


def check_matrix(name: str, array: ArrayLike) -> Array:
    """Return a float32 or float64 matrix whose elements are aligned, whatever its strides."""
    if type(array) is np.ndarray and array.ndim == 2 and array.dtype in _DTYPES:
        return array if array.flags.aligned else array.copy()
    matrix = as_array(array)
    if matrix.ndim != 2:
        raise ValueError(f"{name} must be two-dimensional, got shape {matrix.shape}")
    check_dtype(name, matrix)
    return matrix if not is_host(matrix) or matrix.flags.aligned else matrix.copy()


def check_matrices(
    name: str, array: ArrayLike, other_name: str, other: ArrayLike
) -> tuple[Array, Array]:
    """Return two matrices of one dtype, as `check_matrix` does."""
    if (  # spares three calls
        type(array) is np.ndarray
        and type(other) is np.ndarray
        and array.ndim == other.ndim == 2
        and array.dtype is other.dtype
        and array.dtype in _DTYPES
        and array.flags.aligned
        and other.flags.aligned
    ):
        return array, other
    array, other = check_matrix(name, array), check_matrix(other_name, other)
    check_alike(name, array, other_name, other)
    return array, other


def check_images(name: str, array: ArrayLike) -> Array:
    """Return float32 or float64 images, whatever their strides."""
    images = as_array(array)
    if images.ndim != 4:
        raise ValueError(
            f"{name} must have shape (batch, height, width, units), got {images.shape}"
        )
    check_dtype(name, images)
    return images


def as_dense(array: Array) -> Array:
    """Return an aligned array whose elements lie one behind the other, a copy if need be."""
    if not is_host(array):  # always is
        return array
    array = np.ascontiguousarray(array)
    return array if array.flags.aligned else array.copy()


def check_dtype(name: str, array: Array) -> None:
    """Refuse elements that no kernel is made for."""
    if array.dtype not in _DTYPES:
        raise TypeError(f"{name} must be float32 or float64, got {array.dtype}")


def check_alike(name: str, array: Array, other_name: str, other: Array) -> None:
    """Refuse a mix of element types, or of arrays on the host and on a GPU."""
    if type(array) is type(other) and array.dtype is other.dtype:
        return
    check_same_memory(name, array, other_name, other)
    if array.dtype != other.dtype:
        raise TypeError(
            f"{name} and {other_name} must have one dtype, got {array.dtype} and {other.dtype}"
        )


def check_same_memory(name: str, array: Array, other_name: str, other: Array) -> None:
    """Refuse a mix of arrays on the host and on a GPU."""
    if type(array) is not type(other) and is_host(array) != is_host(other):
        places = [
            f"{own_name} on the {'host' if is_host(own) else 'GPU'}"
            for own_name, own in ((name, array), (other_name, other))
        ]
        raise TypeError(
            f"{name} and {other_name} must lie in one memory, got {' and '.join(places)}: "
            "numbadrop.kernels.to_device sends an array, and its to_host() copies it back"
        )


def check_real(name: str, value: Any, dtype: np.dtype[Any] = _DOUBLE) -> float:
    """Return a real number as a float, unless `dtype` has no such number."""
    # To ask of a float whether it is a Real takes as long as all else here.
    if type(value) is not float and not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a real number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"{name} must be a number of {dtype}, got a larger one") from None
    largest = _LARGEST_OF[dtype]
    if largest < abs(number) < np.inf:
        raise ValueError(f"{name} must be at most {largest:g} for {dtype}, got {number}")
    return number


def check_pair(name: str, value: Pair, least: int) -> tuple[int, int]:
    """Return a number for the height and one for the width, neither below `least`."""
    if type(value) is int and least <= value <= _LARGEST_PAIR:  # what is most often so
        return value, value
    try:
        down, along = value if isinstance(value, tuple | list) else (value, value)
        pair = operator.index(down), operator.index(along)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be an int or a pair of ints, got {value!r}") from None
    if min(pair) < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    if max(pair) > _LARGEST_PAIR:
        raise ValueError(f"{name} must be below 2**31, got {value}")
    return pair


def check_rectifier(slope: float, scale: float) -> tuple[float, float]:
    """Refuse factors under which the sign of a result would not be that of its sum."""
    slope, scale = check_real("slope", slope), check_real("scale", scale)
    if not 0 <= slope <= LARGEST_FACTOR:
        raise ValueError(f"slope must be in [0, 2**127], got {slope}")
    if not SMALLEST_SCALE <= scale <= LARGEST_FACTOR:
        raise ValueError(f"scale must be in [2**-126, 2**127], got {scale}")
    return slope, scale


def resolve(name: str, units: Units, size: int) -> IndexSet | None:
    """Return the set that `units` means on an axis of `size` units, None where it is all."""
    if units is None:
        return None
    if not isinstance(units, IndexSet):
        units = IndexSet(check_indices(name, units, size), size)
    elif units.size != size:
        raise ValueError(f"{name} is a set of {units.size} units, the axis has {size}")
    return None if units.is_all else units


def count_units(units: IndexSet | None, size: int) -> int:
    """Return how many units of an axis of `size` take part."""
    return size if units is None else len(units.indices)  # spares a call


def check_units(name: str, axis: int, length: int, units_name: str, kept: int) -> None:
    """Refuse an operand whose compact axis does not have one column for each kept unit."""
    if length != kept:
        raise ValueError(
            f"{name} must have {kept} entries on axis {axis}, one for each unit of {units_name}, "
            f"got {length}"
        )


def check_is_array(name: str, array: Any) -> None:
    """Refuse what cannot be changed in place, or would have to be copied to be read."""
    if not is_array(array):
        raise TypeError(
            f"{name} must be a NumPy array or a DeviceArray, got {type(array).__name__}"
        )


def check_apart(name: str, array: Array, **others: Array) -> None:
    """Refuse an array to be written that shares memory with others."""
    host = is_host(array)
    owner = host and array.flags.owndata
    for other_name, other in others.items():
        # Arrays that both own their memory share it only if they are one.
        if owner and other.flags.owndata:
            shared = array is other and array.size > 0
        elif host:
            shared = np.shares_memory(array, other)
        else:
            shared = array.shares_memory(other)  # type: ignore[attr-defined]
        if shared:
            raise ValueError(f"{name} overlaps {other_name}")


def check_out(
    out: Array, shape: tuple[int, ...], dtype: np.dtype[Any], names: tuple[str, ...], *inputs: Array
) -> None:  # fmt: skip
    """Refuse an `out` that cannot be written, does not fit, or overlaps an input or itself.

    `names` are those of the inputs.
    """
    # What is most often so comes first: an array of its own, as are all inputs.
    if type(out) is np.ndarray and out.dtype is dtype and out.shape == shape:
        flags = out.flags
        if flags.carray and flags.owndata:
            for array in inputs:
                if type(array) is not np.ndarray or array is out or not array.flags.owndata:
                    break
            else:
                return
    check_is_array("out", out)
    if out.shape != shape:
        raise ValueError(f"out must have shape {shape}, got {out.shape}")
    named = dict(zip(names, inputs, strict=True))
    for name, array in named.items():
        if type(array) is not type(out):  # spares the call
            check_same_memory("out", out, name, array)
    if out.dtype is not dtype and out.dtype != dtype:
        raise TypeError(f"out must have dtype {dtype}, got {out.dtype}")
    if not is_host(out):
        check_apart("out", out, **named)
        return
    flags = out.flags
    if not flags.writeable:
        raise ValueError("out is read-only")
    if not flags.aligned:
        raise ValueError("out is not aligned to its element size")
    check_apart("out", out, **named)
    if not flags.c_contiguous and _overlaps_itself(out):
        raise ValueError(f"out overlaps itself, its strides are {out.strides}")


def _overlaps_itself(array: Array) -> bool:
    reach = array.itemsize
    for stride, length in sorted(
        (abs(stride), length)
        for stride, length in zip(array.strides, array.shape, strict=True)
        if length > 1
    ):
        if stride < reach:
            return True
        reach += stride * (length - 1)
    return False
