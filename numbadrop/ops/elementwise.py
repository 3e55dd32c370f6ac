"""Operations that treat each unit alone. float32 stays float32."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbadrop import kernels
from numbadrop.autograd import primitive

__all__ = ["leaky_relu", "relu", "sigmoid", "tanh"]

Array = NDArray[Any]


@primitive
def relu(x: Array) -> Array:
    """Return max(x, 0). The gradient at 0 is 0.

    Examples
    --------
    >>> from numbadrop.autograd import Variable
    >>> x = Variable([-3.0, 0.0, 2.0], requires_grad=True)
    >>> y = relu(x)
    >>> y.backward(np.ones(3))
    >>> y.value, x.grad
    (array([0., 0., 2.]), array([0., 0., 1.]))
    """
    return np.maximum(x, 0)


@relu.gradient("x")
def _(g: Array, out: Array, x: Array) -> Array:
    return _before_rectifier(g, out, 0.0)


@primitive
def leaky_relu(x: Array, negative_slope: float = 0.01) -> Array:
    """Return x where it is positive, else negative_slope * x.

    Examples
    --------
    >>> leaky_relu(np.array([-4.0, 0.0, 2.0]), negative_slope=0.25).value
    array([-1.,  0.,  2.])
    """
    if 0 < negative_slope <= 1:
        # np.where branches on every element: 15 times as long.
        return np.maximum(x, x * negative_slope)
    return np.where(x > 0, x, x * negative_slope)


@leaky_relu.gradient("x")
def _(g: Array, out: Array, x: Array, negative_slope: float) -> Array:
    if negative_slope < 0:  # The sign of the result is not that of x.
        return np.where(x > 0, g, g * negative_slope)
    return _before_rectifier(g, out, negative_slope)


def _before_rectifier(g: Array, y: Array, slope: float) -> Array:
    """Return ``g (1 if y > 0 else slope)``."""
    if y.dtype not in (np.float32, np.float64):  # for which there is no kernel
        return np.where(y > 0, g, g * slope)
    matrix = math.prod(y.shape[:-1]), math.prod(y.shape[-1:])
    h, _ = kernels.rectifier_gradient(g.reshape(matrix), y.reshape(matrix), slope=slope)
    return h.reshape(y.shape)


@primitive
def tanh(x: Array) -> Array:
    """Return the hyperbolic tangent of x.

    Examples
    --------
    >>> from numbadrop.autograd import Variable
    >>> x = Variable([-1000.0, 0.0, 1000.0], requires_grad=True)
    >>> y = tanh(x)
    >>> y.backward(np.ones(3))
    >>> y.value, x.grad
    (array([-1.,  0.,  1.]), array([0., 1., 0.]))
    """
    return np.tanh(x)


@tanh.gradient("x")
def _(g: Array, out: Array, x: Array) -> Array:
    slope = out * out
    np.subtract(1, slope, out=slope)
    slope *= g
    return slope


@primitive
def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)), to full relative precision on both sides and without overflow.

    Examples
    --------
    >>> sigmoid(np.array([-1000.0, -50.0, 0.0, 1000.0])).value
    array([0.00000000e+00, 1.92874985e-22, 5.00000000e-01, 1.00000000e+00])
    """
    small = np.exp(-np.abs(x))
    y = np.where(x < 0, small, 1)
    small += 1
    y /= small
    return y


@sigmoid.gradient("x")
def _(g: Array, out: Array, x: Array) -> Array:
    # Not out * (1 - out), which would lose the tail where out rounds to 1.
    small = np.exp(-np.abs(x))
    slope = g * small
    small += 1
    small *= small
    slope /= small
    return slope
