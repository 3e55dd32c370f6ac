"""How functions that kernels call are compiled; the simulator runs them in Python."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from numbadrop.kernels.cuda.driver import SIMULATED, cuda

__all__ = ["ALIGNMENT", "device_function"]

if SIMULATED:
    from numba.cuda.simulator.kernelapi import FakeCUDAShared

    ALIGNMENT = None

    def device_function(function: Any) -> Any:
        """Return the function itself."""
        return function

    def _shared_array(self: Any, shape: Any, dtype: Any, alignment: Any = None) -> Any:
        frame = sys._getframe(1)
        place = frame.f_code, frame.f_lineno
        return self._allocations.setdefault(place, np.empty(shape, dtype))

    # Its own looks first and sets then: of two threads that ask at once, each gets its own array.
    FakeCUDAShared.array = _shared_array

else:
    ALIGNMENT = 16
    """Of arrays in shared and local memory that vectors are moved from and to."""

    def device_function(function: Any) -> Any:
        """Compile a function that is inlined where a kernel calls it."""
        return cuda.jit(device=True, forceinline=True)(function)
