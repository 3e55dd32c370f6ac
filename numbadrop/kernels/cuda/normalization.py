"""Batch normalization, in float64 and rounded once: sums over the batch, then a pass for each."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from numbadrop.index_set import IndexSet
from numbadrop.kernels.cuda.array import DeviceArray
from numbadrop.kernels.cuda.columns import for_each, sum_columns
from numbadrop.kernels.cuda.jit import device_function
from numbadrop.kernels.cuda.memory import load, store
from numbadrop.kernels.cuda.operands import indices

__all__ = ["batch_moments", "batch_norm", "batch_norm_gradient", "track_moments"]

_DOUBLE = np.dtype(np.float64)


@cache
def _distances(dtype: np.dtype[Any]) -> Any:
    element = dtype.type

    @device_function
    def body(operands, at, row, col):
        # From the first row: one of the data, so that a large mean costs no precision.
        distance = np.float64(load(operands[0], at, element)) - load(operands[0], col, element)
        return distance, distance * distance

    return body


@cache
def _moments(dtype: np.dtype[Any]) -> Any:
    element = dtype.type

    @device_function
    def body(operands, at, row, col):
        x, sums, rows, units, mean, variance = operands
        first = load(sums, col, np.float64) / rows
        second = load(sums, units + col, np.float64) / rows
        store(mean, col, load(x, col, element) + first, np.float64)
        store(variance, col, max(second - first * first, 0.0), np.float64)

    return body


@cache
def _tracking(dtype: np.dtype[Any]) -> Any:
    element = dtype.type

    @device_function
    def body(operands, at, row, col):
        running_mean, running_var, mean, variance = operands[:4]
        gathered, units, unbiased, momentum = operands[4:]
        own = load(units, col, np.int32) if gathered else col
        before = (1 - momentum) * load(running_mean, own, element)
        store(running_mean, own, before + momentum * load(mean, col, np.float64), element)
        before = (1 - momentum) * load(running_var, own, element)
        observed = unbiased * load(variance, col, np.float64)
        store(running_var, own, before + momentum * observed, element)

    return body


@cache
def _products(dtype: np.dtype[Any]) -> Any:
    element = dtype.type

    @device_function
    def body(operands, at, row, col):
        g, x, mean = operands
        value = np.float64(load(g, at, element))
        return value, value * (load(x, at, element) - load(mean, col, np.float64))

    return body


@cache
def _forward_coefficients(dtype: np.dtype[Any]) -> Any:
    element = dtype.type

    @device_function
    def body(operands, at, row, col):
        variance, eps, weight, bias, weighted, biased, units, coefficients = operands
        slope = 1 / math.sqrt(load(variance, col, np.float64) + eps)
        if weighted:
            slope *= load(weight, col, element)
        offset = np.float64(load(bias, col, element)) if biased else 0.0
        store(coefficients, col, slope, np.float64)
        store(coefficients, units + col, offset, np.float64)

    return body


@cache
def _normalize(dtype: np.dtype[Any]) -> Any:
    element = dtype.type

    @device_function
    def body(operands, at, row, col):
        x, mean, coefficients, units, y = operands
        value = (load(x, at, element) - load(mean, col, np.float64)) * load(
            coefficients, col, np.float64
        )
        store(y, at, value + load(coefficients, units + col, np.float64), element)

    return body


@cache
def _gradient_coefficients(dtype: np.dtype[Any]) -> Any:
    element = dtype.type

    @device_function
    def body(operands, at, row, col):
        variance, eps, weight, weighted, sums, rows, units, training = operands[:8]
        coefficients, d_weight, d_bias = operands[8:]
        scale = 1 / math.sqrt(load(variance, col, np.float64) + eps)
        total, moment = load(sums, col, np.float64), load(sums, units + col, np.float64)
        gain = scale * load(weight, col, element) if weighted else scale
        store(d_weight, col, moment * scale, element)
        store(d_bias, col, total, element)
        store(coefficients, col, gain, np.float64)
        # In training, x acts through the moments, too.
        share = gain / rows if training else 0.0
        store(coefficients, units + col, -share * scale * scale * moment, np.float64)
        store(coefficients, 2 * units + col, -share * total, np.float64)

    return body


@cache
def _normalize_gradient(dtype: np.dtype[Any]) -> Any:
    element = dtype.type

    @device_function
    def body(operands, at, row, col):
        g, x, mean, coefficients, units, dx = operands
        value = load(g, at, element) * load(coefficients, col, np.float64)
        distance = load(x, at, element) - load(mean, col, np.float64)
        value += distance * load(coefficients, units + col, np.float64) + load(
            coefficients, 2 * units + col, np.float64
        )
        store(dx, at, value, element)

    return body


def batch_moments(x: DeviceArray) -> tuple[DeviceArray, DeviceArray]:
    """See `numbadrop.kernels.batch_moments`."""
    rows, units = x.shape
    sums = sum_columns(_distances(x.dtype), 2, _DOUBLE, rows, units, x)
    mean, variance = DeviceArray.empty(units, _DOUBLE), DeviceArray.empty(units, _DOUBLE)
    for_each(_moments(x.dtype), float, 1, units, x, sums, rows, units, mean, variance)
    return mean, variance


def track_moments(
    running_mean: DeviceArray, running_var: DeviceArray, mean: DeviceArray, variance: DeviceArray,
    units: IndexSet, *, unbiased: float, momentum: float,
) -> None:  # fmt: skip
    """See `numbadrop.kernels.track_moments`."""
    for_each(
        _tracking(running_mean.dtype), float, 1, len(units), running_mean, running_var,
        mean, variance, not units.is_all, indices(units), unbiased, momentum,
    )  # fmt: skip


def batch_norm(
    x: DeviceArray, mean: DeviceArray, variance: DeviceArray, weight: DeviceArray | None,
    bias: DeviceArray | None, *, eps: float,
) -> DeviceArray:  # fmt: skip
    """See `numbadrop.kernels.batch_norm`."""
    rows, units = x.shape
    coefficients = DeviceArray.empty((2, units), _DOUBLE)
    # Of an array that is not given nothing is read, so that it may be any.
    factors = (x if weight is None else weight), (x if bias is None else bias)
    given = weight is not None, bias is not None
    for_each(
        _forward_coefficients(x.dtype), float, 1, units,
        variance, eps, *factors, *given, units, coefficients,
    )  # fmt: skip
    y = DeviceArray.empty(x.shape, x.dtype)
    for_each(_normalize(x.dtype), float, rows, units, x, mean, coefficients, units, y)
    return y


def batch_norm_gradient(
    g: DeviceArray, x: DeviceArray, mean: DeviceArray, variance: DeviceArray,
    weight: DeviceArray | None, *, eps: float, training: bool,
) -> tuple[DeviceArray, DeviceArray, DeviceArray]:  # fmt: skip
    """See `numbadrop.kernels.batch_norm_gradient`."""
    rows, units = x.shape
    sums = sum_columns(_products(x.dtype), 2, _DOUBLE, rows, units, g, x, mean)
    coefficients = DeviceArray.empty((3, units), _DOUBLE)
    d_weight, d_bias = DeviceArray.empty(units, x.dtype), DeviceArray.empty(units, x.dtype)
    for_each(
        _gradient_coefficients(x.dtype), float, 1, units,
        variance, eps, x if weight is None else weight, weight is not None, sums, rows, units,
        training and rows > 0, coefficients, d_weight, d_bias,
    )  # fmt: skip
    dx = DeviceArray.empty(x.shape, x.dtype)
    for_each(_normalize_gradient(x.dtype), float, rows, units, g, x, mean, coefficients, units, dx)
    return dx, d_weight, d_bias
