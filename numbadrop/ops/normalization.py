"""Batch normalization with its three gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray

from numbadrop import kernels
from numbadrop.autograd import Block, primitive
from numbadrop.index_set import IndexSet
from numbadrop.ops.blocks import on_block

__all__ = ["batch_norm"]

Array = NDArray[Any]


@primitive
def batch_norm(
    x: Array,
    mean: Array,
    variance: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    units: IndexSet | None = None,
    eps: float = 1e-5,
    training: bool = True,
) -> Array:
    """Return ``(x - mean) / sqrt(variance + eps) * weight[units] + bias[units]``.

    Parameters
    ----------
    x : ndarray, shape (..., len(units))
        float32 or float64. Compact: it holds the units in `units` alone.
    mean, variance : ndarray, shape (len(units),)
    weight, bias : ndarray of the dtype of x, shape (n,), optional
    units : IndexSet, optional
        Of n units, those that take part. None: all of them.
    eps : float
        Positive.
    training : bool
        Whether the moments are those of x over all axes but the last, as from
        `numbadrop.kernels.batch_moments`. The gradient of x counts that x acts through them too;
        otherwise they are constants.

    Returns
    -------
    ndarray, of the shape of x

    Raises
    ------
    TypeError, ValueError
        If a shape or a dtype does not fit the others, or `eps` is out of range.

    Notes
    -----
    The gradients with respect to `weight` and `bias` are blocks on `units`, or plain arrays where
    all of them take part.

    Examples
    --------
    >>> import numpy as np
    >>> weight = np.array([10.0, np.nan])
    >>> x = np.array([[1.0], [3.0]])
    >>> batch_norm(x, x.mean(0), x.var(0), weight, None, IndexSet([0], 2)).value.round(3)
    array([[-10.],
           [ 10.]])
    """
    y = kernels.batch_norm(
        _matrix(x), mean, variance, _of(weight, units), _of(bias, units), eps=eps
    )
    return y.reshape(x.shape)


class _Gradients(NamedTuple):
    x: Array
    weight: Array
    bias: Array


@batch_norm.prepare
def _(g: Array, out: Array, x: Array, mean: Array, variance: Array, *rest: Any) -> _Gradients:
    weight, _, units, eps, training = rest
    gradients = kernels.batch_norm_gradient(
        _matrix(g), _matrix(x), mean, variance, _of(weight, units), eps=eps, training=training
    )
    return _Gradients(*gradients)


@batch_norm.gradient("x")
def _(gradients: _Gradients, out: Array, x: Array, *rest: Any) -> Array:
    return gradients.x.reshape(x.shape)


@batch_norm.gradient("weight")
def _(gradients: _Gradients, out: Array, *arguments: Any) -> Block | Array:
    *_, weight, _, units, _, _ = arguments
    return on_block(gradients.weight, weight.shape, units)


@batch_norm.gradient("bias")
def _(gradients: _Gradients, out: Array, *arguments: Any) -> Block | Array:
    *_, bias, units, _, _ = arguments
    return on_block(gradients.bias, bias.shape, units)


def _matrix(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _of(factors: Array | None, units: IndexSet | None) -> Array | None:
    return factors if factors is None or units is None or units.is_all else factors[units]
