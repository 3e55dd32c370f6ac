"""Where arrays lie in memory, found quickly.

`array.ctypes.data` takes longer than all checks of a kernel's door together, and asking three
arrays for shapes and strides as long as them. The C structure behind an array is what extension
modules have been compiled against since NumPy 1.0, that of bytes is CPython's; a trial at the first
import makes sure of both.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DATA", "DESCR", "FLAGS", "NDIM", "SHAPE", "STRIDES", "address_of", "address_of_bytes",
]  # fmt: skip

Array = NDArray[Any]

DATA = object.__basicsize__
"""Bytes from the beginning of an array's structure, its `id`, to the address of its elements."""
SHAPE, STRIDES = DATA + 16, DATA + 24
"""To the addresses of its lengths and of its strides, one word for each axis."""
NDIM = DATA + 8
"""To the number of axes, half a word."""
DESCR = DATA + 40
"""To the `id` of its dtype."""
FLAGS = DATA + 48
"""To NumPy's flags, half a word, with the values of its C interface."""
_BYTES = bytes.__basicsize__ - 1
"""To the first of some bytes, which a zero follows that counts as one of the structure."""

_word = ctypes.c_void_p.from_address


def address_of(array: Array) -> int:
    """Return the address of an array's first element."""
    return _word(id(array) + DATA).value or 0


def address_of_bytes(data: bytes) -> int:
    """Return the address of the first byte."""
    return id(data) + _BYTES


def _try_layout() -> None:
    array, data = np.empty((5, 7))[1:, :6:2], b"numbadrop"

    def words(at: int) -> list[int | None]:
        address = _word(id(array) + at).value
        return [_word(address + 8 * axis).value for axis in range(2)] if address else []

    if (
        address_of(array) != array.ctypes.data
        or words(SHAPE) != list(array.shape)
        or words(STRIDES) != list(array.strides)
        or ctypes.c_int32.from_address(id(array) + NDIM).value != array.ndim
        or _word(id(array) + DESCR).value != id(array.dtype)
        or ctypes.c_int32.from_address(id(array) + FLAGS).value != array.flags.num
        or ctypes.string_at(address_of_bytes(data), len(data)) != data
    ):
        raise ImportError(
            f"numbadrop cannot read the arrays of NumPy {np.__version__} in this Python: "
            "their structure in memory is not the known one"
        )


_try_layout()
