"""Where an array lies in memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["address_of"]

Array = NDArray[Any]


def _make_address_of() -> Callable[[Array], int]:
    """Return the fastest way to the address of an array's first element.

    `array.ctypes.data` takes longer than all checks of a kernel's door together. The C structure
    behind an array has begun with the head of every Python object and this address since NumPy
    1.0; where the trial shows anything else, the slow way is taken.
    """
    word = ctypes.c_void_p.from_address
    head = object.__basicsize__

    def fast(array: Array) -> int:
        return word(id(array) + head).value or 0

    def slow(array: Array) -> int:
        return array.ctypes.data

    trial = np.empty(8)[3:]
    return fast if fast(trial) == slow(trial) else slow


address_of = _make_address_of()
