"""The fully connected layer."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from numbadrop import ops
from numbadrop.index_set import IndexSet
from numbadrop.nn.activation import Activation, Input, check_set
from numbadrop.nn.module import Module, Parameter

__all__ = ["Linear"]


class Linear(Module):
    """Return ``x @ weight + bias``, on the submatrix of the units that take part.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    gain : float
        Initial weights are uniform in ±gain / sqrt(in_features), biases zero. 0 for an output
        layer that starts from even odds.
    dtype : numpy.float32 or numpy.float64

    Attributes
    ----------
    weight : Parameter, shape (in_features, out_features)
    bias : Parameter, shape (out_features,), or None

    Examples
    --------
    >>> layer = Linear(3, 5).seed(0)
    >>> x = Activation.of(np.ones((2, 3), np.float32)).take(IndexSet([0, 2], 3))
    >>> layer(x, units=IndexSet([1, 2], 5)).value.shape
    (2, 2)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        gain: float = 1.0,
        dtype: DTypeLike = np.float32,
    ) -> None:
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if not 0 <= gain < np.inf:
            raise ValueError(f"gain must be finite and not negative, got {gain}")
        self.gain = gain
        self.weight = Parameter(np.empty((in_features, out_features), dtype))
        self.bias = Parameter(np.empty(out_features, dtype)) if bias else None
        self._all = IndexSet.all(out_features)
        self.reset_parameters(self.rng)

    def reset_parameters(self, rng: np.random.Generator) -> None:
        """Draw the weights, set the biases to zero."""
        bound = self.gain / np.sqrt(len(self.weight.value))
        self.weight.value[...] = rng.uniform(-bound, bound, self.weight.shape)
        if self.bias is not None:
            self.bias.value[...] = 0

    def out_units(self, units: IndexSet | None) -> IndexSet:
        """Return all units of the output."""
        return self._all

    def __call__(
        self, x: Input, units: IndexSet | None = None, *, slope: float = 1.0, scale: float = 1.0
    ) -> Activation:
        """Return the wanted units of the output, shape (batch, len(units)).

        No weight outside ``weight[x.units, units]`` takes part.

        Parameters
        ----------
        x : ndarray, Variable or Activation, shape (batch, in_features)
        units : IndexSet, optional
        slope, scale : float
            What the layers behind this one do to each value, see `numbadrop.ops.linear`.

        Raises
        ------
        TypeError
            If `x` and `weight` differ in dtype.
        ValueError
            If `x` is not two-dimensional, or `x` or `units` belong to another number of units.
        """
        x = Activation.of(x)
        in_features, out_features = self.weight.shape
        if x.value.ndim != 2 or x.units.size != in_features:
            raise ValueError(
                f"x must have shape (batch, {in_features}), got {x.values.shape}"
                f" with {x.units.size} units"
            )
        if x.values.dtype != self.weight.dtype:
            raise TypeError(f"x must be {self.weight.dtype} as weight, got {x.values.dtype}")
        if units is None:
            units = self._all
        elif check_set(units).size != out_features:
            raise ValueError(f"units must be of {out_features} output units, got of {units.size}")
        self.weight.refresh(x.units, units)
        if self.bias is not None:
            self.bias.refresh(units)
        values = ops.linear(x.values, self.weight, self.bias, x.units, units, slope, scale)
        return Activation(values, units)
