"""Masks of independent dropout: a thread draws eight elements at a time."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from numbadrop.kernels.cuda.array import DeviceArray
from numbadrop.kernels.cuda.driver import SIMULATED, cuda
from numbadrop.kernels.cuda.jit import device_function
from numbadrop.kernels.cuda.launch import STRIDING, grid_over, kernel
from numbadrop.kernels.cuda.memory import store
from numbadrop.kernels.philox import philox

__all__ = ["dropout_mask"]

_word: Any = int if SIMULATED else np.uint64

if SIMULATED:

    def _product(a, b):
        return divmod(a * b, 1 << 64)

else:
    from numba.cuda import libdevice

    @device_function
    def _product(a, b):
        return np.uint64(libdevice.umul64hi(a, b)), a * b


_block = device_function(philox(_word, _product))
_HALF, _LOW = _word(32), _word(0xFFFFFFFF)


@cache
def _mask(dtype: np.dtype[Any]) -> Any:
    element = dtype.type
    dropped = element(0)

    @device_function
    def store_pair(out, at, size, word, bound, kept):
        """Store the values of the two halves of a word, or of as many as the mask has."""
        if at < size:
            store(out, at, kept if (word & _LOW) >= bound else dropped, element)
        if at + 1 < size:
            store(out, at + 1, kept if (word >> _HALF) >= bound else dropped, element)

    @kernel(STRIDING, real=element)
    def mask(out, size, blocks, kept, bound, first, second):
        bound, first, second = _word(bound), _word(first), _word(second)
        for i in range(cuda.grid(1), blocks, cuda.gridsize(1)):
            a, b, c, d = _block(_word(i), first, second)
            at = 8 * i
            store_pair(out, at, size, a, bound, kept)
            store_pair(out, at + 2, size, b, bound, kept)
            store_pair(out, at + 4, size, c, bound, kept)
            store_pair(out, at + 6, size, d, bound, kept)

    return mask


def dropout_mask(
    shape: tuple[int, ...], dtype: np.dtype[Any], kept: float, bound: int, first: int, second: int
) -> DeviceArray:
    """See `numbadrop.kernels.dropout_mask`: `kept` where 32 bits drawn are at least `bound`."""
    out = DeviceArray.empty(shape, dtype)
    blocks = -(-out.size // 8)
    if blocks:
        run = _mask(dtype)
        run(grid_over(blocks), out.address, out.size, blocks, kept, bound, first, second)
    return out
