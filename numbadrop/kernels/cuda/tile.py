"""The tile of the product that a block of threads computes, and the share of each thread."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from numbadrop.kernels.cuda.gather import PADDING
from numbadrop.kernels.cuda.jit import device_function
from numbadrop.kernels.cuda.memory import VECTOR_BYTES, copy_vector

__all__ = ["Tile", "multiplier"]


class Tile(NamedTuple):
    """Shape of the tile of a block, and of the registers of a thread.

    A thread's rows and columns come in runs of 16 bytes. The first runs of all threads lie side by
    side, then all second ones, so that what a warp reads of shared memory at once is dense.
    """

    rows: int
    cols: int
    depth: int
    thread_rows: int
    thread_cols: int
    warp_rows: int
    warp_cols: int
    stages: int = 4
    """Slices of the depth in shared memory: one is multiplied, the others are on their way."""
    rate: float = 1.0
    """Multiply-adds in a cycle of a multiprocessor that is full of such tiles, as far as known."""

    @property
    def threads_down(self) -> int:
        """Threads of a block, along its rows."""
        return self.rows // self.thread_rows

    @property
    def threads_along(self) -> int:
        """Threads of a block, along its columns."""
        return self.cols // self.thread_cols

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.threads_down * self.threads_along


@cache
def multiplier(tile: Tile, dtype: np.dtype[Any], beside: Any) -> Any:
    """Return ``multiply(sums, left, right, shared, a_at, b_at, work, 0)``, for a slice.

    It adds the thread's share of the product to its sums. `a_at` and `b_at` are flat indices of
    the first elements of the share; `left` and `right` are registers for a row of either. At each
    step of the depth it calls ``beside(work, step)``: the multiplications cover what that does.
    """
    run = VECTOR_BYTES // dtype.itemsize
    rows, cols = tile.thread_rows, tile.thread_cols
    row_step, col_step = tile.threads_down * run, tile.threads_along * run
    padding = PADDING // dtype.itemsize
    a_pitch, b_pitch = tile.rows + padding, tile.cols + padding

    @device_function
    def outer_product(sums, left, right, shared, a_at, b_at, work, step):
        for i in range(rows // run):
            copy_vector(left, i * run, shared, a_at + i * row_step)
        for j in range(cols // run):
            copy_vector(right, j * run, shared, b_at + j * col_step)
        beside(work, step)
        for i in range(rows):
            for j in range(cols):
                sums[i * cols + j] += left[i] * right[j]

    def repeated(multiply: Any, count: int) -> Any:
        # Unrolled by hand, as the compiler's patience ends at one outer product.
        if count == 1:
            return multiply
        middle = count // 2
        half = repeated(multiply, middle)
        a_half, b_half = middle * a_pitch, middle * b_pitch

        @device_function
        def twice(sums, left, right, shared, a_at, b_at, work, step):
            half(sums, left, right, shared, a_at, b_at, work, step)
            a_at, b_at = a_at + a_half, b_at + b_half
            half(sums, left, right, shared, a_at, b_at, work, step + middle)

        return twice

    return repeated(outer_product, tile.depth)
