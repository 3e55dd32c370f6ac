"""The way to the kernels of a GPU, which nobody imports who has no array there."""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numbadrop.kernels.recycling import empty_host

__all__ = ["as_array", "cuda", "empty", "host_copy", "is_array", "is_host", "to_device", "to_host"]

Array = NDArray[Any]
_CUDA = "numbadrop.kernels.cuda"


@cache
def cuda() -> Any:
    """Return `numbadrop.kernels.cuda`.

    By name, since its modules import the checks that the doors to them share with those of the CPU.

    Raises
    ------
    MissingExtraError
        If numba-cuda is not installed.
    """
    return import_module(_CUDA)


def is_array(array: Any) -> bool:
    """Whether this is an array of NumPy or a `DeviceArray`."""
    return isinstance(array, np.ndarray) or _is_device_array(array)


def _is_device_array(array: Any) -> bool:
    # There is none before the import of their module.
    return _CUDA in sys.modules and type(array) is cuda().DeviceArray


def is_host(array: Any) -> bool:
    """Whether an array, once it is one of `as_array`, lies in the memory of the host."""
    return isinstance(array, np.ndarray)


def as_array(array: Any) -> Array:
    """Return a NumPy array, or a `DeviceArray` of what lies on a GPU; neither is moved."""
    if type(array) is np.ndarray or _is_device_array(array):
        return array
    if hasattr(array, "__cuda_array_interface__"):
        made: Array = cuda().DeviceArray.of(array)
        return made
    return np.asarray(array)


def empty(shape: tuple[int, ...], like: Array) -> Array:
    """Return an array of undefined values, of the class and dtype of `like`."""
    if is_host(like):
        return empty_host(shape, like.dtype)
    # Not by `numpy.empty(..., like=like)`, whose detour takes as long as the rest. To the types, an
    # array on a GPU is one of NumPy.
    made: Array = type(like).empty(shape, like.dtype)  # type: ignore[attr-defined]
    return made


def to_host(array: Array) -> Array:
    """Return an array in the memory of the host, itself if it is there."""
    if is_host(array):
        return array
    copied: Array = as_array(array).to_host()  # type: ignore[attr-defined]
    return copied


def host_copy(array: Array) -> Array:
    """Return a copy of an array in the memory of the host."""
    return array.copy() if is_host(array) else to_host(array)


def to_device(array: ArrayLike, *, beside: bool = False) -> Any:
    """Return a copy of an array in the memory of the GPU; the array may be changed at once.

    What lies there already, of CuPy, PyTorch or Numba, becomes a `DeviceArray` without a copy.

    Parameters
    ----------
    array : array_like
    beside : bool
        Copy while the kernels run that are started from now on, and return when it is done: for a
        thread that prepares what others will need. Else the copy takes its turn between kernels,
        and nobody waits for it. More than 16 MB waits for all kernels before, in either case.

    Returns
    -------
    DeviceArray
        On which kernels and layers work, and of NumPy the arithmetic that they need; its `to_host`
        gives a NumPy array.

    Raises
    ------
    MissingExtraError, DeviceError, DeviceMemoryError
        If numba-cuda, a GPU with its driver, or memory on it is missing.
    ValueError
        If an array on the GPU is not C-contiguous.
    """
    array = as_array(array)
    return cuda().DeviceArray.from_host(array, beside) if is_host(array) else array
