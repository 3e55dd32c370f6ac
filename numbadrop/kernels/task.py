"""Telling a kernel what to do: a few numbers and many words, in one block of memory."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types

from numbadrop.address import address_of_bytes
from numbadrop.kernels import threads
from numbadrop.kernels.jit import native_kernel

__all__ = ["Task", "kernel_for", "prepare_task", "run_task"]


@cache
def kernel_for(
    function: Callable[..., int], first: Any, dtype: np.dtype[Any], words: int
) -> tuple[Callable[..., bytes], int]:
    """Return what packs a task that begins with a `first`, and the kernel for it, for `run`."""
    fields = len(first._fields)
    dtype = np.dtype(f"f{dtype.itemsize}")  # one type has two names where long doubles are doubles
    kind = types.NamedUniTuple(numba.from_dtype(dtype), fields, first)
    # Of a user's own class, a user's own code may follow.
    ours = first.__module__.startswith("numbadrop.")
    layout = struct.Struct(f"@{fields}{dtype.char}{words}q")
    return layout.pack, native_kernel(function, kind, keep_on_disk=ours)


class Task(NamedTuple):
    """A kernel, and what it is to do."""

    kernel: int
    data: bytes

    def run(self, parallel: bool) -> None:
        """Do it; see `run_task`."""
        threads.run(self.kernel, address_of_bytes(self.data), parallel)


def prepare_task(
    function: Callable[..., int], dtype: np.dtype[Any], first: Any, *words: int
) -> Task:
    """Return what `run_task` would run, for later."""
    kind: Any = type(first)
    pack, kernel = kernel_for(function, kind, dtype, len(words))
    return Task(kernel, pack(*first, *words))


def run_task(
    function: Callable[..., int], dtype: np.dtype[Any], first: Any, *words: int, parallel: bool
) -> None:
    """Run ``function(task, part, parts)``, compiled once for a class and a dtype.

    Parameters
    ----------
    function : callable
        Reads the task with `first_of` and `words_behind`, and returns `DONE`.
    dtype : numpy.dtype
        In which the numbers of `first` are handed over, whose type is that of all arithmetic.
    first : NamedTuple of float
    *words : int
        Sizes, strides and addresses. Until the return, what is at the addresses must live, and an
        array that is given by its `id` keep its shape and strides.
    parallel : bool
        Whether the crew of threads takes part.

    Raises
    ------
    MemoryError
        If there is no memory for what the function needs. What it writes is undefined then.
    struct.error
        If `first` holds something else than numbers.
    """
    # Not by `prepare_task`, whose calls would take a tenth of what this does.
    kind: Any = type(first)
    pack, kernel = kernel_for(function, kind, dtype, len(words))
    task = pack(*first, *words)
    threads.run(kernel, address_of_bytes(task), parallel)
