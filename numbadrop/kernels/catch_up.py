"""The steps that inactive weights have missed, applied to a block in one go."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbadrop.kernels.jit import entry

__all__ = ["apply_missed"]

Array = NDArray[Any]


@entry
def apply_missed(
    value: Array, slot: Array, seen: Array, maps: Array, rows: Array, cols: Array, now: int
) -> None:
    """Multiply each weight and its slot of a block by the maps it has not seen, in place.

    Parameters
    ----------
    value, slot : ndarray of float32 or float64, shape (n_in, n_out)
    seen : ndarray of uint8, shape (n_in, n_out)
        How many of the maps each weight has seen. Set to `now` on the block.
    maps : ndarray of float64, shape (steps, 2, 2)
        Step t is ``(value, slot) = maps[t] @ (value, slot)``.
    rows, cols : ndarray of int64
        The block.
    now : int
    """
    steps = len(maps)
    # missed[k] is the product of the last k maps, in the dtype of the weights.
    missed = np.empty((steps + 1, 4), value.dtype)
    a, b, c, d = 1.0, 0.0, 0.0, 1.0
    for k in range(steps + 1):
        missed[k, 0], missed[k, 1], missed[k, 2], missed[k, 3] = a, b, c, d
        if k < steps:
            m = maps[steps - 1 - k]
            a, b = a * m[0, 0] + b * m[1, 0], a * m[0, 1] + b * m[1, 1]
            c, d = c * m[0, 0] + d * m[1, 0], c * m[0, 1] + d * m[1, 1]
    for i in rows:
        for j in cols:
            k = steps - seen[i, j]
            if k > 0:
                w, s = value[i, j], slot[i, j]
                value[i, j] = missed[k, 0] * w + missed[k, 1] * s
                slot[i, j] = missed[k, 2] * w + missed[k, 3] * s
            seen[i, j] = now
