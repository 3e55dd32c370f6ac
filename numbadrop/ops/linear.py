"""The gathered matrix product with its three gradients."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from numbadrop import kernels
from numbadrop.autograd import Block, primitive
from numbadrop.index_set import IndexSet

__all__ = ["linear"]

Array = NDArray[Any]


@primitive
def linear(
    x: Array,
    w: Array,
    b: Array | None = None,
    rows: IndexSet | None = None,
    cols: IndexSet | None = None,
) -> Array:
    """Return ``x @ w[rows, cols] + b[cols]`` in which no other weight takes part.

    Parameters
    ----------
    x : ndarray, shape (batch, len(rows))
        float32 or float64, as all arrays here. Compact: it holds the units in `rows` alone.
    w : ndarray, shape (n_in, n_out)
    b : ndarray, shape (n_out,), optional
    rows, cols : IndexSet, optional
        Input and output units that take part. None: all of them.

    Returns
    -------
    ndarray, shape (batch, len(cols))

    Raises
    ------
    TypeError, ValueError
        If a shape, a dtype or an index set does not fit the others.

    Notes
    -----
    The gradients with respect to `w` and `b` are blocks on `rows` and `cols`, or plain arrays
    where all weights take part.

    Examples
    --------
    >>> import numpy as np
    >>> w = np.array([[1.0, 2.0], [np.nan, np.nan], [3.0, 4.0]])
    >>> linear(np.ones((1, 2)), w, None, IndexSet([0, 2], 3)).value
    array([[4., 6.]])
    """
    y = kernels.gathered_matmul(x, w, rows, cols)
    if b is not None:
        if b.shape != w.shape[1:] or b.dtype != w.dtype:
            raise ValueError(
                f"b must be {w.dtype} of shape {w.shape[1:]}, got {b.dtype} of shape {b.shape}"
            )
        y += b if cols is None or cols.is_all else b[cols.indices]
    return y


@linear.gradient("x")
def _(
    g: Array,
    out: Array,
    x: Array,
    w: Array,
    b: Array | None,
    rows: IndexSet | None,
    cols: IndexSet | None,
) -> Array:
    return kernels.gathered_matmul_t(g, w, rows, cols)


@linear.gradient("w")
def _(
    g: Array,
    out: Array,
    x: Array,
    w: Array,
    b: Array | None,
    rows: IndexSet | None,
    cols: IndexSet | None,
) -> Block | Array:
    return _on_block(kernels.matmul_at(x, g), w.shape, rows, cols)


@linear.gradient("b")
def _(
    g: Array,
    out: Array,
    x: Array,
    w: Array,
    b: Array,
    rows: IndexSet | None,
    cols: IndexSet | None,
) -> Block | Array:
    return _on_block(g.sum(axis=0), b.shape, cols)


def _on_block(values: Array, shape: tuple[int, ...], *index: IndexSet | None) -> Block | Array:
    if values.shape == shape:
        return values
    units = zip(index, shape, strict=True)
    return Block(values, tuple(IndexSet.all(n) if kept is None else kept for kept, n in units))
