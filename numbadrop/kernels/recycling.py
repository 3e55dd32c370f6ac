"""Large arrays in memory that other arrays have left.

A training step makes the same large arrays as the step before. What an array of more than 32 MB
leaves (on Linux; elsewhere it is less), malloc gives back to the operating system, and what it asks
for again comes as pages of zeros, each of which interrupts the program when it is first touched: an
eighth of the time of a convolutional net (measured). Here memory is kept for the next array of
about its size.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from math import prod
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbadrop.kernels.memory import CACHE_LINE

__all__ = ["empty_host", "release_memory"]

Array = NDArray[Any]

_FROM_BYTES = 1 << 20
"""What is smaller, malloc itself keeps at hand. What is larger begins on a cache line here, so that
registers are not written across two."""
_MOST_BYTES = 1 << 30
"""Most bytes that lie unused. Beyond them the memory that has waited longest is given back."""

_free: list[Array] = []
"""The longest unused first. Only who holds the lock changes it."""
_lock = threading.Lock()
_left: SimpleQueue[Array] = SimpleQueue()
"""On the way to `_free`: the last holder of an array may let go of it at any instant, in any
thread, even within the functions of this module."""


class _Lease:
    """What an array in kept memory, and every view of it, holds for as long as it lives."""

    __slots__ = ("__array_interface__", "memory")

    def __init__(self, memory: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.memory = memory
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": dtype.str,
            "data": ((memory.ctypes.data + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE, False),
        }

    # At the end of the program an array may outlive this module's names.
    def __del__(
        self,
        put: Callable[[Array], None] = _left.put,
        is_ending: Callable[[], bool] = sys.is_finalizing,
    ) -> None:
        put(self.memory)
        if not is_ending():
            _collect()


def _collect() -> None:
    """Take in what has been left, and let go of what is too much, unless another thread does."""
    if _lock.acquire(blocking=False):
        try:
            _take_in()
        finally:
            _lock.release()


def _take_in() -> None:
    """Do the work of `_collect` for who holds the lock."""
    try:
        while True:
            _free.append(_left.get_nowait())
    except Empty:
        pass
    unused = sum(memory.nbytes for memory in _free)
    while unused > _MOST_BYTES:
        unused -= _free.pop(0).nbytes


def _take(size: int) -> Array | None:
    """Return memory of `size` to twice as many bytes, the nearest, if there is any."""
    # Who would have to wait, or was forked while another thread held the lock, asks malloc.
    if not _lock.acquire(blocking=False):
        return None
    try:
        _take_in()
        fitting = [
            (memory.nbytes, -place)
            for place, memory in enumerate(_free)
            if size <= memory.nbytes <= 2 * size
        ]
        return _free.pop(-min(fitting)[1]) if fitting else None
    finally:
        _lock.release()


def empty_host(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return an array of undefined values, if it is large in memory that others have left.

    Parameters
    ----------
    shape : tuple of int
    dtype : numpy.dtype

    Returns
    -------
    ndarray
        C-contiguous. Its memory is used again once it and all its views are gone.
    """
    size = prod(shape) * dtype.itemsize
    if size < _FROM_BYTES:
        return np.empty(shape, dtype)
    memory = _take(size + CACHE_LINE)
    if memory is None:
        try:
            memory = np.empty(size + CACHE_LINE, np.uint8)
        except MemoryError:
            release_memory()
            memory = np.empty(size + CACHE_LINE, np.uint8)
    return np.asarray(_Lease(memory, shape, dtype))


def release_memory() -> None:
    """Give back all memory that is kept for arrays to come."""
    if _lock.acquire(blocking=False):
        try:
            _take_in()
            _free.clear()
        finally:
            _lock.release()
