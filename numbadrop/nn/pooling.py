"""Layers that make one pixel of several, for each unit alone."""

from __future__ import annotations

from numbadrop import ops
from numbadrop.autograd import Variable
from numbadrop.index_set import IndexSet
from numbadrop.kernels.arrays import Pair
from numbadrop.kernels.pooling import Window
from numbadrop.nn.activation import Activation, Input
from numbadrop.nn.module import Module

__all__ = ["AvgPool2d", "GlobalAvgPool2d", "MaxPool2d"]


class _Pool2d(Module):
    """What the layers with a window share.

    Parameters
    ----------
    size, stride, padding : int or pair of int
        Down and right. The stride is the size if it is left out; the padding is at most half the
        size.
    """

    unitwise = True

    def __init__(self, size: Pair, stride: Pair | None = None, padding: Pair = 0) -> None:
        Window.of(size, stride, padding)  # Refuses here what no image could be given to.
        self.size, self.stride, self.padding = size, stride, padding

    def __call__(self, x: Input, units: IndexSet | None = None) -> Activation:
        """Return the pooled images, shape (batch, out_height, out_width, len(units)).

        Parameters
        ----------
        x : ndarray, Variable or Activation, shape (batch, height, width, units)
        units : IndexSet, optional

        Raises
        ------
        ValueError
            If `x` has other axes, or no window fits its images.
        """
        x = Activation.of(x).take(units)
        return Activation(self._function(x.values), x.units)

    def _function(self, values: Variable) -> Variable:
        raise NotImplementedError


class MaxPool2d(_Pool2d):
    """Return the largest pixel of each window.

    Parameters
    ----------
    size, stride, padding : int or pair of int
        As for `numbadrop.kernels.max_pool2d`.

    Examples
    --------
    >>> import numpy as np
    >>> MaxPool2d(3, stride=2, padding=1)(np.ones((2, 9, 7, 5))).value.shape
    (2, 5, 4, 5)
    """

    def _function(self, values: Variable) -> Variable:
        return ops.max_pool2d(values, self.size, self.stride, self.padding)


class AvgPool2d(_Pool2d):
    """Return the mean of each window's pixels, padding being zero.

    Parameters
    ----------
    size, stride, padding : int or pair of int
        As for `numbadrop.kernels.avg_pool2d`.

    Examples
    --------
    >>> import numpy as np
    >>> AvgPool2d(2)(np.ones((2, 9, 7, 5))).value.shape
    (2, 4, 3, 5)
    """

    def _function(self, values: Variable) -> Variable:
        return ops.avg_pool2d(values, self.size, self.stride, self.padding)


class GlobalAvgPool2d(Module):
    """Return the mean of all pixels of an image: (batch, height, width, units) to (batch, units).

    Examples
    --------
    >>> import numpy as np
    >>> GlobalAvgPool2d()(np.arange(8.0).reshape(1, 2, 2, 2)).value
    array([[3., 4.]])
    """

    unitwise = True

    def __call__(self, x: Input, units: IndexSet | None = None) -> Activation:
        """Return the means, shape (batch, len(units)).

        Raises
        ------
        ValueError
            If `x` does not have four axes.
        """
        x = Activation.of(x).take(units)
        if x.value.ndim != 4:
            raise ValueError(
                f"x must have shape (batch, height, width, units), got {x.value.shape}"
            )
        return Activation(ops.flatten(ops.avg_pool2d(x.values, x.value.shape[1:3])), x.units)
