"""Kernels behind NumPy's protocols: elementwise functions, sums, and blocks of a matrix.

Each is generated from one description for the functions, dtypes and index sets that are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np

from numbadrop.kernels.cuda.driver import cuda
from numbadrop.kernels.cuda.jit import device_function
from numbadrop.kernels.cuda.launch import STRIDING, grid_over, kernel
from numbadrop.kernels.cuda.memory import load, store

__all__ = ["FUNCTIONS", "apply", "identity", "move_block", "select", "sum_axis"]

_CHUNK = 128
"""Elements that one thread sums; the sums of such chunks are summed in turn. The order depends on
the shape alone, and the error grows with the logarithm of the number of elements."""

_UNUSED = np.dtype(np.int64)
"""Of arguments that a function does not look at."""

Function = Callable[[Any, Any, Any], Any]


def identity(a, b, c):
    """Return the first argument: a fill, a cast, or a copy in another order."""
    return a


def select(a, b, c):
    """Return b where a is true, else c."""
    return b if a else c


# All take three arguments, so that one kernel serves them.
FUNCTIONS: dict[np.ufunc, Function] = {
    np.positive: identity,
    np.negative: lambda a, b, c: -a,
    np.absolute: lambda a, b, c: abs(a),
    np.square: lambda a, b, c: a * a,
    np.sqrt: lambda a, b, c: math.sqrt(a),
    np.exp: lambda a, b, c: math.exp(a),
    np.log: lambda a, b, c: math.log(a),
    np.tanh: lambda a, b, c: math.tanh(a),
    np.add: lambda a, b, c: a + b,
    np.subtract: lambda a, b, c: a - b,
    np.multiply: lambda a, b, c: a * b,
    np.divide: lambda a, b, c: a / b,
    # As NumPy has it, NaN is larger and smaller than any number.
    np.maximum: lambda a, b, c: a if a >= b or a != a else b,
    np.minimum: lambda a, b, c: a if a <= b or a != a else b,
    np.greater: lambda a, b, c: a > b,
    np.greater_equal: lambda a, b, c: a >= b,
    np.less: lambda a, b, c: a < b,
    np.less_equal: lambda a, b, c: a <= b,
    np.equal: lambda a, b, c: a == b,
    np.not_equal: lambda a, b, c: a != b,
}
"""The NumPy functions that run on a GPU."""


def _reader(stored: Any) -> Any:
    """Return the device function that reads an array of this type, or a number if it is None."""
    if stored is None:
        return device_function(lambda value, index: value)
    return device_function(lambda address, index: load(address, index, stored))


@cache
def _elementwise(
    function: Function, kinds: tuple[Any, ...], stored: tuple[Any, ...], result: Any
) -> Any:
    """Return the kernel for arguments that are cast to `kinds` before.

    Arrays are of the types `stored` and `result`; None is a number.
    """
    compute = device_function(function)
    (a_kind, b_kind, c_kind) = kinds
    a_of, b_of, c_of = map(_reader, stored)

    @kernel(STRIDING)
    def run(out, size, a, b, c, shape, strides):
        for i in range(cuda.grid(1), size, cuda.gridsize(1)):
            left, a_at, b_at, c_at = i, 0, 0, 0
            for axis in range(len(shape) - 1, -1, -1):
                at = left % shape[axis]
                left //= shape[axis]
                a_at += at * strides[axis][0]
                b_at += at * strides[axis][1]
                c_at += at * strides[axis][2]
            value = compute(a_kind(a_of(a, a_at)), b_kind(b_of(b, b_at)), c_kind(c_of(c, c_at)))
            store(out, i, value, result)

    return run


def _dense(shape: tuple[int, ...]) -> list[int]:
    """Return the strides of a C-contiguous array, in elements."""
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _collapsed(
    shape: tuple[int, ...], strides: list[tuple[int, ...]]
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Join neighbouring axes that every operand runs through as if they were one."""
    lengths: list[int] = []
    steps: list[tuple[int, ...]] = []
    for length, step in zip(shape, strides, strict=True):
        if length == 1:
            continue
        if lengths and all(a == b * length for a, b in zip(steps[-1], step, strict=True)):
            lengths[-1] *= length
            steps[-1] = step
        else:
            lengths.append(length)
            steps.append(step)
    return tuple(lengths or [1]), tuple(steps or [(0, 0, 0)])


@lru_cache(maxsize=1024)
def _prepared(
    function: Function,
    out_shape: tuple[int, ...],
    out_dtype: np.dtype[Any],
    given: tuple[tuple[tuple[int, ...], np.dtype[Any]] | None, ...],
    dtypes: tuple[np.dtype[Any], ...],
    axes: tuple[int, ...] | None,
) -> tuple[Any, tuple[Any, ...], tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Return the kernel, what numbers become, and the axes with the strides of each operand.

    `given` has the shape and dtype of each operand, None for a number.
    """
    strides = []
    for operand in given:
        own = () if operand is None else operand[0]
        steps = [step if length > 1 else 0 for step, length in zip(_dense(own), own, strict=True)]
        steps = [0] * (len(out_shape) - len(own)) + steps
        whole = axes is None or operand is None
        strides.append(steps if whole else [steps[axis] for axis in axes or ()])
    kinds = tuple(dtype.type for dtype in dtypes)
    stored = tuple(None if operand is None else operand[1].type for operand in given)
    result: Any = out_dtype.type
    run = _elementwise(function, kinds, stored, result)
    return run, kinds, *_collapsed(out_shape, list(zip(*strides, strict=True)))


def apply(
    function: Function,
    out: Any,
    *operands: Any,
    dtypes: tuple[np.dtype[Any], ...] = (),
    axes: tuple[int, ...] | None = None,
) -> None:
    """Set each element of a device array to a function of those of operands, with broadcasting.

    Parameters
    ----------
    function : callable
        Of three elements, or an identity, see `FUNCTIONS`.
    out : DeviceArray
    *operands : DeviceArray or number
        One to three. An array may be `out` itself.
    dtypes : tuple of numpy.dtype
        What the operands are cast to first; by default that of `out`.
    axes : tuple of int, optional
        Read the operands, all of one shape, with their axes in this order.
    """
    size = out.size
    if size == 0:
        return
    missing = 3 - len(operands)
    operands += (0,) * missing
    dtypes = (dtypes or (out.dtype,) * (3 - missing)) + (_UNUSED,) * missing
    arrays = [hasattr(operand, "address") for operand in operands]
    given = tuple(
        (operand.shape, operand.dtype) if is_array else None
        for operand, is_array in zip(operands, arrays, strict=True)
    )
    run, kinds, shape, steps = _prepared(function, out.shape, out.dtype, given, dtypes, axes)
    values = [
        operand.address if is_array else kind(operand)
        for operand, is_array, kind in zip(operands, arrays, kinds, strict=True)
    ]
    run(grid_over(size), out.address, size, *values, shape, steps)


@cache
def _summation(kind: type) -> Any:
    @kernel(STRIDING)
    def run(out, size, x, length, inner, chunks):
        for i in range(cuda.grid(1), size, cuda.gridsize(1)):
            k = i % inner
            chunk = i // inner % chunks
            first = i // inner // chunks * length
            total = kind(0)
            for j in range(chunk * _CHUNK, min((chunk + 1) * _CHUNK, length)):
                total += load(x, (first + j) * inner + k, kind)
            store(out, i, total, kind)

    return run


def sum_axis(x: Any, outer: int, length: int, inner: int) -> Any:
    """Return the sums over the middle one of three axes, shape (outer * inner,)."""
    run = _summation(x.dtype.type)
    while True:
        chunks = max(1, -(-length // _CHUNK))
        sums = type(x).empty(outer * chunks * inner, x.dtype)
        if sums.size:
            grid = grid_over(sums.size)
            run(grid, sums.address, sums.size, x.address, length, inner, chunks)
        if chunks == 1:
            return sums
        x, length = sums, chunks


@cache
def _block(kind: Any, rows_gathered: bool, cols_gathered: bool, write: bool) -> Any:
    def gathered(units, at):
        return load(units, at, np.int32)

    def every(units, at):
        return at

    row_of, col_of = (
        device_function((every, gathered)[is_set]) for is_set in (rows_gathered, cols_gathered)
    )

    @kernel(STRIDING)
    def run(block, size, whole, rows, cols, count, width):
        for i in range(cuda.grid(1), size, cuda.gridsize(1)):
            at = row_of(rows, i // count) * width + col_of(cols, i % count)
            if write:
                store(whole, at, load(block, i, kind), kind)
            else:
                store(block, i, load(whole, at, kind), kind)

    return run


def move_block(block: Any, whole: Any, width: int, rows: Any, cols: Any, write: bool) -> None:
    """Copy between a compact block and a matrix with rows of `width` elements.

    Parameters
    ----------
    block, whole : DeviceArray
    width : int
    rows, cols : DeviceArray of int32, or None for all
        Rows and columns of the matrix; any order.
    write : bool
        Whether the block is written into the matrix, or read from it.
    """
    count = max(1, width if cols is None else len(cols))
    run = _block(whole.dtype.type, rows is not None, cols is not None, write)
    places = (0 if units is None else units.address for units in (rows, cols))
    size = block.size
    if size:
        run(grid_over(size), block.address, size, whole.address, *places, count, width)
