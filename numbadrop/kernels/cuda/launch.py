"""Kernels, and how they are started: by the driver's own call, with their numbers packed."""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable
from functools import cache
from struct import Struct
from typing import Any

from numbadrop.address import address_of_bytes
from numbadrop.errors import DeviceError
from numbadrop.kernels.cuda.cubins import load, name_of, save
from numbadrop.kernels.cuda.driver import (
    SIMULATED,
    STREAM,
    bindings,
    call,
    check,
    cuda,
    enter,
)

if not SIMULATED:
    from numba.cuda import dispatcher

__all__ = ["STRIDING", "Grid", "Kernel", "grid_over", "kernel"]

Grid = tuple[int, int, int]

STRIDING, _MOST_BLOCKS = (2, 1) if SIMULATED else (256, 4096)
"""Threads of a kernel whose threads stride over elements; a simulated one is a thread of Python."""


def grid_over(size: int) -> Grid:
    """Return the grid of a kernel of `STRIDING` threads that stride over so many elements."""
    return min(-(-size // STRIDING), _MOST_BLOCKS), 1, 1


def kernel(*block: int, blocks: int = 1, real: Any = float) -> Callable[[Any], Any]:
    """Return a decorator for a `Kernel` whose blocks have so many threads along each axis."""
    return lambda function: Kernel(function, block, blocks, real)


def _depth(arguments: Any) -> int:
    """Return how deep tuples are nested."""
    return max((1 + _depth(one) for one in arguments if isinstance(one, tuple)), default=0)


def _flat(arguments: Any) -> list[Any]:
    """Return the arguments, and the contents of tuples among them."""
    found: list[Any] = []
    for one in arguments:
        if isinstance(one, tuple):
            found += one
        else:
            found.append(one)
    return found


class Kernel:
    """A kernel of numbers and tuples of them, called as ``kernel(grid, *arguments)``.

    It is compiled for the types of its first call, and again where there are more or fewer numbers:
    calls with as many numbers must have them of the same types.

    Parameters
    ----------
    function : callable
    block : tuple of int
        Threads of a block, along one to three axes.
    blocks : int
        Blocks that are to share a multiprocessor.
    real : type
        What a float becomes: in a kernel of float32, a float64 would double the width of all that
        it meets.
    """

    def __init__(self, function: Any, block: tuple[int, ...], blocks: int, real: Any) -> None:
        self.function = function
        self.real = real
        self.block = (*block, 1, 1)[:3]
        self.bounds = math.prod(block), blocks
        self._depth: int | None = None
        self._compiled: dict[int, tuple[Any, Struct]] = {}

    def __call__(self, grid: Grid, *arguments: Any) -> None:
        """Start the kernel; nobody waits for it."""
        if SIMULATED:
            cuda.jit(self.function)[grid, self.block](*arguments)
            return
        if self._depth is None:
            self._depth = _depth(arguments)
        numbers: Any = arguments
        for _ in range(self._depth):
            numbers = _flat(numbers)
        found = self._compiled.get(len(numbers))
        if found is None:
            found = self._compiled[len(numbers)] = self._compile(arguments)
        handle, layout = found
        place = _parameters()
        layout.pack_into(place.numbers, 0, *numbers)
        place.size.value = layout.size
        (status,) = _launch(handle, *grid, *self.block, 0, STREAM, 0, place.address)
        if status != 0:
            check("cuLaunchKernel", status)

    def sample(self, argument: Any) -> Any:
        """Return an argument whose type is the one that the kernel sees."""
        if not isinstance(argument, tuple):
            return self.real(argument) if isinstance(argument, float) else argument
        fields = map(self.sample, argument)
        return type(argument)(*fields) if hasattr(argument, "_fields") else tuple(fields)

    def _compile(self, arguments: tuple[Any, ...]) -> tuple[Any, Struct]:
        """Return the kernel as the driver takes it, and its parameters."""
        enter()
        made = cuda.jit(launch_bounds=self.bounds)(self.function)
        kinds = tuple(made.typeof_pyval(self.sample(one)) for one in arguments)
        capability = cuda.get_current_device().compute_capability
        name = name_of(self.function, kinds, self.bounds, capability)
        kept = load(name) if name else None
        if kept is not None:
            try:
                return _loaded(*kept), _layout(kinds)
            except DeviceError:  # A driver that is older than the compiler was.
                pass
        compiled = _built(made, kinds)
        handle = _loaded(*compiled)
        if name:
            save(name, *compiled)
        return handle, _layout(kinds)


def _built(made: Any, kinds: Any) -> tuple[str, bytes]:
    """Return the name and the machine code of a kernel, which its own `compile` would also load."""
    try:
        library = dispatcher._Kernel(made.py_func, kinds, **made.targetoptions)._codelibrary
        return library._entry_name, bytes(library.get_cubin().code)
    except (ImportError, RuntimeError) as error:  # A library that Numba compiles with is missing.
        reason = " ".join(str(error).split())
        raise DeviceError(
            f'kernels cannot be compiled: {reason} pip install "numbadrop[cuda]" brings all that '
            "this takes"
        ) from error


def _loaded(entry: str, code: bytes) -> Any:
    """Return the kernel of this name in machine code, which stays loaded."""
    module = call("cuModuleLoadData", address_of_bytes(code))
    return call("cuModuleGetFunction", module, entry.encode())


def _layout(kinds: Any) -> Struct:
    """Return how numbers of these types lie in the memory of parameters."""

    def letters(kind: Any) -> str:
        return "".join(map(letters, kind.types)) if hasattr(kind, "types") else _LETTERS[str(kind)]

    return Struct("".join(map(letters, kinds)))


_launch = bindings.cuLaunchKernel
_LETTERS = {
    "bool": "?", "int8": "b", "int16": "h", "int32": "i", "int64": "q", "uint8": "B", "uint16": "H",
    "uint32": "I", "uint64": "Q", "float16": "e", "float32": "f", "float64": "d",
}  # fmt: skip
_MOST_BYTES = 4096
"""Of the parameters of a kernel."""


class _Parameters(threading.local):
    """Where a thread puts the parameters of the kernel that it starts next."""

    def __init__(self) -> None:
        enter()
        self.numbers = ctypes.create_string_buffer(_MOST_BYTES)
        self.size = ctypes.c_size_t()
        end, pointer, size = 0, 1, 2  # CU_LAUNCH_PARAM_...
        self._list = (ctypes.c_void_p * 5)(
            pointer, ctypes.addressof(self.numbers), size, ctypes.addressof(self.size), end
        )
        self.address = ctypes.addressof(self._list)


@cache
def _parameters() -> _Parameters:
    return _Parameters()
