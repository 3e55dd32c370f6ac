"""What a training step does to activations between two products."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from numbadrop.index_set import IndexSet
from numbadrop.kernels.cuda.array import DeviceArray
from numbadrop.kernels.cuda.columns import for_each, itself, sum_columns
from numbadrop.kernels.cuda.jit import device_function
from numbadrop.kernels.cuda.memory import load, store
from numbadrop.kernels.cuda.operands import indices

__all__ = ["rectifier_gradient", "take_columns"]


@cache
def _gradient(dtype: np.dtype[Any]) -> Any:
    element = dtype.type

    @device_function
    def body(operands, at, row, col):
        g, y, h, positive, other = operands
        factor = positive if load(y, at, element) > 0 else other
        # Where nothing passes, infinity does not either: times zero it would be NaN.
        value = load(g, at, element) * factor if factor != 0 else factor
        store(h, at, value, element)
        return (value,)

    return body


@cache
def _take(dtype: np.dtype[Any]) -> Any:
    element = dtype.type

    @device_function
    def body(operands, at, row, col):
        x, width, units, y, factor = operands
        store(y, at, factor * load(x, row * width + load(units, col, np.int32), element), element)

    return body


def rectifier_gradient(
    g: DeviceArray, y: DeviceArray, *, slope: float, scale: float
) -> tuple[DeviceArray, DeviceArray]:
    """See `numbadrop.kernels.rectifier_gradient`."""
    dtype, cols = g.dtype, g.shape[1]
    if slope == scale == 1:
        h, sums = g, sum_columns(itself(dtype), 1, dtype, *g.shape, g)
    else:
        h = DeviceArray.empty(g.shape, dtype)
        factors = scale, scale * slope
        sums = sum_columns(_gradient(dtype), 1, dtype, *g.shape, g, y, h, *factors)
    return h, sums.reshape(cols)


def take_columns(x: DeviceArray, cols: IndexSet, factor: float) -> DeviceArray:
    """See `numbadrop.kernels.take_columns`."""
    y = DeviceArray.empty((x.shape[0], len(cols)), x.dtype)
    for_each(_take(x.dtype), x.dtype.type, *y.shape, x, x.shape[1], indices(cols), y, factor)
    return y
