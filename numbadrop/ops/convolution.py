"""The convolution with its three gradients."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from numbadrop import kernels
from numbadrop.autograd import Block, primitive
from numbadrop.index_set import IndexSet
from numbadrop.kernels.arrays import Pair
from numbadrop.ops.blocks import Before, on_block

__all__ = ["conv2d"]

Array = NDArray[Any]


@primitive
def conv2d(
    x: Array,
    w: Array,
    b: Array | None = None,
    in_channels: IndexSet | None = None,
    out_channels: IndexSet | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    slope: float = 1.0,
    scale: float = 1.0,
) -> Array:
    """Return ``scale * rectify(x * w[:, :, in_channels, out_channels] + b[out_channels])``.

    ``*`` is a cross-correlation; slope and scale as for `linear`.

    Parameters
    ----------
    x : ndarray, shape (batch, height, width, len(in_channels))
        float32 or float64, as all arrays here. Compact: it holds the channels in `in_channels`.
    w : ndarray, shape (kernel height, kernel width, n_in, n_out)
    b : ndarray, shape (n_out,), optional
    in_channels, out_channels : IndexSet, optional
        Channels that take part. None: all of them.
    stride, padding, dilation, slope, scale
        As for `numbadrop.kernels.gathered_conv2d`.

    Returns
    -------
    ndarray, shape (batch, height', width', len(out_channels))

    Raises
    ------
    TypeError, ValueError
        As `numbadrop.kernels.gathered_conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> w = np.array([1.0, np.nan, 3.0]).reshape(1, 1, 3, 1)
    >>> conv2d(np.ones((1, 1, 2, 2)), w, None, IndexSet([0, 2], 3)).value.ravel()
    array([4., 4.])
    """
    return kernels.gathered_conv2d(
        x, w, in_channels, out_channels,
        stride=stride, padding=padding, dilation=dilation, bias=b, slope=slope, scale=scale,
    )  # fmt: skip


@conv2d.prepare
def _(g: Array, out: Array, *arguments: Any) -> Before:
    slope, scale = arguments[-2:]
    units = out.shape[3]
    h, b = kernels.rectifier_gradient(
        g.reshape(-1, units), out.reshape(-1, units), slope=slope, scale=scale
    )
    return Before(h.reshape(out.shape), b)


@conv2d.gradient("x")
def _(before: Before, out: Array, x: Array, w: Array, b: Any, *rest: Any) -> Array:
    in_channels, out_channels, stride, padding, dilation, *_ = rest
    return kernels.gathered_conv2d_t(
        before.h, w, in_channels, out_channels,
        input_size=x.shape[1:3], stride=stride, padding=padding, dilation=dilation,
    )  # fmt: skip


@conv2d.gradient("w")
def _(before: Before, out: Array, x: Array, w: Array, b: Any, *rest: Any) -> Block | Array:
    in_channels, out_channels, stride, padding, dilation, *_ = rest
    kernel = w.shape[:2]
    values = kernels.conv2d_at(
        x, before.h, kernel_size=kernel, stride=stride, padding=padding, dilation=dilation
    )
    return on_block(values, w.shape, None, None, in_channels, out_channels)


@conv2d.gradient("b")
def _(before: Before, out: Array, x: Array, w: Array, b: Array, *rest: Any) -> Block | Array:
    _, out_channels, *_ = rest
    return on_block(before.b, b.shape, out_channels)
