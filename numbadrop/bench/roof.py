"""What no product can exceed: the speed of the register tile alone, and that of memory."""

from __future__ import annotations

import threading
import time
from functools import partial

import numpy as np
from numpy.typing import DTypeLike

from numbadrop.bench.clock import Run
from numbadrop.kernels.elements import MACHINE, lanes
from numbadrop.kernels.jit import entry
from numbadrop.kernels.tile import register_tile

__all__ = ["bandwidth", "peak"]


@entry
def _tiles(alpha, panel, a, c, depth, repeats):
    places = np.zeros(2 * MACHINE.tile_rows + 1, np.int64)
    for row in range(MACHINE.tile_rows):
        places[row] = a + row * depth * 8
        places[MACHINE.tile_rows + row] = c + row * MACHINE.tile_vectors * MACHINE.vector_bytes
    at = places.ctypes.data
    behind = at + 16 * MACHINE.tile_rows
    for _ in range(repeats):
        register_tile(
            alpha, MACHINE.tile_rows, MACHINE.tile_vectors * lanes(alpha), 1, behind, depth,
            at, 8, panel, MACHINE.tile_vectors * MACHINE.vector_bytes,
            at + 8 * MACHINE.tile_rows, 0, 0, places[-1] != 0, 0,
        )  # fmt: skip


def peak(dtype: DTypeLike, threads: int, work: float = 2e9, depth: int = 128) -> float:
    """Return the FLOP/s of the register tile alone, on operands in the nearest cache.

    Parameters
    ----------
    dtype : numpy.float32 or numpy.float64
    threads : int
    work : float
        FLOPs of each thread, which is timed five times; the best counts.
    depth : int
        Of the product that the tile computes.
    """
    dtype = np.dtype(dtype)
    columns = MACHINE.tile_vectors * MACHINE.vector_bytes // dtype.itemsize
    flops = 2.0 * MACHINE.tile_rows * columns * depth
    repeats = int(np.ceil(work / flops))
    alpha = dtype.type(1)

    def tiles() -> None:
        memory = np.zeros((3, depth * MACHINE.tile_rows * MACHINE.tile_vectors * 64), np.uint8)
        panel, a, c = ((row.ctypes.data + 63) // 64 * 64 for row in memory[:, :-64])
        _tiles(alpha, panel, a, c, depth, repeats)

    tiles()  # compiles
    return threads * repeats * flops / _best_seconds([tiles] * threads)


def bandwidth(threads: int, size: int = 1 << 28) -> float:
    """Return the bytes/s of a copy in memory, read and written ones together.

    Parameters
    ----------
    threads : int
    size : int
        Bytes copied: more than the caches hold.
    """
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    shares = zip(np.array_split(source, threads), np.array_split(target, threads), strict=True)
    copies: list[Run] = [partial(np.copyto, b, a) for a, b in shares]
    return 2 * size / _best_seconds(copies)


def _best_seconds(shares: list[Run]) -> float:
    """Return the shortest of five times that threads need for a share each."""
    best = np.inf
    for _ in range(5):
        crew = [threading.Thread(target=share) for share in shares]
        start = time.perf_counter()
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()
        best = min(best, time.perf_counter() - start)
    return best
