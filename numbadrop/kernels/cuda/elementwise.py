"""What a training step does to activations between two products."""

from __future__ import annotations

from numbadrop.index_set import IndexSet
from numbadrop.kernels.cuda.array import DeviceArray
from numbadrop.kernels.cuda.columns import for_each, sum_columns
from numbadrop.kernels.cuda.jit import device_function
from numbadrop.kernels.cuda.memory import load, store
from numbadrop.kernels.cuda.operands import indices

__all__ = ["rectifier_gradient", "take_columns"]


@device_function
def _gradient(operands, at, row, col):
    g, y, h, positive, other = operands
    value = load(g, at) * (positive if load(y, at) > 0 else other)
    store(h, at, value)
    return (value,)


@device_function
def _itself(operands, at, row, col):
    return (load(operands[0], at),)


@device_function
def _take(operands, at, row, col):
    x, width, units, y, factor = operands
    store(y, at, factor * load(x, row * width + load(units, col)))


def rectifier_gradient(
    g: DeviceArray, y: DeviceArray, *, slope: float, scale: float
) -> tuple[DeviceArray, DeviceArray]:
    """See `numbadrop.kernels.rectifier_gradient`."""
    real, cols = g.dtype.type, g.shape[1]
    if slope == scale == 1:
        return g, sum_columns(_itself, 1, g.dtype, *g.shape, g.native).reshape(cols)
    h = DeviceArray.empty(g.shape, g.dtype)
    sums = sum_columns(
        _gradient, 1, g.dtype, *g.shape,
        g.native, y.native, h.native, real(scale), real(scale * slope),
    )  # fmt: skip
    return h, sums.reshape(cols)


def take_columns(x: DeviceArray, cols: IndexSet, factor: float) -> DeviceArray:
    """See `numbadrop.kernels.take_columns`."""
    y = DeviceArray.empty((x.shape[0], len(cols)), x.dtype)
    for_each(_take, *y.shape, x.native, x.shape[1], indices(cols), y.native, x.dtype.type(factor))
    return y
