"""Operations that move units: along the last axis, or into it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbadrop.autograd import primitive

__all__ = ["flatten", "place_units", "take_units"]

Array = NDArray[Any]


@primitive
def take_units(x: Array, positions: NDArray[np.int64], factor: float = 1.0) -> Array:
    """Return ``factor * x[..., positions]``.

    Parameters
    ----------
    x : ndarray, shape (..., n)
        Elements outside `positions` are not read.
    positions : ndarray of int64, shape (k,)
        In [0, n), unique.
    factor : float

    Returns
    -------
    ndarray, shape (..., k)
    """
    taken = np.take(x, positions, axis=-1)
    if factor != 1.0:
        taken *= factor
    return taken


@take_units.gradient("x")
def _(g: Array, out: Array, x: Array, positions: NDArray[np.int64], factor: float) -> Array:
    dx = np.zeros_like(x)
    dx[..., positions] = g if factor == 1.0 else g * factor
    return dx


@primitive
def place_units(x: Array, positions: NDArray[np.int64], size: int) -> Array:
    """Return an array of `size` units that holds `x` at `positions` and zero elsewhere.

    Parameters
    ----------
    x : ndarray, shape (..., k)
    positions : ndarray of int64, shape (k,)
        In [0, size), unique.
    size : int

    Returns
    -------
    ndarray, shape (..., size)
    """
    placed = np.zeros((*x.shape[:-1], size), x.dtype)
    placed[..., positions] = x
    return placed


@place_units.gradient("x")
def _(g: Array, out: Array, x: Array, positions: NDArray[np.int64], size: int) -> Array:
    return np.take(g, positions, axis=-1)


@primitive
def flatten(x: Array) -> Array:
    """Return x of shape (batch, ...) as (batch, units), also for an empty batch."""
    return x.reshape(len(x), math.prod(x.shape[1:]))


@flatten.gradient("x")
def _(g: Array, out: Array, x: Array) -> Array:
    return g.reshape(x.shape)
