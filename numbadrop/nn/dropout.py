"""Dropout: of each value on its own, and of units for the whole batch."""

from __future__ import annotations

from dataclasses import dataclass

from numbadrop import ops
from numbadrop.index_set import IndexSet
from numbadrop.kernels import dropout_mask, sample_units
from numbadrop.nn.activation import Activation, Input
from numbadrop.nn.module import Module

__all__ = ["BatchwiseDropout", "Dropout", "Dropout2d", "Pattern"]


class _Dropping(Module):
    """A layer that drops a fraction, which may be changed."""

    unitwise = True

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    @property
    def p(self) -> float:
        """The fraction dropped."""
        return self._p

    @p.setter
    def p(self, p: float) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"p, the fraction dropped, must be in [0, 1), got {p}")
        self._p = float(p)


class Dropout(_Dropping):
    """In training, set each value to zero with probability p and divide the others by 1 - p.

    The usual, independent dropout: nothing is left out of any computation. With `eval`, nothing
    happens.

    Parameters
    ----------
    p : float
        In [0, 1).

    References
    ----------
    N. Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting",
    JMLR 15 (2014) 1929-1958.

    Examples
    --------
    >>> import numpy as np
    >>> layer, x = Dropout(0.5).seed(0), np.ones((10, 10))
    >>> np.unique(layer(x).value), np.unique(layer.eval()(x).value)
    (array([0., 2.]), array([1.]))
    """

    def __call__(self, x: Input, units: IndexSet | None = None) -> Activation:
        """Return the masked values, shape (batch, ..., len(units))."""
        x = Activation.of(x).take(units)
        if not self.training or self.p == 0:
            return x
        mask = dropout_mask(self._mask_shape(x.values.shape), self.p, self.rng, x.value)
        return Activation(x.values * mask, x.units)

    def _mask_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape


class Dropout2d(Dropout):
    """In training, drop whole channels of each image, with probability p each.

    The usual, independent "spatial" dropout: other channels for every sample.

    Parameters
    ----------
    p : float
        In [0, 1).

    References
    ----------
    J. Tompson et al., "Efficient object localization using convolutional networks", CVPR 2015.

    Examples
    --------
    >>> import numpy as np
    >>> y = Dropout2d(0.5).seed(1)(np.ones((1, 2, 1, 4)))
    >>> bool((y.value[0, 0] == y.value[0, 1]).all())
    True
    """

    def _mask_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0], *[1] * (len(shape) - 2), shape[-1])


@dataclass(frozen=True, slots=True)
class Pattern:
    """One draw of batchwise dropout.

    Parameters
    ----------
    units : IndexSet
        The units kept.
    scale : float
        What their values are multiplied by, number of units / number kept.

    Examples
    --------
    >>> import numpy as np
    >>> pattern = Pattern(IndexSet([1, 3], 4), scale=2.0)
    >>> BatchwiseDropout(0.5)(np.array([[1.0, 2.0, 3.0, 4.0]]), pattern=pattern).dense()
    array([[0., 4., 0., 8.]])
    """

    units: IndexSet
    scale: float


class BatchwiseDropout(_Dropping):
    """In training, drop the same units for every sample of the batch.

    All products around the layer then run on submatrices of the weights. Of n units
    ``max(1, round(n * (1 - p)))`` are kept, drawn without replacement, and their values are
    multiplied by n / kept. With `eval`, nothing happens: no scaling is left for inference.

    Parameters
    ----------
    p : float
        The fraction dropped, in [0, 1).

    References
    ----------
    B. Graham, J. Reizenstein, L. Robinson, "Efficient batchwise dropout training using
    submatrices", arXiv:1502.02478 (2015). There activations are scaled by 1 - p at inference
    instead, biases included; behind anything but a ReLU that is another model.

    Examples
    --------
    >>> import numpy as np
    >>> layer = BatchwiseDropout(0.5).seed(0)
    >>> y = layer(np.ones((2, 6)))
    >>> len(y.units), y.value[0]
    (3, array([2., 2., 2.]))
    """

    def draw(self, within: IndexSet) -> Pattern:
        """Draw the units to keep among those in `within`."""
        kept = max(1, round(len(within) * (1 - self.p)))
        return Pattern(sample_units(within, kept, self.rng), len(within) / kept)

    def out_units(self, units: IndexSet | None) -> IndexSet | None:
        """Return `units` where nothing will be dropped."""
        return None if self.training else units

    def __call__(
        self, x: Input, units: IndexSet | None = None, pattern: Pattern | None = None
    ) -> Activation:
        """Return the kept units, shape (batch, ..., number kept).

        Parameters
        ----------
        x : ndarray, Variable or Activation, shape (batch, ..., units)
        units : IndexSet, optional
            Where to drop; units outside are not wanted at all.
        pattern : Pattern, optional
            A pattern drawn ahead. Without one, it is drawn here. Not used with `eval`.
        """
        x = Activation.of(x)
        if not self.training:
            return x.take(units)
        if pattern is None:
            pattern = self.draw(x.units if units is None else units)
        if pattern.units == x.units:
            return x if pattern.scale == 1 else Activation(x.values * pattern.scale, x.units)
        positions = x.units.positions_of(pattern.units)
        return Activation(ops.take_units(x.values, positions, pattern.scale), pattern.units)
