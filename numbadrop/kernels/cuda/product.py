"""The gathered matrix product: one kernel, of which forward and both gradients are operands.

A block of threads computes a tile of the product. Shared memory holds some slices of its depth, of
both operands: while one is multiplied, the next are copied in the background. Each thread
multiplies from shared memory into a tile of registers (Volkov and Demmel, "Benchmarking GPUs to
tune dense linear algebra", SC 2008).

A product of few tiles is split along its depth, too. The partial products are added in order, so
that the same device gives the same bits again.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from numbadrop.kernels.cuda.array import DeviceArray
from numbadrop.kernels.cuda.driver import SIMULATED, cuda, enter
from numbadrop.kernels.cuda.gather import PADDING, Layout, Operand, loader, place
from numbadrop.kernels.cuda.jit import ALIGNMENT, device_function
from numbadrop.kernels.cuda.launch import STRIDING, Grid, grid_over, kernel
from numbadrop.kernels.cuda.memory import VECTOR_BYTES, commit, load, store, waiter
from numbadrop.kernels.cuda.tile import Tile, multiplier

__all__ = ["TILES", "Ending", "Target", "multiply", "product_kernel"]

TILES: dict[np.dtype[Any], tuple[Tile, ...]] = {
    np.dtype(np.float32): (
        Tile(128, 128, 16, 8, 8, warp_rows=4, warp_cols=8, stages=2, rate=90),
        Tile(64, 64, 16, 8, 4, warp_rows=4, warp_cols=8, stages=4, rate=82),
        Tile(32, 64, 16, 4, 4, warp_rows=4, warp_cols=8, stages=4, rate=68),
    ),
    np.dtype(np.float64): (Tile(64, 64, 8, 8, 4, warp_rows=4, warp_cols=8, stages=4, rate=45),),
}
"""Shapes to choose from. The rates of float32 are an H100's, which could do 128."""

if SIMULATED:  # Its threads are Python's: few of them, with all that threads have in common.
    TILES = {
        np.dtype(np.float32): (Tile(16, 16, 4, 4, 4, warp_rows=2, warp_cols=2),),
        np.dtype(np.float64): (Tile(8, 8, 4, 4, 2, warp_rows=2, warp_cols=1),),
    }

_THREADS = 512
"""Threads of a multiprocessor that the registers of the tiles suffice for."""
_LEAST_SHARE = 64
"""Depth below which a share is not worth a block."""
_FULL = 288
"""Threads that a multiprocessor is full with: fewer wait for memory longer than others compute."""
_BYTES_A_CYCLE = 6
"""Of partial products that a multiprocessor writes and reads again."""
_LAUNCH_CYCLES = 16_000
"""What another kernel costs: a third of it on the GPU, the rest on the host that starts it. The
rates of tiles and `_FULL` were fitted to the times of 27 products on an H100, each computed in all
ways; with the GPU's third alone, what they choose takes 1.03 times as long as the best way."""


_MOST_BLOCKS = 65_535
"""Of a grid, along its second axis."""


class Ending(NamedTuple):
    """What becomes of a sum, as far as a kernel is compiled for it."""

    rows_gathered: bool = False
    cols_gathered: bool = False
    biased: bool = False
    """Whether the unit of the column has a bias."""
    added: bool = False
    """Whether it is added to what is there; else it passes through the rectifier."""


class Target(NamedTuple):
    """Where a product goes: addresses; 0 stands for what there is not."""

    data: Any
    row_units: Any
    row_stride: int
    col_units: Any
    bias: Any
    slope: float
    scale: float


@cache
def _finisher(ending: Ending, dtype: np.dtype[Any], biases_gathered: bool) -> Any:
    """Return the device function that stores a sum."""
    row_place, col_place = place(ending.rows_gathered), place(ending.cols_gathered)
    element = dtype.type
    unit, biased, added = place(biases_gathered), ending.biased, ending.added

    @device_function
    def finish(target, b, row, col, value):
        at = row_place(target.row_units, target.row_stride, row)
        at += col_place(target.col_units, 1, col)
        scale = element(target.scale)
        if added:
            value = load(target.data, at, element) + scale * value
        else:
            slope = element(target.slope)
            if biased:
                value += load(target.bias, unit(b.outer_units, 1, col), element)
            # Infinity times a slope of zero is zero here; NaN remains.
            if value <= 0 and slope == 0:
                value = element(0)
            elif not value > 0:
                value *= slope
            value *= scale
        store(target.data, at, value, element)

    return finish


@cache
def product_kernel(
    tile: Tile, dtype: np.dtype[Any], a_layout: Layout, b_layout: Layout, ending: Ending | None
) -> Any:
    """Return ``kernel(a, b, target, depth, share)``, for tiles of this shape.

    Each layer of the grid sums over a share of the depth. Without an ending, it stores its sums in
    a matrix of its own.
    """
    element = dtype.type
    run = VECTOR_BYTES // dtype.itemsize
    threads = tile.threads
    a_load = loader(a_layout, dtype, tile.rows, tile.depth, threads)
    b_load = loader(b_layout, dtype, tile.cols, tile.depth, threads)
    a_begin, a_fetch, a_fetch_some, a_look_ahead, a_fixed, a_ahead = a_load
    b_begin, b_fetch, b_fetch_some, b_look_ahead, b_fixed, b_ahead = b_load
    padding = PADDING // dtype.itemsize
    slice_depth = tile.depth
    a_size = slice_depth * (tile.rows + padding)
    slice_size = a_size + slice_depth * (tile.cols + padding)
    on_their_way = tile.stages - 1
    wait, wait_for_all = waiter(tile.stages - 2), waiter(0)
    shared_size = tile.stages * slice_size
    tile_rows, tile_cols = tile.rows, tile.cols
    rows, cols = tile.thread_rows, tile.thread_cols
    sums_size = rows * cols
    row_step, col_step = tile.threads_down * run, tile.threads_along * run
    warp_rows, warp_cols = tile.warp_rows, tile.warp_cols
    warp, warps_along = warp_rows * warp_cols, tile.threads_along // warp_cols
    pair = 2 * warp_cols
    partial = ending is None
    finish = _finisher(ending or Ending(), dtype, b_layout.outer_gathered)

    @device_function
    def fetch_some(work, step):
        a, b, thread, at, last, a_places, b_places, a_next, b_next, shared, free = work
        a_fetch_some(a, thread, at, last, a_places, a_next, shared, free, step)
        b_fetch_some(b, thread, at, last, b_places, b_next, shared, free + a_size, step)

    add_product = multiplier(tile, dtype, fetch_some)

    # Numba adds two int32 to an int64. Where the sum is kept, a cast saves a register.
    @kernel(threads, blocks=max(_THREADS // threads, 1))
    def product(a, b, target, depth, share):
        shared = cuda.shared.array(shared_size, element, alignment=ALIGNMENT)
        sums = cuda.local.array(sums_size, element)
        left = cuda.local.array(rows, element, alignment=ALIGNMENT)
        right = cuda.local.array(cols, element, alignment=ALIGNMENT)
        a_places = cuda.local.array(a_fixed, np.int64)
        b_places = cuda.local.array(b_fixed, np.int64)
        a_next = cuda.local.array(a_ahead, np.int32)
        b_next = cuda.local.array(b_ahead, np.int32)
        for i in range(sums_size):
            sums[i] = 0
        thread = np.int32(cuda.threadIdx.x)
        lane, number = thread % warp, thread // warp
        # Lanes i and i ^ 1 read the same of B, lanes i and i ^ 2 the same of A: in such pairs,
        # shared memory hands out 16 bytes to twice as many lanes at once.
        row = (number // warps_along * warp_rows + lane // pair * 2 + lane % 2) * run
        col = (number % warps_along * warp_cols + lane // 2 % warp_cols) * run
        first_row, first_col = cuda.blockIdx.x * tile_rows, cuda.blockIdx.y * tile_cols
        first = np.int32(cuda.blockIdx.z * share)
        last = np.int32(min(first + share, depth))

        a_begin(a, thread, first_row, first, last, depth, a_places, a_next)
        b_begin(b, thread, first_col, first, last, depth, b_places, b_next)
        now, free = np.int32(0), np.int32(0)
        for i in range(on_their_way):
            at = np.int32(first + i * slice_depth)
            a_fetch(a, thread, at, last, a_places, a_next, shared, free)
            b_fetch(b, thread, at, last, b_places, b_next, shared, free + a_size)
            at = np.int32(at + slice_depth)
            a_look_ahead(a, thread, at, last, depth, a_next)
            b_look_ahead(b, thread, at, last, depth, b_next)
            commit()
            free = np.int32(free + slice_size)
        done = first
        while done < last:
            # The slice of this turn is there, and all threads are done with that of the last one.
            wait()
            cuda.syncthreads()
            # Behind the end there are zeros to fetch: a branch would take longer.
            at = np.int32(done + on_their_way * slice_depth)
            work = a, b, thread, at, last, a_places, b_places, a_next, b_next, shared, free
            add_product(sums, left, right, shared, now + row, now + a_size + col, work, 0)
            at = np.int32(at + slice_depth)
            a_look_ahead(a, thread, at, last, depth, a_next)
            b_look_ahead(b, thread, at, last, depth, b_next)
            commit()
            free = now
            now = np.int32(now + slice_size)
            if now == shared_size:
                now = np.int32(0)
            done = np.int32(done + slice_depth)
        wait_for_all()

        for i in range(rows):
            r = np.int32(first_row + row + i // run * row_step + i % run)
            for j in range(cols):
                c = np.int32(first_col + col + j // run * col_step + j % run)
                if r < a.outer_count and c < b.outer_count:
                    if partial:
                        at = (cuda.blockIdx.z * a.outer_count + r) * b.outer_count + c
                        store(target, at, sums[i * cols + j], element)
                    else:
                        finish(target, b, r, c, sums[i * cols + j])

    return product


@cache
def _summing_kernel(dtype: np.dtype[Any], biases_gathered: bool, ending: Ending) -> Any:
    """Return the kernel that adds partial products in order."""
    element = dtype.type
    finish = _finisher(ending, dtype, biases_gathered)

    @kernel(STRIDING)
    def add_partial_products(partial, shares, a, b, target):
        area = a.outer_count * b.outer_count
        for at in range(cuda.grid(1), area, cuda.gridsize(1)):
            value = element(0)
            for s in range(shares):
                value += load(partial, s * area + at, element)
            finish(target, b, at // b.outer_count, at % b.outer_count, value)

    return add_partial_products


@cache
def _multiprocessors() -> int:
    if SIMULATED:
        return 1
    enter()
    return int(cuda.get_current_device().MULTIPROCESSOR_COUNT)


def _cycles(tile: Tile, shares: int, rows: int, cols: int, depth: int, itemsize: int) -> float:
    """Estimate the time of a product from what the busiest multiprocessor has to do."""
    processors = _multiprocessors()
    blocks = -(-rows // tile.rows) * -(-cols // tile.cols) * shares
    own = -(-blocks // processors)
    rate = tile.rate * min(1.0, math.sqrt(own * tile.threads / _FULL))
    cycles = own * -(-depth // shares) * tile.rows * tile.cols / rate
    if shares > 1:
        moved = 2 * shares * rows * cols * itemsize
        cycles += _LAUNCH_CYCLES + moved / (processors * _BYTES_A_CYCLE)
    return cycles


def _plan(dtype: np.dtype[Any], rows: int, cols: int, depth: int) -> tuple[Tile, int]:
    """Choose a tile, and the depth of a share: a number of whole slices."""
    plans = [
        (tile, shares)
        for tile in TILES[dtype]
        for shares in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
        if shares == 1 or shares * _LEAST_SHARE <= depth
    ]
    tile, shares = min(
        plans, key=lambda plan: _cycles(plan[0], plan[1], rows, cols, depth, dtype.itemsize)
    )
    return tile, -(-depth // (shares * tile.depth)) * tile.depth


@lru_cache(maxsize=1024)
def _prepared(
    dtype: np.dtype[Any], a_layout: Layout, b_layout: Layout, ending: Ending,
    rows: int, cols: int, depth: int,
) -> tuple[Any, Grid, int, Any]:  # fmt: skip
    """Return the kernel with its grid, the depth of a share, and the kernel that adds shares."""
    tile, share = _plan(dtype, rows, cols, depth)
    shares = -(-depth // share) if depth else 0
    grid = -(-rows // tile.rows), -(-cols // tile.cols), shares
    if grid[1] > _MOST_BLOCKS:
        raise ValueError(f"a product on a GPU must have fewer columns, got {cols}")
    add = None if shares == 1 else _summing_kernel(dtype, b_layout.outer_gathered, ending)
    run = product_kernel(tile, dtype, a_layout, b_layout, None if add else ending)
    return run, grid, share, add


def multiply(
    dtype: np.dtype[Any], a: Operand, a_layout: Layout, b: Operand, b_layout: Layout,
    target: Target, ending: Ending, depth: int,
) -> None:  # fmt: skip
    """Compute the product of two operands: a matrix of their outer axes."""
    rows, cols = a.outer_count, b.outer_count
    if rows == 0 or cols == 0:
        return
    run, grid, share, add = _prepared(dtype, a_layout, b_layout, ending, rows, cols, depth)
    if add is None:
        run(grid, a, b, target, depth, share)
        return
    shares = grid[2]
    sums = DeviceArray.empty(max(shares, 1) * rows * cols, dtype)
    if shares:
        run(grid, a, b, sums.address, depth, share)
    add(grid_over(rows * cols), sums.address, shares, a, b, target)
