"""From arrays to a product: `run_product`, and a native door for what is usual.

To ask three arrays for all that a product needs, and to write it down, takes Python longer than to
multiply a hundred samples by fifty weights of fifty. A native function reads the structures behind
arrays instead. It computes what is right beyond doubt; of all else, be it wrong or merely rare, it
says that it has done nothing, and the doors in Python find out which.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from numbadrop.address import DESCR, FLAGS, NDIM, address_of
from numbadrop.index_set import IndexSet
from numbadrop.kernels.arrays import LARGEST_FACTOR, SMALLEST_SCALE, Units
from numbadrop.kernels.elements import bytes_of
from numbadrop.kernels.epilogue import PLAIN, Epilogue
from numbadrop.kernels.jit import inner, native_function
from numbadrop.kernels.memory import (
    array_data,
    array_length,
    array_stride,
    load_index,
    stack_memory,
)
from numbadrop.kernels.product import TASK_BYTES, TASK_WORDS, multiply_part, write_task
from numbadrop.kernels.recycling import empty_host
from numbadrop.kernels.task import kernel_for, run_task
from numbadrop.kernels.threads import OUT_OF_MEMORY, UNDONE, crew_memory, work_at_once

__all__ = ["NativeDoor", "native_door", "run_product", "run_usual_product"]

Array = NDArray[Any]

_SERIAL_BELOW = 100_000
"""Multiplications that one thread finishes about as fast as a region of several starts."""

_OPERAND, _BIAS, _RESULT = 0x100, 0x101, 0x501
"""The flags of NumPy's that an array must have: aligned 0x100, dense 0x1, writeable 0x400."""
_HALF_WORD = (1 << 32) - 1
_UNUSUAL = -2
"""Nothing has been done: the operands have to be looked at."""
_EVERY = (0, -1, -1)
"""All units, in place of a set's `words`."""


class _Seen(NamedTuple):
    """What the structure behind a matrix says."""

    begin: int
    end: int
    """Behind all elements; they lie between here and `begin`."""
    rows: int
    cols: int
    step: int
    """Bytes from one column to the next."""


# Conditions are joined by `&` and `|`: each `and` would be a branch, which takes time to compile.


@inner
def _is(array, ndim, descr, flags):
    """Whether the array with this `id` has so many axes, this dtype, and these flags."""
    return (
        (load_index(array + NDIM, 0) & _HALF_WORD == ndim)
        & (load_index(array + DESCR, 0) == descr)
        & (load_index(array + FLAGS, 0) & flags == flags)
    )


@inner
def _see(array, size):
    """Return what is known of a matrix; one that is empty or has a negative stride seems empty."""
    begin, rows, cols = array_data(array), array_length(array, 0), array_length(array, 1)
    down, step = array_stride(array, 0), array_stride(array, 1)
    if (rows <= 0) | (cols <= 0) | (down < 0) | (step < 0):
        return _Seen(begin, begin, 0, 0, step)
    return _Seen(begin, begin + (rows - 1) * down + (cols - 1) * step + size, rows, cols, step)


def _multiply(
    kernel, descr, a, b, c, rows, row_count, row_size, cols, col_count, col_size,
    bias, slope, scale, scatter, crew,
):  # fmt: skip
    """Return how many parts have failed, or `UNDONE`, or `_UNUSUAL`.

    Matrices are given by their `id`, as are a vector of biases and the dtype, sets as in `_EVERY`.
    The type of the factors is that of the elements.
    """
    size = bytes_of(scale)
    if not (_is(a, 2, descr, _OPERAND) & _is(b, 2, descr, _OPERAND) & _is(c, 2, descr, _RESULT)):
        return _UNUSUAL
    x, y, z = _see(a, size), _see(b, size), _see(c, size)
    # The axes that the sets are of, and how many of their units the operands have.
    if scatter:
        axes, kept, fits = (z.rows, z.cols), (x.rows, y.cols), x.cols == y.rows
    else:
        axes, kept, fits = (y.rows, y.cols), (x.cols, z.cols), x.rows == z.rows
    fits &= (kept[0] == row_count) & (axes[0] == row_size) | (row_count < 0) & (kept[0] == axes[0])
    fits &= (kept[1] == col_count) & (axes[1] == col_size) | (col_count < 0) & (kept[1] == axes[1])
    work = x.rows * x.cols * kept[1]
    fits &= (work > 0) & (z.step == size)
    fits &= (x.end <= z.begin) | (x.begin >= z.end)
    fits &= (y.end <= z.begin) | (y.begin >= z.end)
    # What was rounded to a limit may lie beyond it; NaN is not less than anything.
    fits &= (slope >= 0) & (slope < LARGEST_FACTOR) & (abs(scale) < LARGEST_FACTOR)
    fits &= (scatter != 0) | (scale > SMALLEST_SCALE)
    biases = 0
    if bias != 0:
        if not _is(bias, 1, descr, _BIAS):
            return _UNUSUAL
        biases = array_data(bias)
        fits &= array_length(bias, 0) == axes[1]
        fits &= (biases + axes[1] * size <= z.begin) | (biases >= z.end)
    if not fits:
        return _UNUSUAL
    task = stack_memory(TASK_BYTES)
    write_task(task, slope, scale, a, b, c, biases, kept[1], scatter, (rows, cols))
    return work_at_once(crew, kernel, task, work >= _SERIAL_BELOW)


class NativeDoor(NamedTuple):
    """How arrays of one dtype are multiplied."""

    multiply: Any
    kernel: int
    descr: int


@cache
def native_door(dtype: np.dtype[Any]) -> NativeDoor | None:
    """Return what multiplies arrays of a dtype, None where nothing does."""
    if dtype not in (np.float32, np.float64):
        return None
    dtype = np.dtype(f"f{dtype.itemsize}")  # one type has two names where long doubles are doubles
    element = numba.from_dtype(dtype)
    i64 = types.int64
    signature = i64(*[i64] * 12, element, element, i64, i64)
    _, kernel = kernel_for(multiply_part, Epilogue, dtype, TASK_WORDS)
    return NativeDoor(native_function(_multiply, signature), kernel, id(dtype))


def run_product(
    a: Array, b: Array, c: Array, rows: IndexSet | None, cols: IndexSet | None,
    bias: Array | None = None, epilogue: Epilogue = PLAIN, scatter: bool = False,
) -> None:  # fmt: skip
    """``C = f(A B[rows, cols])``, or with `scatter` ``C[rows, cols] += f(A B)``.

    Nothing is checked: operands are what `multiply_part` wants. Transposition is a view's swapped
    strides. A C whose columns are not dense is copied to, unless it is added to.
    """
    height, depth = a.shape
    width = (b if scatter else c).shape[1]
    dense = c if scatter or c.strides[1] == c.itemsize else empty_host(c.shape, c.dtype)
    units = [0 if units is None else units.address for units in (rows, cols)]
    run_task(
        multiply_part, c.dtype, epilogue,
        id(a), id(b), id(dense), 0 if bias is None else address_of(bias), width, scatter,
        *((0, 0, *units) if scatter else (*units, 0, 0)),
        parallel=height * depth * width >= _SERIAL_BELOW,
    )  # fmt: skip
    if dense is not c:
        c[...] = dense


def run_usual_product(
    a: Any, b: Any, c: Any, rows: Units, cols: Units,
    bias: Any = None, slope: Any = 1.0, scale: Any = 1.0, scatter: bool = False,
) -> Array | None:  # fmt: skip
    """Return C, computed as by `run_product`, or None where nothing has been done.

    Arguments are as a user gives them, whatever they are. Without `scatter`, a C that is None is
    made.
    """
    if not (
        type(a) is type(b) is np.ndarray
        and (rows is None or type(rows) is IndexSet)
        and (cols is None or type(cols) is IndexSet)
        and (bias is None or type(bias) is np.ndarray)
        and type(slope) is type(scale) is float
    ):
        return None
    native = native_door(b.dtype)
    if native is None:
        return None
    if c is None and a.ndim == b.ndim == 2 and not scatter:
        depth, width = b.shape
        # What does not fit may be so wrong that there is no memory for its result.
        if a.shape[1] == (depth if rows is None else len(rows.indices)):
            c = empty_host((len(a), width if cols is None else len(cols.indices)), b.dtype)
    if type(c) is not np.ndarray:
        return None
    crew, shared = crew_memory()
    failed = native.multiply(
        native.kernel, native.descr, id(a), id(b), id(c),
        *(_EVERY if rows is None else rows.words), *(_EVERY if cols is None else cols.words),
        0 if bias is None else id(bias), slope, scale, scatter, shared,
    )  # fmt: skip
    del crew  # which had to live until here
    if failed == 0:
        return c
    if failed == _UNUSUAL:
        return None
    if failed != UNDONE:
        raise MemoryError(OUT_OF_MEMORY)
    run_product(a, b, c, rows, cols, bias, Epilogue(slope, scale), scatter)
    return c
