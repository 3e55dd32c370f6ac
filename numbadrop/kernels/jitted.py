"""The gathered products inside a user's own jitted functions, under the same names.

They check what the Python doors check, except whether `out` overlaps itself, and run on the calling
thread: a caller's `prange` decides what is parallel. Errors carry their numbers as further
arguments, since formatting text would take longer to compile than the product.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import errors, types
from numba.extending import overload

from numbadrop.kernels import matmul
from numbadrop.kernels.epilogue import Epilogue
from numbadrop.kernels.jit import inlined, inner
from numbadrop.kernels.memory import address_in, keep_alive
from numbadrop.kernels.packing import Matrix
from numbadrop.kernels.product import Product, Strided, multiply
from numbadrop.kernels.windows import Axis

__all__: list[str] = []


def _is_none(kind: Any) -> bool:
    return kind is None or isinstance(kind, types.NoneType | types.Omitted)


def _check_types(rows: Any, cols: Any, out: Any, **matrices: Any) -> None:
    """Refuse, while the caller is compiled, what the types alone show to be wrong."""
    if not _is_none(out):
        matrices["out"] = out
        if isinstance(out, types.Array) and not out.mutable:
            raise errors.TypingError("out is read-only")
        if isinstance(out, types.Array) and not out.aligned:
            raise errors.TypingError("out is not aligned to its element size")
    for name, kind in matrices.items():
        if not (
            isinstance(kind, types.Array)
            and kind.ndim == 2
            and kind.dtype in (types.float32, types.float64)
        ):
            raise errors.TypingError(
                f"{name} must be a two-dimensional array of float32 or float64, got {kind}"
            )
    if len({kind.dtype for kind in matrices.values()}) > 1:
        kinds = ", ".join(f"{name} of {kind.dtype}" for name, kind in matrices.items())
        raise errors.TypingError(f"all arrays must have one dtype, got {kinds}")
    for name, kind in (("rows", rows), ("cols", cols)):
        if not (
            _is_none(kind)
            or (
                isinstance(kind, types.Array)
                and kind.ndim == 1
                and isinstance(kind.dtype, types.Integer | types.Boolean)
            )
        ):
            raise errors.TypingError(
                f"{name} must be None or a one-dimensional array of integers or booleans, "
                f"got {kind}"
            )


def _indices(name, units, size):
    """Return checked int64 indices; an empty array stands for all."""


@overload(_indices)
def _(name, units, size):
    if _is_none(units):
        return lambda name, units, size: np.empty(0, np.int64)
    if isinstance(units.dtype, types.Boolean):

        def from_mask(name, units, size):
            if len(units) != size:
                raise ValueError("mask of wrong length: name, length, size", name, len(units), size)
            indices = np.flatnonzero(units).astype(np.int64)
            if len(indices) == 0:
                raise ValueError("empty index set: name", name)
            return indices

        return from_mask

    def from_indices(name, units, size):
        if len(units) == 0:
            raise ValueError("empty index set: name", name)
        indices = np.empty(len(units), np.int64)
        for at in range(len(units)):
            if units[at] < 0 or units[at] >= size:
                raise ValueError("index not in [0, size): name, index, size", name, units[at], size)
            if at > 0 and units[at] <= units[at - 1]:
                raise ValueError(
                    "indices not ascending and unique: name, index, next",
                    name,
                    units[at - 1],
                    units[at],
                )
            indices[at] = units[at]
        return indices

    return from_indices


@inner
def _count(indices, size):
    return len(indices) if len(indices) else size


@inner
def _check_length(name, got, wanted):
    if got != wanted:
        raise ValueError("wrong number of units or samples: name, got, wanted", name, got, wanted)


def _result(out, rows, cols, like):
    """Return `out` after a check of its shape, or a new array."""


@overload(_result)
def _(out, rows, cols, like):
    if _is_none(out):
        return lambda out, rows, cols, like: np.empty((rows, cols), like.dtype)

    def check(out, rows, cols, like):
        _check_length("out, axis 0", out.shape[0], rows)
        _check_length("out, axis 1", out.shape[1], cols)
        return out

    return check


@inner
def _bounds(array):
    """Return the addresses between which an array lies."""
    low = high = address_in(array)
    for axis in range(2):
        if array.shape[axis] == 0:
            return low, low
        reach = (array.shape[axis] - 1) * array.strides[axis]
        low += min(reach, 0)
        high += max(reach, 0)
    return low, high + array.itemsize


@inner
def _check_apart(out, other):
    out_low, out_high = _bounds(out)
    low, high = _bounds(other)
    if low < out_high and out_low < high:
        raise ValueError("the memory of out reaches into that of an input")


@inner
def _axis(array, axis, indices):
    address = address_in(indices) if len(indices) else 0
    return Axis(array.strides[axis], array.shape[axis], address)


@inner
def _matrix(array, rows, cols):
    return Matrix(address_in(array), _axis(array, 0, rows), _axis(array, 1, cols))


@inlined
def _multiply(a, b, c, b_rows, b_cols, c_rows, c_cols, alpha, scatter):
    """``C = A B[b_rows, b_cols]``, or with `scatter` ``C[c_rows, c_cols] += alpha A B``."""
    _check_apart(c, a)
    _check_apart(c, b)
    rows, depth = a.shape
    cols = _count(b_cols, b.shape[1])
    strided = not scatter and c.strides[1] != c.itemsize
    dense = np.empty(c.shape if strided else (0, 0), c.dtype)
    target = _matrix(dense, c_rows, c_cols) if strided else _matrix(c, c_rows, c_cols)
    product = Product(
        Epilogue(a.dtype.type(1), a.dtype.type(alpha)), 0, rows, cols, depth, scatter,
        Strided(address_in(a), a.strides[0], a.strides[1]),
        _matrix(b, b_rows, b_cols),
        target,
    )  # fmt: skip
    multiply(product, np.int64(0), rows, np.int64(0), cols)
    if strided:
        for i in range(rows):
            for j in range(cols):
                c[i, j] = dense[i, j]
    keep_alive(a)
    keep_alive(b)
    keep_alive(c)
    keep_alive(b_rows)
    keep_alive(b_cols)
    keep_alive(c_rows)
    keep_alive(c_cols)


@overload(matmul.gathered_matmul)
def _(x, w, rows=None, cols=None, out=None):
    _check_types(rows, cols, out, x=x, w=w)

    def gathered_matmul(x, w, rows=None, cols=None, out=None):
        row_set, col_set = _indices("rows", rows, w.shape[0]), _indices("cols", cols, w.shape[1])
        _check_length("x, axis 1", x.shape[1], _count(row_set, w.shape[0]))
        y = _result(out, x.shape[0], _count(col_set, w.shape[1]), w)
        every = np.empty(0, np.int64)
        _multiply(x, w, y, row_set, col_set, every, every, 1, False)
        return y

    return gathered_matmul


@overload(matmul.gathered_matmul_t)
def _(g, w, rows=None, cols=None, out=None):
    _check_types(rows, cols, out, g=g, w=w)

    def gathered_matmul_t(g, w, rows=None, cols=None, out=None):
        row_set, col_set = _indices("rows", rows, w.shape[0]), _indices("cols", cols, w.shape[1])
        _check_length("g, axis 1", g.shape[1], _count(col_set, w.shape[1]))
        dx = _result(out, g.shape[0], _count(row_set, w.shape[0]), w)
        every = np.empty(0, np.int64)
        _multiply(g, w.T, dx, col_set, row_set, every, every, 1, False)
        return dx

    return gathered_matmul_t


@overload(matmul.matmul_at)
def _(x, g, out=None):
    _check_types(None, None, out, x=x, g=g)

    def matmul_at(x, g, out=None):
        _check_length("g, axis 0", g.shape[0], x.shape[0])
        dw = _result(out, x.shape[1], g.shape[1], x)
        every = np.empty(0, np.int64)
        _multiply(x.T, g, dw, every, every, every, every, 1, False)
        return dw

    return matmul_at


@overload(matmul.scatter_matmul)
def _(x, g, rows=None, cols=None, out=None, alpha=1.0):
    if _is_none(out):
        raise errors.TypingError("out must be a two-dimensional array, got none")
    _check_types(rows, cols, out, x=x, g=g)

    def scatter_matmul(x, g, rows=None, cols=None, out=None, alpha=1.0):
        row_set = _indices("rows", rows, out.shape[0])
        col_set = _indices("cols", cols, out.shape[1])
        _check_length("g, axis 0", g.shape[0], x.shape[0])
        _check_length("x, axis 1", x.shape[1], _count(row_set, out.shape[0]))
        _check_length("g, axis 1", g.shape[1], _count(col_set, out.shape[1]))
        every = np.empty(0, np.int64)
        _multiply(x.T, g, out, every, every, row_set, col_set, alpha, True)
        return out

    return scatter_matmul
