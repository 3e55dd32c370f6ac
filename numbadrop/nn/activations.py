"""Layers that treat each value alone."""

from __future__ import annotations

import numpy as np

from numbadrop import ops
from numbadrop.autograd import Variable
from numbadrop.index_set import IndexSet
from numbadrop.nn.activation import Activation, Input
from numbadrop.nn.module import Module

__all__ = ["LeakyReLU", "ReLU", "Sigmoid", "Tanh"]


class _Elementwise(Module):
    unitwise = True

    def __call__(self, x: Input, units: IndexSet | None = None) -> Activation:
        """Return the function of each value, shape (batch, ..., len(units))."""
        x = Activation.of(x).take(units)
        return Activation(self._function(x.values), x.units)

    def _function(self, values: Variable) -> Variable:
        raise NotImplementedError


class ReLU(_Elementwise):
    """Return max(x, 0).

    Examples
    --------
    >>> ReLU()(np.array([[-3.0, 2.0]])).value
    array([[0., 2.]])
    """

    def _function(self, values: Variable) -> Variable:
        return ops.relu(values)


class LeakyReLU(_Elementwise):
    """Return x where it is positive, else negative_slope * x.

    Parameters
    ----------
    negative_slope : float

    Examples
    --------
    >>> LeakyReLU(0.25)(np.array([[-4.0, 2.0]])).value
    array([[-1.,  2.]])
    """

    def __init__(self, negative_slope: float = 0.01) -> None:
        if not np.isfinite(negative_slope):
            raise ValueError(f"negative_slope must be finite, got {negative_slope}")
        self.negative_slope = float(negative_slope)

    def _function(self, values: Variable) -> Variable:
        return ops.leaky_relu(values, self.negative_slope)


class Tanh(_Elementwise):
    """Return the hyperbolic tangent of x.

    Examples
    --------
    >>> Tanh()(np.array([[-1000.0, 0.0, 1000.0]])).value
    array([[-1.,  0.,  1.]])
    """

    def _function(self, values: Variable) -> Variable:
        return ops.tanh(values)


class Sigmoid(_Elementwise):
    """Return 1 / (1 + exp(-x)).

    A unit dropped before this layer stays absent and so feeds nothing forward, where a mask of
    zeros would make it 1/2.

    Examples
    --------
    >>> x = Activation.of(np.array([[0.0, 7.0]])).take(IndexSet([0], 2))
    >>> Sigmoid()(x).dense()
    array([[0.5, 0. ]])
    """

    def _function(self, values: Variable) -> Variable:
        return ops.sigmoid(values)
