"""Layers that move values between the axis of units and other axes, and change none of them."""

from __future__ import annotations

import math

from numbadrop import ops
from numbadrop.index_set import IndexSet
from numbadrop.nn.activation import Activation, Input
from numbadrop.nn.module import Module

__all__ = ["Flatten", "Unflatten"]


class Flatten(Module):
    """Make units of all axes but the first: (batch, ...) becomes (batch, units).

    Units that are missing on the last axis are missing at every place on the others: the next
    layer uses no weight of theirs.

    Examples
    --------
    >>> import numpy as np
    >>> images = Activation.of(np.arange(6.0).reshape(1, 1, 2, 3)).take(IndexSet([0, 2], 3))
    >>> flat = Flatten()(images)
    >>> flat.value, flat.units
    (array([[0., 2., 3., 5.]]), IndexSet([0 2 3 5], size=6))
    """

    def __call__(self, x: Input, units: IndexSet | None = None) -> Activation:
        """Return the wanted units, shape (batch, len(units)).

        Raises
        ------
        ValueError
            If there is no place on the other axes.
        """
        x = Activation.of(x)
        places = math.prod(x.value.shape[1:-1])
        if places == 0:
            raise ValueError(f"x must have no empty axis but the first, got shape {x.value.shape}")
        if x.value.ndim == 2:
            return x.take(units)
        return Activation(ops.flatten(x.values), IndexSet.all(places).outer(x.units)).take(units)


class Unflatten(Module):
    """Make images, (batch, height, width, units), of samples in either layout.

    It stands where images enter a net: layers of images take NHWC alone, so that the units are on
    the last axis, and no layer guesses a layout.

    Parameters
    ----------
    shape : tuple of three int
        Of a sample, in the order of `layout`: (height, width, units) or (units, height, width).
    layout : {"NHWC", "NCHW"}
        How the values of a sample lie in memory. PyTorch's images are NCHW.

    Examples
    --------
    >>> import numpy as np
    >>> layer = Unflatten((3, 4, 5), "NCHW")
    >>> layer(np.ones((2, 60))).value.shape, layer(np.ones((2, 3, 4, 5))).value.shape
    ((2, 4, 5, 3), (2, 4, 5, 3))
    """

    def __init__(self, shape: tuple[int, int, int], layout: str) -> None:
        if layout not in ("NHWC", "NCHW"):
            raise ValueError(f"layout must be 'NHWC' or 'NCHW', got {layout!r}")
        checked = tuple(shape)
        if len(checked) != 3 or min(checked) < 1:
            names = ", ".join(
                {"N": "batch", "H": "height", "W": "width", "C": "units"}[axis]
                for axis in layout[1:]
            )
            raise ValueError(f"shape must be ({names}), each at least 1, got {shape}")
        self.shape, self.layout = checked, layout

    def __call__(self, x: Input, units: IndexSet | None = None) -> Activation:
        """Return the wanted units of the images, shape (batch, height, width, len(units)).

        Parameters
        ----------
        x : ndarray, Variable or Activation, shape (batch, features) or (batch, *shape)
            With all of its units.
        units : IndexSet, optional

        Raises
        ------
        ValueError
            If `x` is of another shape, or units are missing.
        """
        x = Activation.of(x)
        if not x.units.is_all:
            raise ValueError(f"x must have all of its {x.units.size} units, got {len(x.units)}")
        if x.value.shape[1:] not in (self.shape, (math.prod(self.shape),)):
            raise ValueError(
                f"x must have shape (batch, {math.prod(self.shape)}) or (batch, "
                f"{', '.join(map(str, self.shape))}), got {x.value.shape}"
            )
        return Activation.of(ops.unflatten(x.values, self.shape, self.layout)).take(units)
