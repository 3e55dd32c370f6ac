"""Stored numbers as the floats that a net sees."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["as_floats"]

Array = NDArray[Any]


def as_floats(inputs: Array, divisor: float = 1.0) -> Array:
    """Return `inputs` as floats: floats as they are, whole numbers divided, in float32.

    Data sets of small whole numbers stay in memory as bytes and pass through here one minibatch
    at a time.

    Parameters
    ----------
    inputs : ndarray
        Floats, integers or booleans.
    divisor : float, default 1
        See `Dataset`.

    Returns
    -------
    ndarray
        `inputs` itself if it is of floats, else a new float32 array.

    Examples
    --------
    >>> as_floats(np.array([[0, 8]], dtype=np.uint8), divisor=16)
    array([[0. , 0.5]], dtype=float32)
    """
    if inputs.dtype.kind == "f":
        return inputs
    return np.multiply(inputs, np.float32(1 / divisor), dtype=np.float32)
