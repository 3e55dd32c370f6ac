"""Operations that move units: along the last axis, or into it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbadrop import kernels
from numbadrop.autograd import primitive
from numbadrop.index_set import IndexSet

__all__ = ["flatten", "place_units", "take_units"]

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
    """
    taken = kernels.take_columns(x.reshape(-1, x.shape[-1]), units, factor)
    return taken.reshape(*x.shape[:-1], len(units))


@take_units.gradient("x")
def _(g: Array, out: Array, x: Array, units: IndexSet, factor: float) -> Array:
    dx = np.zeros_like(x)
    dx[..., units.indices] = g if factor == 1.0 else g * factor
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
    """
    placed = np.zeros((*x.shape[:-1], units.size), x.dtype)
    placed[..., units.indices] = x
    return placed


@place_units.gradient("x")
def _(g: Array, out: Array, x: Array, units: IndexSet) -> Array:
    return np.take(g, units.indices, axis=-1)


@primitive
def flatten(x: Array) -> Array:
    """Return x of shape (batch, ...) as (batch, units), also for an empty batch."""
    return x.reshape(len(x), math.prod(x.shape[1:]))


@flatten.gradient("x")
def _(g: Array, out: Array, x: Array) -> Array:
    return g.reshape(x.shape)
