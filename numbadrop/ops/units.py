"""Operations that move units: along the last axis, into it, or out of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbadrop import kernels
from numbadrop.autograd import primitive
from numbadrop.index_set import IndexSet
from numbadrop.kernels.arrays import check_units
from numbadrop.kernels.device import is_host

__all__ = ["flatten", "place_units", "take_units", "unflatten"]

Array = NDArray[Any]


@primitive
def take_units(x: Array, units: IndexSet, factor: float = 1.0) -> Array:
    """Return ``factor * x[..., units]``.

    Parameters
    ----------
    x : ndarray, shape (..., units.size)
        Other units take no part.
    units : IndexSet
    factor : float

    Returns
    -------
    ndarray, shape (..., len(units))

    Examples
    --------
    >>> take_units(np.array([[1.0, 2.0, 3.0]]), IndexSet([0, 2], 3), factor=2.0).value
    array([[2., 6.]])
    """
    taken = kernels.take_columns(x.reshape(-1, x.shape[-1]), units, factor)
    return taken.reshape(*x.shape[:-1], len(units))


@take_units.gradient("x")
def _(g: Array, out: Array, x: Array, units: IndexSet, factor: float) -> Array:
    dx = np.zeros_like(x)
    dx[..., units] = g if factor == 1.0 else g * factor
    return dx


@primitive
def place_units(x: Array, units: IndexSet) -> Array:
    """Return an array that holds `x` at `units` and zero elsewhere.

    Parameters
    ----------
    x : ndarray, shape (..., len(units))
    units : IndexSet

    Returns
    -------
    ndarray, shape (..., units.size)

    Raises
    ------
    ValueError
        If the last axis of `x` does not have one element for each unit.

    Examples
    --------
    >>> place_units(np.array([[1.0, 2.0]]), IndexSet([0, 2], 3)).value
    array([[1., 0., 2.]])
    """
    check_units("x", x.ndim - 1, x.shape[-1], "units", len(units))
    placed = np.zeros((*x.shape[:-1], units.size), x.dtype, like=x)
    placed[..., units] = x
    return placed


@place_units.gradient("x")
def _(g: Array, out: Array, x: Array, units: IndexSet) -> Array:
    return kernels.take_columns(g.reshape(-1, units.size), units).reshape(x.shape)


@primitive
def flatten(x: Array) -> Array:
    """Return x of shape (batch, ...) as (batch, units), also for an empty batch.

    Examples
    --------
    >>> flatten(np.ones((2, 3, 4))).value.shape, flatten(np.ones((0, 3, 4))).value.shape
    ((2, 12), (0, 12))
    """
    return x.reshape(len(x), math.prod(x.shape[1:]))


@flatten.gradient("x")
def _(g: Array, out: Array, x: Array) -> Array:
    return g.reshape(x.shape)


@primitive
def unflatten(x: Array, shape: tuple[int, int, int], layout: str) -> Array:
    """Return x of shape (batch, ...) as images, (batch, height, width, units).

    Parameters
    ----------
    x : ndarray, shape (batch, ...)
        As many values for each sample as an image has.
    shape : tuple of int
        Of an image in `x`, in the order of `layout`.
    layout : {"NHWC", "NCHW"}
        How the values of `x` lie; the result is NHWC.

    Returns
    -------
    ndarray, shape (batch, height, width, units)

    Examples
    --------
    >>> unflatten(np.arange(4.0).reshape(1, 4), (2, 1, 2), "NCHW").value
    array([[[[0., 2.],
             [1., 3.]]]])
    """
    if layout not in ("NHWC", "NCHW"):
        raise ValueError(f"layout must be 'NHWC' or 'NCHW', got {layout!r}")
    images = x.reshape(len(x), *shape)
    if layout == "NHWC":
        return images
    turned = images.transpose(0, 2, 3, 1)
    return turned.copy() if is_host(turned) else turned  # On a GPU it is a copy already.


@unflatten.gradient("x")
def _(g: Array, out: Array, x: Array, shape: tuple[int, int, int], layout: str) -> Array:
    return (g.transpose(0, 3, 1, 2) if layout == "NCHW" else g).reshape(x.shape)
