"""The convolutional layer."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from numbadrop import ops
from numbadrop.index_set import IndexSet
from numbadrop.kernels.arrays import Pair
from numbadrop.kernels.geometry import check_geometry
from numbadrop.nn.activation import Activation, Input, check_set
from numbadrop.nn.module import Module, Parameter

__all__ = ["Conv2d"]


class Conv2d(Module):
    """Convolve images, from the channels that take part to those that are wanted.

    Images are (batch, height, width, channels): channels are the units. Batchwise dropout drops
    whole channels.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int or pair of int
        Height and width.
    stride, padding, dilation : int or pair of int
        As PyTorch's.
    bias : bool
    gain : float
        Initial weights are uniform in ±gain / sqrt(in_channels * kernel height * kernel width),
        biases zero.
    dtype : numpy.float32 or numpy.float64

    Attributes
    ----------
    weight : Parameter, shape (kernel height, kernel width, in_channels, out_channels)
    bias : Parameter, shape (out_channels,), or None

    Raises
    ------
    TypeError, ValueError
        If a number is out of range.

    Examples
    --------
    >>> layer = Conv2d(3, 8, 3, padding=1).seed(0)
    >>> x = Activation.of(np.ones((2, 5, 5, 3), np.float32)).take(IndexSet([0, 2], 3))
    >>> layer(x, units=IndexSet([1, 2, 7], 8)).value.shape
    (2, 5, 5, 3)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        bias: bool = True,
        gain: float = 1.0,
        dtype: DTypeLike = np.float32,
    ) -> None:
        for name, size in (("in_channels", in_channels), ("out_channels", out_channels)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if not 0 <= gain < np.inf:
            raise ValueError(f"gain must be finite and not negative, got {gain}")
        down, along = check_geometry(kernel_size, stride, padding, dilation)
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.gain = gain
        shape = (down.kernel, along.kernel, in_channels, out_channels)
        self.weight = Parameter(np.empty(shape, dtype))
        self.bias = Parameter(np.empty(out_channels, dtype)) if bias else None
        self._all = IndexSet.all(out_channels)
        self.reset_parameters(self.rng)

    def reset_parameters(self, rng: np.random.Generator) -> None:
        """Draw the weights, set the biases to zero."""
        bound = self.gain / np.sqrt(np.prod(self.weight.shape[:3]))
        self.weight.value[...] = rng.uniform(-bound, bound, self.weight.shape)
        if self.bias is not None:
            self.bias.value[...] = 0

    def out_units(self, units: IndexSet | None) -> IndexSet:
        """Return all channels of the output."""
        return self._all

    def __call__(
        self, x: Input, units: IndexSet | None = None, *, slope: float = 1.0, scale: float = 1.0
    ) -> Activation:
        """Return the wanted channels of the output, shape (batch, height', width', len(units)).

        No weight outside ``weight[:, :, x.units, units]`` takes part.

        Parameters
        ----------
        x : ndarray, Variable or Activation, shape (batch, height, width, in_channels)
        units : IndexSet, optional
        slope, scale : float
            What the layers behind this one do to each value, see `numbadrop.ops.conv2d`.

        Raises
        ------
        TypeError
            If `x` and `weight` differ in dtype.
        ValueError
            If `x` is not four-dimensional, `x` or `units` belong to another number of channels, or
            the kernel is larger than the padded images.
        """
        x = Activation.of(x)
        in_channels, out_channels = self.weight.shape[2:]
        if x.value.ndim != 4 or x.units.size != in_channels:
            raise ValueError(
                f"x must have shape (batch, height, width, {in_channels}), got {x.values.shape}"
                f" with {x.units.size} channels"
            )
        if x.values.dtype != self.weight.dtype:
            raise TypeError(f"x must be {self.weight.dtype} as weight, got {x.values.dtype}")
        if units is None:
            units = self._all
        elif check_set(units).size != out_channels:
            raise ValueError(f"units must be of {out_channels} channels, got of {units.size}")
        self.weight.refresh(None, None, x.units, units)
        if self.bias is not None:
            self.bias.refresh(units)
        values = ops.conv2d(
            x.values, self.weight, self.bias, x.units, units,
            self.stride, self.padding, self.dilation, slope, scale,
        )  # fmt: skip
        return Activation(values, units)
