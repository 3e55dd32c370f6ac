"""Kernels over matrices whose columns are units: for each element, and sums down each column.

Threads lie along the columns, where memory is dense, and blocks take chunks of rows, which depend
on the shape alone: a sum has the same bits each time.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from numbadrop.kernels.cuda.array import DeviceArray
from numbadrop.kernels.cuda.driver import SIMULATED, cuda
from numbadrop.kernels.cuda.jit import device_function
from numbadrop.kernels.cuda.launch import kernel
from numbadrop.kernels.cuda.memory import load, store

__all__ = ["ALONG", "DOWN", "for_each", "grid_of", "sum_columns"]

ALONG, DOWN = (2, 2) if SIMULATED else (32, 8)
"""Threads of a block, along the columns and down the rows."""
_CHUNK = 128
"""Rows of a block; more, where there were more blocks than a grid takes."""
_MOST_CHUNKS = 65_535


def grid_of(rows: int, cols: int) -> tuple[int, tuple[int, int, int]]:
    """Return the rows of a block, and the grid."""
    chunk = max(_CHUNK, -(-rows // _MOST_CHUNKS))
    return chunk, (-(-cols // ALONG), max(-(-rows // chunk), 1), 1)


@cache
def _each_kernel(body: Any, real: Any) -> Any:
    along, down = ALONG, DOWN

    @kernel(along, down, real=real)
    def each(rows, cols, chunk, operands):
        col = cuda.blockIdx.x * along + cuda.threadIdx.x
        first = cuda.blockIdx.y * chunk
        if col < cols:
            for row in range(first + cuda.threadIdx.y, min(first + chunk, rows), down):
                body(operands, row * cols + col, row, col)

    return each


def _addresses(operands: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(one.address if type(one) is DeviceArray else one for one in operands)


def for_each(body: Any, real: Any, rows: int, cols: int, *operands: Any) -> None:
    """Run the device function ``body(operands, at, row, col)`` for each element of a matrix.

    `at` is its flat index. It gets arrays by their addresses, and floats as the type `real`.
    """
    if rows and cols:
        chunk, grid = grid_of(rows, cols)
        _each_kernel(body, real)(grid, rows, cols, chunk, _addresses(operands))


@cache
def _sums_kernel(terms: Any, count: int, dtype: np.dtype[Any]) -> Any:
    along, down, element = ALONG, DOWN, dtype.type
    size = count * along * down

    @kernel(along, down, real=element)
    def sums(rows, cols, chunk, operands, out):
        shared = cuda.shared.array(size, element)
        totals = cuda.local.array(count, element)
        for s in range(count):
            totals[s] = 0
        x, y = cuda.threadIdx.x, cuda.threadIdx.y
        col = cuda.blockIdx.x * along + x
        first = cuda.blockIdx.y * chunk
        if col < cols:
            for row in range(first + y, min(first + chunk, rows), down):
                values = terms(operands, row * cols + col, row, col)
                for s in range(count):
                    totals[s] += values[s]
        for s in range(count):
            shared[(s * down + y) * along + x] = totals[s]
        cuda.syncthreads()
        if y == 0 and col < cols:
            for s in range(count):
                total = element(0)
                for i in range(down):
                    total += shared[(s * down + i) * along + x]
                store(out, (cuda.blockIdx.y * count + s) * cols + col, total, element)

    return sums


@cache
def itself(dtype: np.dtype[Any]) -> Any:
    """Return terms for plain sums."""
    element = dtype.type

    @device_function
    def terms(operands, at, row, col):
        return (load(operands[0], at, element),)

    return terms


def sum_columns(
    terms: Any, count: int, dtype: np.dtype[Any], rows: int, cols: int, *operands: Any
) -> DeviceArray:
    """Return sums over the rows, shape (count, cols), of a tuple of terms for each element.

    The device function ``terms(operands, at, row, col)`` returns it.
    """
    chunk, grid = grid_of(rows, cols)
    parts = grid[1]
    out = DeviceArray.empty((parts * count, cols), dtype)
    if cols:
        run = _sums_kernel(terms, count, dtype)
        run(grid, rows, cols, chunk, _addresses(operands), out.address)
        if parts > 1:
            width = count * cols
            return sum_columns(itself(dtype), 1, dtype, parts, width, out).reshape(count, cols)
    return out
