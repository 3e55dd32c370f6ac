"""Batch normalization, in float64 and rounded once: sums over the batch, then a pass for each."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from numbadrop.kernels.cuda.array import DeviceArray
from numbadrop.kernels.cuda.columns import for_each, sum_columns
from numbadrop.kernels.cuda.jit import device_function
from numbadrop.kernels.cuda.memory import load, store

__all__ = ["batch_moments", "batch_norm", "batch_norm_gradient"]

_DOUBLE = np.dtype(np.float64)


@device_function
def _distances(operands, at, row, col):
    # From the first row: one of the data, so that a large mean costs no precision.
    distance = np.float64(load(operands[0], at)) - load(operands[0], col)
    return distance, distance * distance


@device_function
def _moments(operands, at, row, col):
    x, sums, rows, units, mean, variance = operands
    first, second = load(sums, col) / rows, load(sums, units + col) / rows
    store(mean, col, load(x, col) + first)
    store(variance, col, max(second - first * first, 0.0))


@device_function
def _products(operands, at, row, col):
    g, x, mean = operands
    value = np.float64(load(g, at))
    return value, value * (load(x, at) - load(mean, col))


@device_function
def _forward_coefficients(operands, at, row, col):
    variance, eps, weight, bias, weighted, biased, units, out = operands
    slope = 1 / math.sqrt(load(variance, col) + eps)
    if weighted:
        slope *= load(weight, col)
    store(out, col, slope)
    store(out, units + col, np.float64(load(bias, col)) if biased else 0.0)


@device_function
def _normalize(operands, at, row, col):
    x, mean, coefficients, units, y = operands
    value = (load(x, at) - load(mean, col)) * load(coefficients, col)
    store(y, at, value + load(coefficients, units + col))


@device_function
def _gradient_coefficients(operands, at, row, col):
    variance, eps, weight, weighted, sums, rows, units, training, out, d_weight, d_bias = operands
    scale = 1 / math.sqrt(load(variance, col) + eps)
    total, moment = load(sums, col), load(sums, units + col)
    gain = scale * load(weight, col) if weighted else scale
    store(d_weight, col, moment * scale)
    store(d_bias, col, total)
    store(out, col, gain)
    # In training, x acts through the moments, too.
    store(out, units + col, -gain * scale * scale * moment / rows if training else 0.0)
    store(out, 2 * units + col, -gain * total / rows if training else 0.0)


@device_function
def _normalize_gradient(operands, at, row, col):
    g, x, mean, coefficients, units, dx = operands
    value = load(g, at) * load(coefficients, col)
    distance = load(x, at) - load(mean, col)
    value += distance * load(coefficients, units + col) + load(coefficients, 2 * units + col)
    store(dx, at, value)


def _native(given: DeviceArray | None, other: DeviceArray) -> Any:
    """Return what a kernel takes; of what is not given it reads nothing."""
    return (other if given is None else given).native


def batch_moments(x: DeviceArray) -> tuple[DeviceArray, DeviceArray]:
    """See `numbadrop.kernels.batch_moments`."""
    rows, units = x.shape
    sums = sum_columns(_distances, 2, _DOUBLE, rows, units, x.native)
    mean, variance = DeviceArray.empty(units, _DOUBLE), DeviceArray.empty(units, _DOUBLE)
    for_each(_moments, 1, units, x.native, sums.native, rows, units, mean.native, variance.native)
    return mean, variance


def batch_norm(
    x: DeviceArray, mean: DeviceArray, variance: DeviceArray, weight: DeviceArray | None,
    bias: DeviceArray | None, *, eps: float,
) -> DeviceArray:  # fmt: skip
    """See `numbadrop.kernels.batch_norm`."""
    rows, units = x.shape
    coefficients = DeviceArray.empty((2, units), _DOUBLE)
    for_each(
        _forward_coefficients, 1, units,
        variance.native, eps, _native(weight, x), _native(bias, x),
        weight is not None, bias is not None, units, coefficients.native,
    )  # fmt: skip
    y = DeviceArray.empty(x.shape, x.dtype)
    for_each(_normalize, rows, units, x.native, mean.native, coefficients.native, units, y.native)
    return y


def batch_norm_gradient(
    g: DeviceArray, x: DeviceArray, mean: DeviceArray, variance: DeviceArray,
    weight: DeviceArray | None, *, eps: float, training: bool,
) -> tuple[DeviceArray, DeviceArray, DeviceArray]:  # fmt: skip
    """See `numbadrop.kernels.batch_norm_gradient`."""
    rows, units = x.shape
    sums = sum_columns(_products, 2, _DOUBLE, rows, units, g.native, x.native, mean.native)
    coefficients = DeviceArray.empty((3, units), _DOUBLE)
    d_weight, d_bias = DeviceArray.empty(units, x.dtype), DeviceArray.empty(units, x.dtype)
    for_each(
        _gradient_coefficients, 1, units,
        variance.native, eps, _native(weight, x), weight is not None, sums.native, rows, units,
        training and rows > 0, coefficients.native, d_weight.native, d_bias.native,
    )  # fmt: skip
    dx = DeviceArray.empty(x.shape, x.dtype)
    for_each(
        _normalize_gradient, rows, units,
        g.native, x.native, mean.native, coefficients.native, units, dx.native,
    )  # fmt: skip
    return dx, d_weight, d_bias
