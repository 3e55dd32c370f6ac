"""Gathered matrix products: forward, input gradient, weight gradient, and a whole layer.

All functions are one product, `run_product`, with other operands. Called from NumPy code they
use the crew of threads; called from a jitted function, under the same names, the four plain
products run on the calling thread, so that the caller's own `prange` decides what is parallel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from numbadrop.index_set import IndexSet
from numbadrop.kernels.arrays import (
    Array,
    Units,
    as_dense,
    check_alike,
    check_apart,
    check_is_array,
    check_matrices,
    check_matrix,
    check_out,
    check_real,
    check_rectifier,
    check_same_memory,
    check_units,
    count_units,
    resolve,
)
from numbadrop.kernels.device import as_array, cuda, empty, is_host
from numbadrop.kernels.epilogue import Epilogue
from numbadrop.kernels.run_product import run_product, run_usual_product

__all__ = [
    "gathered_linear",
    "gathered_matmul",
    "gathered_matmul_t",
    "matmul_at",
    "scatter_matmul",
]


def _check_gathered(
    name: str,
    a: ArrayLike,
    w: ArrayLike,
    rows: Units,
    cols: Units,
    out: Array | None,
    transposed: bool = False,
) -> tuple[Array, Array, IndexSet | None, IndexSet | None, Array]:
    """Return the operands of a product of `a`, called `name`, with ``w[rows, cols]``.

    The depth are the rows, or the columns if `transposed`.
    """
    a, w = check_matrices(name, a, "w", w)
    (batch, length), (n_in, n_out) = a.shape, w.shape
    row_set, col_set = resolve("rows", rows, n_in), resolve("cols", cols, n_out)
    kept_in = count_units(row_set, n_in)
    kept_out = count_units(col_set, n_out)
    if transposed:
        check_units(name, 1, length, "cols", kept_out)
        shape = batch, kept_in
    else:
        check_units(name, 1, length, "rows", kept_in)
        shape = batch, kept_out
    if out is None:
        out = empty(shape, w)
    else:
        check_out(out, shape, w.dtype, (name, "w"), a, w)
    return a, w, row_set, col_set, out


def gathered_matmul(
    x: ArrayLike, w: ArrayLike, rows: Units = None, cols: Units = None, *, out: Array | None = None
) -> Array:
    """Multiply by a submatrix of the weights that is never extracted.

    ``y[b, j] = sum_i x[b, i] w[rows[i], cols[j]]``, the forward pass of a layer with dropped inputs
    and outputs (Graham et al. 2015, arXiv:1502.02478, section 3). Other weights are not used.

    Parameters
    ----------
    x : array_like of float32 or float64, shape (batch, len(rows))
        Any strides.
    w : array_like of the same dtype, shape (n_in, n_out)
        Any strides; fastest where one of them is one element.
    rows, cols : IndexSet, array_like of int or bool, or None
        The kept inputs and outputs: ascending and unique, or a boolean mask; None means all.
    out : ndarray of the same dtype, shape (batch, len(cols)), optional
        Written to, and returned. It must not overlap `x` or `w`. Copied to where its columns are
        not dense.

    Returns
    -------
    ndarray, shape (batch, len(cols))
        The same numbers whatever the number of threads.

    Raises
    ------
    TypeError
        If a dtype is not float32 or float64, or dtypes differ, or indices are not integers.
    ValueError
        If a shape does not fit, an index set is empty, unsorted, repeated or out of range, or
        `out` is read-only or overlaps an input. Nothing has been written then.

    Examples
    --------
    >>> import numpy as np
    >>> from numbadrop.kernels import gathered_matmul
    >>> w = np.arange(12.0).reshape(3, 4)
    >>> gathered_matmul(np.ones((1, 2)), w, rows=[0, 2], cols=[1, 3])
    array([[10., 14.]])
    """
    usual = run_usual_product(x, w, out, rows, cols)
    if usual is not None:
        return usual
    x, w, row_set, col_set, out = _check_gathered("x", x, w, rows, cols, out)
    if not is_host(w):
        return cuda().gathered_matmul(x, w, row_set, col_set, out=out)
    run_product(x, w, out, row_set, col_set)
    return out


def gathered_matmul_t(
    g: ArrayLike, w: ArrayLike, rows: Units = None, cols: Units = None, *, out: Array | None = None
) -> Array:
    """Multiply by the transpose of a submatrix of the weights: the gradient of the layer's input.

    ``dx[b, i] = sum_j g[b, j] w[rows[i], cols[j]]``.

    Parameters
    ----------
    g : array_like of float32 or float64, shape (batch, len(cols))
    w, rows, cols
        As for `gathered_matmul`.
    out : ndarray of the same dtype, shape (batch, len(rows)), optional

    Returns
    -------
    ndarray, shape (batch, len(rows))

    Raises
    ------
    TypeError, ValueError
        As for `gathered_matmul`.

    Examples
    --------
    >>> import numpy as np
    >>> from numbadrop.kernels import gathered_matmul_t
    >>> w = np.arange(12.0).reshape(3, 4)
    >>> gathered_matmul_t(np.ones((1, 2)), w, rows=[0, 2], cols=[1, 3])
    array([[ 4., 20.]])
    """
    usual = run_usual_product(g, _turned(w), out, cols, rows)
    if usual is not None:
        return usual
    g, w, row_set, col_set, out = _check_gathered("g", g, w, rows, cols, out, transposed=True)
    if not is_host(w):
        return cuda().gathered_matmul_t(g, w, row_set, col_set, out=out)
    run_product(g, w.T, out, col_set, row_set)
    return out


def gathered_linear(
    x: ArrayLike,
    w: ArrayLike,
    b: ArrayLike | None = None,
    rows: Units = None,
    cols: Units = None,
    *,
    slope: float = 1.0,
    scale: float = 1.0,
    out: Array | None = None,
) -> Array:
    """Compute a layer on the units that take part: product, bias, rectifier and scaling in one.

    ``y[b, j] = scale rectify(sum_i x[b, i] w[rows[i], cols[j]] + b[cols[j]])``, where
    ``rectify(v) = v if v > 0 else slope v``. A tile of results passes through all of this while it
    is in the nearest cache.

    Parameters
    ----------
    x, w, rows, cols, out
        As for `gathered_matmul`.
    b : array_like of the same dtype, shape (n_out,), optional
    slope : float, default 1.0
        0 is ReLU, 1 leaves every value as it is. Not negative.
    scale : float, default 1.0
        Of batchwise dropout behind the layer. Positive.

    Returns
    -------
    ndarray, shape (batch, len(cols))

    Raises
    ------
    TypeError, ValueError
        As for `gathered_matmul`.

    Examples
    --------
    >>> import numpy as np
    >>> from numbadrop.kernels import gathered_linear
    >>> w, b = np.array([[1.0, -1.0, 1.0]]), np.array([0.5, 0.5, 7.0])
    >>> gathered_linear(np.ones((1, 1)), w, b, cols=[0, 1], slope=0.0, scale=2.0)
    array([[3., 0.]])
    """
    usual = run_usual_product(x, w, out, rows, cols, b, slope, scale)
    if usual is not None:
        return usual
    w = check_matrix("w", w)
    slope, scale = check_rectifier(slope, scale)
    if b is not None:
        b = as_array(b)
        check_alike("b", b, "w", w)
        if b.shape != w.shape[1:]:
            raise ValueError(f"b must have shape {w.shape[1:]}, got {b.shape}")
        b = as_dense(b)
        if out is not None:
            check_is_array("out", out)
            check_same_memory("out", out, "b", b)
            check_apart("out", out, b=b)
    x, w, row_set, col_set, out = _check_gathered("x", x, w, rows, cols, out)
    if not is_host(w):
        return cuda().gathered_linear(x, w, b, row_set, col_set, slope=slope, scale=scale, out=out)
    run_product(x, w, out, row_set, col_set, b, Epilogue(slope, scale))
    return out


def matmul_at(x: ArrayLike, g: ArrayLike, *, out: Array | None = None) -> Array:
    """Multiply by the transpose from the left: the compact gradient of a gathered weight.

    ``dw[i, j] = sum_b x[b, i] g[b, j]``.

    Parameters
    ----------
    x : array_like of float32 or float64, shape (batch, n_in)
    g : array_like of the same dtype, shape (batch, n_out)
    out : ndarray of the same dtype, shape (n_in, n_out), optional

    Returns
    -------
    ndarray, shape (n_in, n_out)

    Raises
    ------
    TypeError, ValueError
        As for `gathered_matmul`.

    Examples
    --------
    >>> import numpy as np
    >>> from numbadrop.kernels import matmul_at
    >>> matmul_at(np.array([[1.0, 2.0]]), np.array([[3.0, 5.0]]))
    array([[ 3.,  5.],
           [ 6., 10.]])
    """
    usual = run_usual_product(_turned(x), g, out, None, None)
    if usual is not None:
        return usual
    x, g = check_matrices("x", x, "g", g)
    _check_batch(x, g)
    shape = (x.shape[1], g.shape[1])
    if out is None:
        out = empty(shape, x)
    else:
        check_out(out, shape, x.dtype, ("x", "g"), x, g)
    if not is_host(x):
        return cuda().matmul_at(x, g, out=out)
    run_product(x.T, g, out, None, None)
    return out


def scatter_matmul(
    x: ArrayLike,
    g: ArrayLike,
    rows: Units = None,
    cols: Units = None,
    *,
    out: Array,
    alpha: float = 1.0,
) -> Array:
    """Add the gradient of a gathered weight to a block of an array, in place.

    ``out[rows[i], cols[j]] += alpha sum_b x[b, i] g[b, j]``. With ``alpha = -lr`` and the weights
    as `out` this is a step of plain gradient descent. The rest of `out` is not touched.

    Parameters
    ----------
    x : array_like of float32 or float64, shape (batch, len(rows))
    g : array_like of the same dtype, shape (batch, len(cols))
    rows, cols
        As for `gathered_matmul`.
    out : ndarray of the same dtype, shape (n_in, n_out)
        It must not overlap `x` or `g`.
    alpha : float, default 1.0

    Returns
    -------
    ndarray
        `out`.

    Raises
    ------
    TypeError, ValueError
        As for `gathered_matmul`.

    Examples
    --------
    >>> import numpy as np
    >>> from numbadrop.kernels import scatter_matmul
    >>> scatter_matmul(np.ones((2, 1)), np.ones((2, 1)), [1], [0], out=np.zeros((2, 2)))
    array([[0., 0.],
           [2., 0.]])
    """
    if run_usual_product(_turned(x), g, out, rows, cols, scale=alpha, scatter=True) is not None:
        return out
    x, g = check_matrices("x", x, "g", g)
    _check_batch(x, g)
    check_is_array("out", out)
    if out.ndim != 2:
        raise ValueError(f"out must be two-dimensional, got shape {out.shape}")
    check_out(out, out.shape, x.dtype, ("x", "g"), x, g)
    alpha = check_real("alpha", alpha, x.dtype)
    row_set, col_set = resolve("rows", rows, out.shape[0]), resolve("cols", cols, out.shape[1])
    check_units("x", 1, x.shape[1], "rows", count_units(row_set, out.shape[0]))
    check_units("g", 1, g.shape[1], "cols", count_units(col_set, out.shape[1]))
    if not is_host(x):
        return cuda().scatter_matmul(x, g, row_set, col_set, out=out, alpha=alpha)
    run_product(x.T, g, out, row_set, col_set, epilogue=Epilogue(1.0, alpha), scatter=True)
    return out


def _turned(array: ArrayLike) -> ArrayLike:
    """Return the transpose of an array of NumPy, anything else as it is."""
    return array.T if type(array) is np.ndarray else array


def _check_batch(x: Array, g: Array) -> None:
    if x.shape[0] != g.shape[0]:
        raise ValueError(
            f"x and g must have the same number of rows, got {x.shape[0]} and {g.shape[0]}"
        )
