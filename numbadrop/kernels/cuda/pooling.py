"""Pooling of images. In the gradients, each pixel sums what the windows that hold it give it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from numbadrop.kernels.cuda.array import DeviceArray
from numbadrop.kernels.cuda.columns import for_each
from numbadrop.kernels.cuda.jit import device_function
from numbadrop.kernels.cuda.memory import load, store
from numbadrop.kernels.pooling import Window

__all__ = ["avg_pool2d", "avg_pool2d_gradient", "max_pool2d", "max_pool2d_gradient"]


@device_function
def _first_window(pixel, size, stride, padding):
    """Return the first place of a window that holds a pixel, along one axis."""
    return max((pixel + padding - size + stride) // stride, 0)


@cache
def _pool(dtype: np.dtype[Any], largest: bool) -> Any:
    element = dtype.type

    @device_function
    def body(operands, at, row, col):
        x, y, window, height, width, out_height, out_width, units, start, factor = operands
        image, i, j = row // out_width // out_height, row // out_width % out_height, row % out_width
        top = i * window.stride_down - window.padding_above
        left = j * window.stride_right - window.padding_left
        value = start
        for r in range(max(top, 0), min(top + window.height, height)):
            for c in range(max(left, 0), min(left + window.width, width)):
                pixel = load(x, ((image * height + r) * width + c) * units + col, element)
                if not largest:
                    value += pixel
                elif pixel > value or pixel != pixel:  # a NaN remains
                    value = pixel
        store(y, at, factor * value, element)

    return body


@cache
def _avg_gradient(dtype: np.dtype[Any]) -> Any:
    element = dtype.type

    @device_function
    def body(operands, at, row, col):
        g, dx, window, height, width, out_height, out_width, units, factor = operands
        image, r, c = row // width // height, row // width % height, row % width
        down, right = window.stride_down, window.stride_right
        top, left = r + window.padding_above, c + window.padding_left
        total = element(0)
        for i in range(
            _first_window(r, window.height, down, window.padding_above),
            min(top // down + 1, out_height),
        ):
            for j in range(
                _first_window(c, window.width, right, window.padding_left),
                min(left // right + 1, out_width),
            ):
                total += load(g, ((image * out_height + i) * out_width + j) * units + col, element)
        store(dx, at, factor * total, element)

    return body


@cache
def _max_gradient(dtype: np.dtype[Any]) -> Any:
    element = dtype.type

    @device_function
    def body(operands, at, row, col):
        g, dx, window, height, width, out_height, out_width, units, x, y = operands
        image, r, c = row // width // height, row // width % height, row % width
        down, right = window.stride_down, window.stride_right
        above, aside = window.padding_above, window.padding_left
        pixel, total = load(x, at, element), element(0)
        for i in range(
            _first_window(r, window.height, down, above), min((r + above) // down + 1, out_height)
        ):
            for j in range(
                _first_window(c, window.width, right, aside),
                min((c + aside) // right + 1, out_width),
            ):
                out = ((image * out_height + i) * out_width + j) * units + col
                largest = load(y, out, element)
                if pixel == largest or pixel != pixel:
                    # Of equal ones the first takes it all.
                    first = True
                    left = max(j * right - aside, 0)
                    end = min(j * right - aside + window.width, width)
                    for s in range(max(i * down - above, 0), r + 1):
                        for t in range(left, c if s == r else end):
                            other = load(
                                x, ((image * height + s) * width + t) * units + col, element
                            )
                            first = first and not (other == largest or other != other)
                    if first:
                        total += load(g, out, element)
        store(dx, at, total, element)

    return body


def _pooled(
    x: DeviceArray, window: Window, largest: bool, start: float, factor: float
) -> DeviceArray:
    batch, height, width, units = x.shape
    places = window.positions(height, width)
    y = DeviceArray.empty((batch, *places, units), x.dtype)
    for_each(
        _pool(x.dtype, largest), x.dtype.type, batch * places[0] * places[1], units,
        x, y, window, height, width, *places, units, start, factor,
    )  # fmt: skip
    return y


def max_pool2d(x: DeviceArray, window: Window) -> DeviceArray:
    """See `numbadrop.kernels.max_pool2d`."""
    return _pooled(x, window, True, -np.inf, 1.0)


def avg_pool2d(x: DeviceArray, window: Window) -> DeviceArray:
    """See `numbadrop.kernels.avg_pool2d`."""
    return _pooled(x, window, False, 0.0, 1 / (window.height * window.width))


def max_pool2d_gradient(
    g: DeviceArray, x: DeviceArray, y: DeviceArray, window: Window
) -> DeviceArray:
    """See `numbadrop.kernels.max_pool2d_gradient`."""
    dx = DeviceArray.empty(x.shape, x.dtype)
    batch, height, width, units = x.shape
    for_each(
        _max_gradient(x.dtype), x.dtype.type, batch * height * width, units,
        g, dx, window, height, width, *g.shape[1:3], units, x, y,
    )  # fmt: skip
    return dx


def avg_pool2d_gradient(
    g: DeviceArray, shape: tuple[int, int, int, int], window: Window
) -> DeviceArray:
    """See `numbadrop.kernels.avg_pool2d_gradient`."""
    dx = DeviceArray.empty(shape, g.dtype)
    batch, height, width, units = shape
    factor = 1 / (window.height * window.width)
    for_each(
        _avg_gradient(g.dtype), g.dtype.type, batch * height * width, units,
        g, dx, window, height, width, *g.shape[1:3], units, factor,
    )  # fmt: skip
    return dx
