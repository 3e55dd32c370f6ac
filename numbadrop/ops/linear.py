"""The fully connected layer with its three gradients."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from numbadrop import kernels
from numbadrop.autograd import Block, primitive
from numbadrop.index_set import IndexSet
from numbadrop.ops.blocks import Before, on_block

__all__ = ["linear"]

Array = NDArray[Any]


@primitive
def linear(
    x: Array,
    w: Array,
    b: Array | None = None,
    rows: IndexSet | None = None,
    cols: IndexSet | None = None,
    slope: float = 1.0,
    scale: float = 1.0,
) -> Array:
    """Return ``scale * rectify(x @ w[rows, cols] + b[cols])``; no other weight takes part.

    ``rectify(v) = v if v > 0 else slope * v``. The slope and the scale of a layer's nonlinearity
    and of the dropout behind it cost nothing here, and a pass over memory each anywhere else.

    Parameters
    ----------
    x : ndarray, shape (batch, len(rows))
        float32 or float64, as all arrays here. Compact: it holds the units in `rows` alone.
    w : ndarray, shape (n_in, n_out)
    b : ndarray, shape (n_out,), optional
    rows, cols : IndexSet, optional
        Input and output units that take part. None: all of them.
    slope, scale : float
        As for `numbadrop.kernels.gathered_linear`. The gradient at 0 is that of the negative side.

    Returns
    -------
    ndarray, shape (batch, len(cols))

    Raises
    ------
    TypeError, ValueError
        If a shape, a dtype or an index set does not fit the others, or a factor is out of range.

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
    return kernels.gathered_linear(x, w, b, rows, cols, slope=slope, scale=scale)


@linear.prepare
def _(g: Array, out: Array, *arguments: Any) -> Before:
    slope, scale = arguments[-2:]
    return Before(*kernels.rectifier_gradient(g, out, slope=slope, scale=scale))


@linear.gradient("x")
def _(before: Before, out: Array, x: Array, w: Array, b: Any, *rest: Any) -> Array:
    rows, cols, *_ = rest
    return kernels.gathered_matmul_t(before.h, w, rows, cols)


@linear.gradient("w")
def _(before: Before, out: Array, x: Array, w: Array, b: Any, *rest: Any) -> Block | Array:
    rows, cols, *_ = rest
    return on_block(kernels.matmul_at(x, before.h), w.shape, rows, cols)


@linear.gradient("b")
def _(before: Before, out: Array, x: Array, w: Array, b: Array, *rest: Any) -> Block | Array:
    _, cols, *_ = rest
    return on_block(before.b, b.shape, cols)
