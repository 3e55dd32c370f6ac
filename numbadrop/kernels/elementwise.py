"""What a training step does to activations between two products, in one pass over memory each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import carray
from numpy.typing import ArrayLike

from numbadrop.kernels.arrays import (
    Array,
    Units,
    check_matrices,
    check_matrix,
    check_real,
    check_rectifier,
    resolve,
)
from numbadrop.kernels.device import cuda, empty, is_host
from numbadrop.kernels.elements import bytes_of
from numbadrop.kernels.jit import DONE
from numbadrop.kernels.memory import (
    array_data,
    array_length,
    array_stride,
    as_pointer,
    first_of,
    load_index,
    words_behind,
)
from numbadrop.kernels.shares import share
from numbadrop.kernels.task import run_task

__all__ = ["rectifier_gradient", "take_columns"]

_TAKE_SERIAL_BELOW = 20_000
_GRADIENT_SERIAL_BELOW = 200_000
"""Elements that one thread passes about as fast as several."""
_SUMMED_ROWS = 256
"""Rows that are summed one by one; the sums of such chunks are summed in turn. Their number bounds
the error of a sum over all positions of a batch of images, and does not depend on the threads."""


class _Gradient(NamedTuple):
    """What to multiply by where the output is positive, and elsewhere."""

    positive: float
    other: float


class _Take(NamedTuple):
    factor: float


def _gradient_part(task, part, parts):
    positive, other = first_of(task)
    words = words_behind(task)
    rows, cols = load_index(words, 0), load_index(words, 1)
    g, y = array_data(load_index(words, 2)), array_data(load_index(words, 3))
    h, sums = array_data(load_index(words, 4)), array_data(load_index(words, 5))
    pitch = cols * bytes_of(positive)
    chunks = (rows + _SUMMED_ROWS - 1) // _SUMMED_ROWS
    for chunk in range(share(chunks, parts, part), share(chunks, parts, part + 1)):
        total = carray(as_pointer(positive, sums + chunk * pitch), cols)
        total[:] = 0
        for i in range(chunk * _SUMMED_ROWS, min((chunk + 1) * _SUMMED_ROWS, rows)):
            at = i * pitch
            g_row = carray(as_pointer(positive, g + at), cols)
            if h == g:  # nothing to multiply by
                for j in range(cols):
                    total[j] += g_row[j]
            else:
                y_row = carray(as_pointer(positive, y + at), cols)
                h_row = carray(as_pointer(positive, h + at), cols)
                for j in range(cols):
                    # Where nothing passes, infinity does not either: times zero it would be NaN.
                    below = g_row[j] * other if other != 0 else other
                    value = g_row[j] * positive if y_row[j] > 0 else below
                    h_row[j] = value
                    total[j] += value
    return DONE


def _take_part(task, part, parts):
    (factor,) = first_of(task)
    size = bytes_of(factor)
    words = words_behind(task)
    x, y, units = load_index(words, 0), load_index(words, 1), load_index(words, 2)
    width, x_row = array_length(x, 1), array_stride(x, 0)
    rows, cols = array_length(y, 0), array_length(y, 1)
    x, y = array_data(x), array_data(y)
    positions = carray(as_pointer(rows, units), cols)
    for i in range(share(rows, parts, part), share(rows, parts, part + 1)):
        x_whole = carray(as_pointer(factor, x + i * x_row), width)
        y_row = carray(as_pointer(factor, y + i * cols * size), cols)
        for j in range(cols):
            y_row[j] = factor * x_whole[positions[j]]
    return DONE


def rectifier_gradient(
    g: ArrayLike, y: ArrayLike, *, slope: float = 1.0, scale: float = 1.0
) -> tuple[Array, Array]:
    """Return the gradient before rectifier and scaling, and its sum over the batch.

    Of ``y = scale rectify(v)`` as in `gathered_linear`, ``h = g scale (1 if y > 0 else slope)`` is
    the gradient of v. Its sum over the batch is that of a bias.

    Parameters
    ----------
    g : array_like of float32 or float64, shape (batch, units)
        The gradient of y.
    y : array_like of the same dtype and shape
    slope, scale : float
        As for `gathered_linear`.

    Returns
    -------
    h : ndarray, shape (batch, units)
        `g` itself where there is nothing to multiply by.
    sums : ndarray, shape (units,)

    Raises
    ------
    TypeError, ValueError
        If dtypes or shapes differ or do not fit, or a factor is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> h, sums = rectifier_gradient(np.ones((2, 2)), np.array([[0.0, 3.0], [2.0, 1.0]]), slope=0.0)
    >>> h, sums
    (array([[0., 1.],
           [1., 1.]]), array([1., 2.]))
    """
    g, y = check_matrices("g", g, "y", y)
    if g.shape != y.shape:
        raise ValueError(f"g must have the shape of y, {y.shape}, got {g.shape}")
    slope, scale = check_rectifier(slope, scale)
    check_real("slope * scale", slope * scale, g.dtype)
    if not is_host(g):
        return cuda().rectifier_gradient(g, y, slope=slope, scale=scale)
    g, y = np.ascontiguousarray(g), np.ascontiguousarray(y)
    rows, cols = g.shape
    if rows == 0:
        return g, np.zeros(cols, g.dtype)
    h = g if slope == scale == 1 else empty(g.shape, g)
    sums = np.empty((-(-rows // _SUMMED_ROWS), cols), g.dtype)
    run_task(
        _gradient_part, g.dtype, _Gradient(scale, scale * slope),
        rows, cols, id(g), id(y), id(h), id(sums),
        parallel=g.size >= _GRADIENT_SERIAL_BELOW,
    )  # fmt: skip
    if len(sums) == 1:
        return h, sums[0]
    with np.errstate(all="ignore"):  # as silent as a kernel
        return h, sums.sum(axis=0)


def take_columns(x: ArrayLike, cols: Units, factor: float = 1.0) -> Array:
    """Return ``factor * x[:, cols]``, in which no other column takes part.

    Parameters
    ----------
    x : array_like of float32 or float64, shape (rows, n)
        Any strides; fastest where the last is one element.
    cols : IndexSet, array_like of int or bool, or None
        Ascending and unique, or a boolean mask; None means all.
    factor : float, default 1.0

    Returns
    -------
    ndarray, shape (rows, len(cols))

    Raises
    ------
    TypeError, ValueError
        If the dtype is another, or indices are not as above.

    Examples
    --------
    >>> import numpy as np
    >>> take_columns(np.array([[1.0, 2.0, 3.0]]), [0, 2], 2.0)
    array([[2., 6.]])
    """
    x = check_matrix("x", x)
    factor = check_real("factor", factor, x.dtype)
    units = resolve("cols", cols, x.shape[1])
    if units is None:
        with np.errstate(all="ignore"):  # as silent as a kernel
            return x * factor
    if not is_host(x):
        return cuda().take_columns(x, units, factor)
    if x.strides[1] != x.itemsize:
        x = np.ascontiguousarray(x)
    y = empty((len(x), len(units)), x)
    run_task(
        _take_part, x.dtype, _Take(factor), id(x), id(y), units.address,
        parallel=y.size >= _TAKE_SERIAL_BELOW,
    )  # fmt: skip
    return y
