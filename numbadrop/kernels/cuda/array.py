"""Arrays in the memory of a GPU, on which NumPy's functions run there.

The array's class selects where work is done: NumPy hands its functions over by its own protocols
(NEP 13 and 18), so that elementwise code is written once, for both. Nothing moves between host and
device unless it is asked to: `numpy.asarray` of a device array is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import ArrayLike, DTypeLike, NDArray

from numbadrop.index_set import IndexSet
from numbadrop.kernels.cuda import elements
from numbadrop.kernels.cuda.driver import SIMULATED, allocate, cuda
from numbadrop.kernels.cuda.staging import send

__all__ = ["DeviceArray", "device_indices"]

Array = NDArray[Any]


class DeviceArray(NDArrayOperatorsMixin):
    """A C-contiguous array on the GPU.

    Parameters
    ----------
    native : device array of Numba
        C-contiguous.

    Attributes
    ----------
    native : device array of Numba
        What kernels take.
    shape : tuple of int
    dtype : numpy.dtype
    """

    __slots__ = ("_flat", "dtype", "native", "shape")

    def __init__(self, native: Any) -> None:
        self.native = native
        self.shape: tuple[int, ...] = tuple(native.shape)
        self.dtype: np.dtype[Any] = native.dtype
        self._flat: Any = native if len(self.shape) == 1 else None

    @classmethod
    def empty(cls, shape: int | tuple[int, ...], dtype: DTypeLike) -> Self:
        """Return an array of undefined values.

        Raises
        ------
        DeviceError, DeviceMemoryError
            If there is no GPU, or not enough memory on it.
        """
        return cls(allocate((shape,) if isinstance(shape, int) else tuple(shape), np.dtype(dtype)))

    @classmethod
    def full(cls, shape: int | tuple[int, ...], value: float, dtype: DTypeLike) -> Self:
        """Return an array of equal values."""
        out = cls.empty(shape, dtype)
        elements.apply(elements.IDENTITY, out, value)
        return out

    @classmethod
    def from_host(cls, array: ArrayLike) -> Self:
        """Return a copy of a host array, which may be changed at once: the copy does not wait."""
        host = np.ascontiguousarray(array).reshape(np.shape(array))  # 0-d would become 1-d
        made = cls.empty(host.shape, host.dtype)
        send(host, made.native)
        return made

    @classmethod
    def of(cls, array: Any) -> Self:
        """Return the same memory as a device array, of CuPy's, PyTorch's or Numba's.

        Parameters
        ----------
        array : object with ``__cuda_array_interface__``, or device array of Numba

        Raises
        ------
        TypeError
            If `array` is not on a GPU.
        ValueError
            If it is not C-contiguous.
        """
        if isinstance(array, cls):
            return array
        native = array if cuda.is_cuda_array(array) and not SIMULATED else None
        if native is None and getattr(array, "__cuda_ndarray__", False):
            native = array
        if native is None:
            interface = getattr(array, "__cuda_array_interface__", None)
            if interface is None:
                raise TypeError(f"array must be on the GPU, got {type(array).__name__}")
            native = _simulated_view(array, interface) if SIMULATED else cuda.as_cuda_array(array)
        elif not SIMULATED:
            native = cuda.as_cuda_array(array)
        if not native.is_c_contiguous():
            raise ValueError(
                f"a device array must be C-contiguous, got strides {native.strides} for shape "
                f"{tuple(native.shape)}: make a contiguous copy first"
            )
        return cls(native)
