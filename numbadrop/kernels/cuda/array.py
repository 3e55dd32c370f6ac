"""Arrays in the memory of a GPU, on which NumPy's functions run there.

The array's class selects where work is done: NumPy hands its functions over by its own protocols
(NEP 13 and 18), so that elementwise code is written once, for both. Nothing moves between host and
device unless it is asked to: `numpy.asarray` of a device array is an error.
"""

from __future__ import annotations

import math
import operator
import threading
from collections.abc import Callable
from functools import cache
from typing import Any, Self

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import ArrayLike, DTypeLike, NDArray

from numbadrop.index_set import IndexSet
from numbadrop.kernels.cuda import elements
from numbadrop.kernels.cuda.driver import SIMULATED, allocate, cuda, enter, read
from numbadrop.kernels.cuda.staging import send

__all__ = ["DeviceArray", "device_indices"]

Array = NDArray[Any]
_DTYPES = {np.dtype(kind) for kind in "?bBhHiIlLqQefd"}
_LEGACY_STREAM, _PER_THREAD_STREAM = 1, 2
"""The default ones, as libraries tell each other where kernels that write may be under way."""


def _checked_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype not in _DTYPES:
        raise TypeError(f"an array on the GPU must hold native numbers or booleans, got {dtype}")
    return dtype


class DeviceArray(NDArrayOperatorsMixin):
    """A C-contiguous array on the GPU.

    Parameters
    ----------
    shape : tuple of int
    dtype : numpy.dtype
    address : int
        Of the first element, in the memory of the GPU; the simulator has a flat array instead.
    memory : object
        What keeps that memory from being used for anything else.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
    address : int
    """

    __slots__ = ("_memory", "address", "dtype", "shape")

    def __init__(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], address: Any, memory: Any
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.address = address
        self._memory = memory

    @classmethod
    def empty(cls, shape: int | tuple[int, ...], dtype: DTypeLike) -> Self:
        """Return an array of undefined values.

        Raises
        ------
        DeviceError, DeviceMemoryError
            If there is no GPU, or not enough memory on it.
        """
        if type(shape) is not tuple:
            shape = tuple(shape) if isinstance(shape, list | tuple) else (operator.index(shape),)
        if min(shape, default=0) < 0:
            raise ValueError(f"shape must have no negative length, got {shape}")
        dtype = _checked_dtype(np.dtype(dtype))
        return cls(shape, dtype, *allocate(shape, dtype))

    @classmethod
    def full(cls, shape: int | tuple[int, ...], value: float, dtype: DTypeLike) -> Self:
        """Return an array of equal values."""
        out = cls.empty(shape, dtype)
        elements.apply(elements.identity, out, value)
        return out

    @classmethod
    def from_host(cls, array: ArrayLike, beside: bool = False) -> Self:
        """Return a copy of a host array, see `numbadrop.kernels.to_device`."""
        host = np.asarray(array)
        dtype = host.dtype.newbyteorder("=")
        host = np.ascontiguousarray(host, dtype).reshape(host.shape)  # 0-d would become 1-d
        made = cls.empty(host.shape, host.dtype)
        send(host, made.address, beside)
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
        native = array
        if not getattr(array, "__cuda_ndarray__", False):  # one of Numba's has it
            interface = getattr(array, "__cuda_array_interface__", None)
            if interface is None:
                raise TypeError(f"array must be on the GPU, got {type(array).__name__}")
            native = (_simulated_view if SIMULATED else _native_view)(array, interface)
        if not native.is_c_contiguous():
            raise ValueError(
                f"an array on the GPU must be C-contiguous, got strides {tuple(native.strides)} "
                f"for shape {tuple(native.shape)}: make a contiguous copy first"
            )
        _checked_dtype(native.dtype)
        address = native.reshape(-1) if SIMULATED else native.__cuda_array_interface__["data"][0]
        return cls(tuple(native.shape), native.dtype, address, native)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.size * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self._number(), False),
                "strides": None, "version": 3, "stream": _LEGACY_STREAM}  # fmt: skip

    def _number(self) -> int:
        address: int = self.address._ary.ctypes.data if SIMULATED else self.address
        return address

    def shares_memory(self, other: DeviceArray) -> bool:
        """Whether an element of one is in the memory of the other."""
        first, second = self._number(), other._number()
        return first < second + other.nbytes and second < first + self.nbytes

    def to_host(self) -> Array:
        """Return a copy in the memory of the host, once all kernels before have run."""
        host: Array = np.empty(self.shape, self.dtype)
        read(self.address, host)
        return host

    def item(self) -> Any:
        """Return the one element as a number of Python."""
        return self.to_host().item()

    def __float__(self) -> float:
        return float(self.item())

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an array without axes")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype})"

    def __bool__(self) -> bool:
        raise TypeError("the truth of a DeviceArray is on the GPU: copy it with to_host()")

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        raise TypeError(
            "a DeviceArray does not become a NumPy array by itself: to_host() copies it"
        )

    # Shape and order

    def reshape(self, *shape: Any) -> DeviceArray:
        """Return the same memory under another shape."""
        wanted = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        wanted = tuple(wanted)
        if -1 in wanted and wanted.count(-1) == 1:
            rest = -math.prod(wanted)
            if rest > 0 and self.size % rest == 0:
                wanted = tuple(self.size // rest if n == -1 else n for n in wanted)
        if min(wanted, default=0) < 0 or math.prod(wanted) != self.size:
            raise ValueError(f"cannot reshape an array of shape {self.shape} into {shape}")
        if wanted == self.shape:
            return self
        return DeviceArray(wanted, self.dtype, self.address, self._memory)

    def ravel(self) -> DeviceArray:
        """Return the same memory as one axis."""
        return self.reshape(-1)

    def copy(self) -> DeviceArray:
        """Return a copy on the GPU."""
        return self.astype(self.dtype)

    def astype(self, dtype: DTypeLike) -> DeviceArray:
        """Return a copy on the GPU, with elements of another type."""
        out = DeviceArray.empty(self.shape, dtype)
        elements.apply(elements.identity, out, self)
        return out

    def transpose(self, *axes: int) -> DeviceArray:
        """Return a copy with the axes in another order, by default the reverse one."""
        axes = axes or tuple(reversed(range(self.ndim)))
        if sorted(axes) != list(range(self.ndim)):
            raise ValueError(f"axes must be those of {self.ndim} in some order, got {axes}")
        out = DeviceArray.empty(tuple(self.shape[axis] for axis in axes), self.dtype)
        elements.apply(elements.identity, out, self, axes=axes)
        return out

    def sum(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> DeviceArray:
        """Return the sum over some axes, in an order that depends on the shape alone."""
        over = set(normalize_axis_tuple(range(self.ndim) if axis is None else axis, self.ndim))
        dtype = _summed(self.dtype)
        if not over:
            return self.astype(dtype)
        kept = tuple(1 if number in over else n for number, n in enumerate(self.shape))
        total = self if dtype == self.dtype else self.astype(dtype)
        # Axes next to each other are summed as one.
        for last in sorted(over, reverse=True):
            if last + 1 in over:
                continue
            first = last
            while first - 1 in over:
                first -= 1
            lengths = self.shape[:first], self.shape[first : last + 1], kept[last + 1 :]
            total = elements.sum_axis(total, *map(math.prod, lengths))
        shape = kept if keepdims else tuple(n for i, n in enumerate(kept) if i not in over)
        return total.reshape(shape)

    # Blocks, by index sets

    def __getitem__(self, key: Any) -> DeviceArray:
        """Return a copy of ``[units]`` of one axis, or ``[..., units]`` of the last."""
        units = _units_of(key, self)
        out = DeviceArray.empty((*self.shape[:-1], len(units)), self.dtype)
        cols = device_indices(units)
        elements.move_block(out, self, self.shape[-1], None, cols, write=False)
        return out

    def __setitem__(self, key: Any, value: Any) -> None:
        """Write into all, ``[...]``, into units of the last axis, or into ``[numpy.ix_(...)]``.

        Only all of it takes a host array, for which no memory is needed.
        """
        if key is Ellipsis:
            _check_fits(value, self.shape)
            if isinstance(value, np.ndarray):
                # Straight to its place: a GPU that is full has no room for a copy.
                host = np.broadcast_to(value, self.shape)
                send(np.ascontiguousarray(host, self.dtype), self.address)
                return
            elements.apply(elements.identity, self, value)
            return
        rows: DeviceArray | None = None
        cols: DeviceArray | None
        if isinstance(key, tuple) and all(isinstance(one, np.ndarray) for one in key):
            if len(key) != self.ndim:
                raise IndexError(f"an array with {self.ndim} axes cannot be indexed by {len(key)}")
            *leading, last = key
            place, step = np.zeros((), np.int64), 1
            for indices, length in zip(key, self.shape, strict=True):
                if indices.size and not 0 <= indices.min() <= indices.max() < length:
                    raise IndexError(f"indices must be in [0, {length}), got {indices.ravel()}")
            for indices, length in zip(leading[::-1], self.shape[-2::-1], strict=True):
                place, step = place + indices * step, step * length
            if leading:
                rows = DeviceArray.from_host(place.ravel().astype(np.int32))
            cols = DeviceArray.from_host(last.ravel().astype(np.int32))
            shape = np.broadcast_shapes(*(indices.shape for indices in key))
        else:
            units = _units_of(key, self)
            cols, shape = device_indices(units), (*self.shape[:-1], len(units))
        if not isinstance(value, DeviceArray) or value.shape != shape or value.dtype != self.dtype:
            whole = DeviceArray.empty(shape, self.dtype)
            _check_operands("assignment", (self, value))
            _check_fits(value, shape)
            elements.apply(elements.identity, whole, value)
            value = whole
        elements.move_block(value, self, self.shape[-1], rows, cols, write=True)

    # NumPy's functions

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **named: Any) -> Any:
        function = elements.FUNCTIONS.get(ufunc)
        outs = named.pop("out", (None,))
        if function is None or method != "__call__" or named or len(outs) != 1:
            call = ufunc.__name__ if method == "__call__" else f"{ufunc.__name__}.{method}"
            raise TypeError(f"numpy.{call}, called like this, does not run on the GPU")
        _check_operands(f"numpy.{ufunc.__name__}", (*inputs, *outs))
        # Plain numbers alone, and no subclasses such as bool, take the dtype of the arrays.
        kinds = tuple(one.dtype if isinstance(one, DeviceArray) else type(one)
                      if type(one) in (int, float) else np.asarray(one).dtype
                      for one in inputs)  # fmt: skip
        *dtypes, dtype = _resolved(ufunc, kinds)
        out = _result(outs[0], inputs, dtype, ufunc.__name__)
        elements.apply(function, out, *inputs, dtypes=tuple(dtypes))
        return out

    def __array_function__(
        self, function: Callable[..., Any], types: Any, arguments: Any, named: Any
    ) -> Any:
        own = _FUNCTIONS.get(function)
        if own is None:
            raise TypeError(f"numpy.{function.__name__} does not run on the GPU")
        return own(*arguments, **named)


@cache
def _summed(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of sums: small integers have larger ones."""
    summed: np.dtype[Any] = np.add.reduce(np.empty(0, dtype)).dtype
    return summed


@cache
def _resolved(ufunc: np.ufunc, kinds: tuple[Any, ...]) -> tuple[np.dtype[Any], ...]:
    return ufunc.resolve_dtypes((*kinds, None))


def _native_view(array: Any, interface: dict[str, Any]) -> Any:
    """Return a device array of Numba of the memory of another library."""
    enter()
    # The default streams, legacy and per thread, are in order with ours: the driver lets kernels of
    # the legacy one wait for those of all streams that are not non-blocking, and these for them.
    in_order = interface.get("stream") in (None, _LEGACY_STREAM, _PER_THREAD_STREAM)
    return cuda.as_cuda_array(array, sync=not in_order)


def _simulated_view(array: Any, interface: dict[str, Any]) -> Any:
    """Return a simulated device array of memory that is that of the host."""
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

    # What has an `__array_interface__` is not copied.
    holder = _Host(array, {**interface, "version": 3})
    return FakeCUDAArray(np.asarray(holder))


class _Host:
    """Memory of the host, for NumPy, and its owner."""

    def __init__(self, owner: Any, interface: dict[str, Any]) -> None:
        self.owner = owner
        self.__array_interface__ = interface


def _units_of(key: Any, array: DeviceArray) -> IndexSet:
    units = key[1] if isinstance(key, tuple) and len(key) == 2 and key[0] is Ellipsis else key
    if not isinstance(units, IndexSet) or (units is key and array.ndim != 1):
        raise TypeError(
            f"an array on the GPU is indexed by [..., units], an IndexSet, got {key!r} for shape "
            f"{array.shape}"
        )
    if units.size != array.shape[-1]:
        raise IndexError(f"units is a set of {units.size}, the last axis has {array.shape[-1]}")
    return units


def _is_scalar_array(operand: Any) -> bool:
    return isinstance(operand, np.ndarray) and operand.ndim == 0


def _check_operands(name: str, operands: tuple[Any, ...]) -> None:
    """Refuse host arrays beside device arrays: nothing moves by itself."""
    for number, operand in enumerate(operands):
        if operand is None or isinstance(operand, DeviceArray | int | float | np.generic):
            continue
        if _is_scalar_array(operand):
            continue
        on_device = next(i for i, one in enumerate(operands) if isinstance(one, DeviceArray))
        kind = type(operand).__name__
        raise TypeError(
            f"{name} got operand {number} on the host, {kind} of shape {np.shape(operand)}, and "
            f"operand {on_device} on the GPU, of shape {operands[on_device].shape}: send the one "
            "with numbadrop.kernels.to_device, or copy the other with to_host()"
        )


def _check_fits(value: Any, shape: tuple[int, ...]) -> None:
    """Refuse what is not of this shape once it is broadcast."""
    own = getattr(value, "shape", ())
    if np.broadcast_shapes(own, shape) != shape:
        raise ValueError(f"cannot assign an array of shape {own} to one of shape {shape}")


def _result(out: Any, inputs: tuple[Any, ...], dtype: np.dtype[Any], name: str) -> DeviceArray:
    shape = np.broadcast_shapes(*(getattr(one, "shape", ()) for one in inputs))
    if out is None:
        return DeviceArray.empty(shape, dtype)
    if out.shape != shape or not np.can_cast(dtype, out.dtype, "same_kind"):
        raise ValueError(
            f"out of numpy.{name} must have shape {shape} and hold {dtype}, got {out.shape} and "
            f"{out.dtype}"
        )
    checked: DeviceArray = out
    return checked


def _where(condition: Any, x: Any, y: Any) -> DeviceArray:
    _check_operands("numpy.where", (condition, x, y))
    dtype = np.result_type(*(one.dtype if isinstance(one, DeviceArray) else one for one in (x, y)))
    out = _result(None, (condition, x, y), dtype, "where")
    dtypes = np.dtype(np.bool_), dtype, dtype
    elements.apply(elements.select, out, condition, x, y, dtypes=dtypes)
    return out


def _asarray(array: Any, dtype: Any = None) -> DeviceArray:
    """Return a device array; this is `numpy.asarray` with a device array as `like`."""
    if type(array) is DeviceArray and dtype is None:
        return array
    if hasattr(array, "__cuda_array_interface__"):
        made = DeviceArray.of(array)
        return made if dtype is None or made.dtype == dtype else made.astype(dtype)
    return DeviceArray.from_host(np.asarray(array, dtype))


_FUNCTIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    np.asarray: _asarray,
    np.empty: lambda shape, dtype=float: DeviceArray.empty(shape, dtype),
    np.zeros: lambda shape, dtype=float: DeviceArray.full(shape, 0, dtype),
    np.zeros_like: lambda a: DeviceArray.full(a.shape, 0, a.dtype),
    np.ones_like: lambda a: DeviceArray.full(a.shape, 1, a.dtype),
    np.sum: lambda a, axis=None, keepdims=False: a.sum(axis, keepdims),
    np.where: _where,
}


_sending = threading.Lock()
"""Else two threads could send one set, and the memory be freed that the first is about to use."""


def device_indices(units: IndexSet | None) -> DeviceArray | None:
    """Return the int32 indices of a set on the GPU, None for all; a set is sent once."""
    if units is None or units.is_all:
        return None
    if units.resident is None:
        with _sending:
            if units.resident is None:
                sent = DeviceArray.empty(len(units), np.int32)
                send(units.indices.astype(np.int32), sent.address)
                units.keep_resident(sent)
    resident: DeviceArray = units.resident
    return resident
