"""Batch normalization."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numbadrop import kernels, ops
from numbadrop.index_set import IndexSet
from numbadrop.kernels.arrays import check_same_memory
from numbadrop.nn.activation import Activation, Input
from numbadrop.nn.module import Buffer, Module, Parameter

__all__ = ["BatchNorm1d", "BatchNorm2d"]

Array = NDArray[Any]


class _BatchNorm(Module):
    """What batch normalization is, whatever the axes of its input.

    Parameters
    ----------
    features : int
        How many units there are.
    eps : float
        Added to the variance.
    momentum : float
        The share of a new observation in the running statistics, in [0, 1].
    affine : bool
        Whether there are a weight and a bias.
    dtype : numpy.float32 or numpy.float64

    Attributes
    ----------
    weight, bias : Parameter, shape (features,), or None
    running_mean, running_var : Buffer, shape (features,)
        Used in place of the batch's own moments with `eval`. The variance is the unbiased one.
    """

    unitwise = True
    _axes: ClassVar[tuple[str, ...]]
    """Of the input, for messages; the last are the units, over all others goes the mean."""

    def __init__(
        self,
        features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        dtype: DTypeLike = np.float32,
    ) -> None:
        if features < 1:
            raise ValueError(f"features must be at least 1, got {features}")
        if not 0 < eps < np.inf:
            raise ValueError(f"eps must be positive and finite, got {eps}")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1], got {momentum}")
        self.eps = float(eps)
        self.momentum = float(momentum)
        self.weight = Parameter(np.ones(features, dtype)) if affine else None
        self.bias = Parameter(np.zeros(features, dtype)) if affine else None
        self.running_mean = Buffer(np.zeros(features, dtype))
        self.running_var = Buffer(np.ones(features, dtype))

    def reset_parameters(self, rng: np.random.Generator) -> None:
        """Set weights and running variances to one, biases and running means to zero."""
        for holder, value in (
            (self.weight, 1), (self.bias, 0), (self.running_mean, 0), (self.running_var, 1)
        ):  # fmt: skip
            if holder is not None:
                holder.value[...] = value

    def __call__(self, x: Input, units: IndexSet | None = None) -> Activation:
        """Return the normalized values of the wanted units.

        In training, updates the running statistics of these units and of no others.

        Parameters
        ----------
        x : ndarray, Variable or Activation
            Of shape (batch, units), or of images, (batch, height, width, units), for BatchNorm2d.
        units : IndexSet, optional

        Raises
        ------
        TypeError
            If `x` is of another dtype than the layer.
        ValueError
            If `x` has other axes or belongs to another number of units, or if, in training, there
            are fewer than two values of each unit.
        """
        x = Activation.of(x).take(units)
        units, values = x.units, x.values
        features, dtype = len(self.running_mean.value), self.running_mean.value.dtype
        if values.value.ndim != len(self._axes) or units.size != features:
            raise ValueError(
                f"x must have shape ({', '.join(self._axes)}) with {features} units, "
                f"got {values.shape} with {units.size} units"
            )
        if values.dtype != dtype:
            raise TypeError(f"x must be {dtype} as the layer, got {values.dtype}")
        if self.training:
            mean, variance = self._observe(values.value, units)
        else:
            mean = self.running_mean.value[units]
            variance = self.running_var.value[units]
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                parameter.refresh(units)
        y = ops.batch_norm(
            values, mean, variance, self.weight, self.bias, units, self.eps, self.training
        )
        return Activation(y, units)

    def _observe(self, x: Array, units: IndexSet) -> tuple[Array, Array]:
        """Return the moments of `x`, and let the running statistics follow."""
        rows = x.reshape(-1, len(units))
        count = len(rows)
        if count < 2:
            raise ValueError(
                f"x must have at least 2 values of each unit in training, got shape {x.shape}"
            )
        check_same_memory("x", rows, "the layer", self.running_mean.value)
        mean, variance = kernels.batch_moments(rows)
        kernels.track_moments(
            self.running_mean.value, self.running_var.value, mean, variance, units,
            count=count, momentum=self.momentum,
        )  # fmt: skip
        return mean, variance


class BatchNorm1d(_BatchNorm):
    """Give each unit mean 0 and variance 1 over the batch, then a weight and a bias of its own.

    In training the moments are those of the batch, and the running statistics follow them; with
    `eval` these are used. The statistics of a unit that takes no part stay as they are, bit for
    bit, like its weight and its bias.

    Parameters
    ----------
    features, eps, momentum, affine, dtype
        As for `torch.nn.BatchNorm1d`, which calls the first `num_features`.

    Notes
    -----
    Behind a product whose inputs are dropped, the running variance is that of training, which is
    larger than without dropout (X. Li et al., "Understanding the disharmony between dropout and
    batch normalization by variance shift", CVPR 2019). Dropout behind the last normalization of a
    net has no such effect.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch normalization: accelerating deep network training by reducing
    internal covariate shift", ICML 2015.

    Examples
    --------
    >>> layer = BatchNorm1d(3, momentum=0.5)
    >>> x = Activation.of(np.array([[1, 0, 7], [3, 0, 9]], np.float32)).take(IndexSet([0, 2], 3))
    >>> layer(x).value.round(3)
    array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    >>> layer.running_mean.value
    array([1., 0., 4.], dtype=float32)
    """

    _axes = ("batch", "units")


class BatchNorm2d(_BatchNorm):
    """Do what `BatchNorm1d` does for images: the moments are those of all pixels of the batch.

    Parameters
    ----------
    features, eps, momentum, affine, dtype
        As for `torch.nn.BatchNorm2d`, which calls the first `num_features`.

    Examples
    --------
    >>> y = BatchNorm2d(3, dtype=np.float64)(np.arange(24.0).reshape(2, 2, 2, 3)).value
    >>> y.mean(axis=(0, 1, 2)).round(6), y.std(axis=(0, 1, 2)).round(6)
    (array([0., 0., 0.]), array([1., 1., 1.]))
    """

    _axes = ("batch", "height", "width", "units")
