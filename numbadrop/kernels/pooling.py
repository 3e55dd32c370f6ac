"""Pooling: the largest or the mean of the pixels in a window that slides over images.

Images are (batch, height, width, units). Everything is done for all units of a pixel at a time,
which lie next to each other, so that the compiler's vectors serve windows of every shape.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import carray
from numpy.typing import ArrayLike

from numbadrop.address import address_of
from numbadrop.kernels.arrays import (
    Array,
    Pair,
    as_dense,
    check_alike,
    check_images,
    check_pair,
)
from numbadrop.kernels.device import cuda, empty, is_host
from numbadrop.kernels.elements import bytes_of
from numbadrop.kernels.jit import DONE, inner
from numbadrop.kernels.memory import (
    address_in,
    as_pointer,
    clear_bytes,
    first_of,
    keep_alive,
    load_index,
    words_behind,
)
from numbadrop.kernels.shares import share
from numbadrop.kernels.task import run_task

__all__ = [
    "Window",
    "avg_pool2d",
    "avg_pool2d_gradient",
    "max_pool2d",
    "max_pool2d_gradient",
]

_SERIAL_BELOW = 50_000
"""Elements that one thread passes about as fast as several."""


class Window(NamedTuple):
    """A window that slides over images; see `Window.of`."""

    height: int
    width: int
    stride_down: int
    stride_right: int
    padding_above: int
    """Also below."""
    padding_left: int
    """Also on the right."""

    @classmethod
    def of(cls, size: Pair, stride: Pair | None = None, padding: Pair = 0) -> Window:
        """Return the window that three arguments mean, as PyTorch understands them.

        Parameters
        ----------
        size : int or pair of int
            At least 1.
        stride : int or pair of int, optional
            At least 1; `size` if left out.
        padding : int or pair of int
            On both sides, at most half the size.

        Raises
        ------
        TypeError
            If an argument is neither an int nor a pair of ints.
        ValueError
            If a number is out of range.

        Examples
        --------
        >>> Window.of(3, (2, 1), 1)[2:]
        (2, 1, 1, 1)
        """
        sizes = check_pair("size", size, 1)
        strides = sizes if stride is None else check_pair("stride", stride, 1)
        paddings = check_pair("padding", padding, 0)
        if any(2 * p > n for p, n in zip(paddings, sizes, strict=True)):
            raise ValueError(f"padding must be in [0, size / 2], got {padding} with size {size}")
        return cls(*sizes, *strides, *paddings)

    def positions(self, height: int, width: int) -> tuple[int, int]:
        """Return how many places the window takes down and to the right on an image."""
        padded = height + 2 * self.padding_above, width + 2 * self.padding_left
        if min(height, width) < 1 or padded[0] < self.height or padded[1] < self.width:
            raise ValueError(
                f"x must have images that hold a window of {self.height} x {self.width} pixels, "
                f"got {height} x {width}, padded to {padded[0]} x {padded[1]}"
            )
        return (
            (padded[0] - self.height) // self.stride_down + 1,
            (padded[1] - self.width) // self.stride_right + 1,
        )


class _Reduction(NamedTuple):
    """What a window's result begins with, and is multiplied by in the end."""

    start: float
    factor: float


class _Images(NamedTuple):
    """Sizes of what comes in and what goes out, both with `units` to a pixel."""

    batch: int
    height: int
    width: int
    units: int
    out_height: int
    out_width: int


@inner
def _read_sizes(words):
    window = Window(
        load_index(words, 0), load_index(words, 1), load_index(words, 2),
        load_index(words, 3), load_index(words, 4), load_index(words, 5),
    )  # fmt: skip
    images = _Images(
        load_index(words, 6), load_index(words, 7), load_index(words, 8),
        load_index(words, 9), load_index(words, 10), load_index(words, 11),
    )  # fmt: skip
    return window, images


_SIZES = len(Window._fields) + len(_Images._fields)
"""Words that `_read_sizes` reads."""


@inner
def _inside(position, stride, padding, size, length):
    """Return the range of pixels of an axis that a window covers, its padding left out."""
    first = position * stride - padding
    return max(first, 0), min(first + size, length)


def _pool_part(task, part, parts):
    reduction = first_of(task)
    start, factor = reduction.start, reduction.factor
    words = words_behind(task)
    window, images = _read_sizes(words)
    x, y, largest = (
        load_index(words, _SIZES), load_index(words, _SIZES + 1), load_index(words, _SIZES + 2)
    )  # fmt: skip
    units = images.units
    pixel = units * bytes_of(start)
    rows = images.batch * images.out_height
    for out_row in range(share(rows, parts, part), share(rows, parts, part + 1)):
        image, i = out_row // images.out_height, out_row % images.out_height
        top, bottom = _inside(
            i, window.stride_down, window.padding_above, window.height, images.height
        )
        for j in range(images.out_width):
            left, right = _inside(
                j, window.stride_right, window.padding_left, window.width, images.width
            )
            out = y + (out_row * images.out_width + j) * pixel
            total = carray(as_pointer(start, out), units)
            total[:] = start
            for row in range(top, bottom):
                for column in range(left, right):
                    at = x + ((image * images.height + row) * images.width + column) * pixel
                    value = carray(as_pointer(start, at), units)
                    if largest != 0:
                        for k in range(units):
                            # NaN is the largest of all; both sides are computed: a branch on
                            # every element would keep the loop from being a vector's.
                            above = (value[k] > total[k]) | (value[k] != value[k])
                            total[k] = value[k] if above else total[k]
                    else:
                        for k in range(units):
                            total[k] += value[k]
            if factor != 1:
                for k in range(units):
                    total[k] *= factor
    return DONE


def _gradient_part(task, part, parts):
    reduction = first_of(task)
    zero, factor = reduction.start, reduction.factor
    words = words_behind(task)
    window, images = _read_sizes(words)
    # x and y, in which the largest is found once more, are 0 for a mean.
    g, dx, x, y = (
        load_index(words, _SIZES), load_index(words, _SIZES + 1),
        load_index(words, _SIZES + 2), load_index(words, _SIZES + 3),
    )  # fmt: skip
    height, width, units = images.height, images.width, images.units
    pixel = units * bytes_of(zero)
    line = width * pixel
    left_over = np.full(units, zero)
    elsewhere = np.full(units, zero)
    # A part owns rows of dx. A window that reaches into the rows of two parts is passed by both,
    # and each adds to its own: every element has one writer, and one order in which it is summed.
    row = share(images.batch * height, parts, part)
    last = share(images.batch * height, parts, part + 1)
    while row < last:
        image = row // height
        begin = row - image * height
        end = min(last - image * height, height)
        row += end - begin
        image_g = g + image * images.out_height * images.out_width * pixel
        image_y = y + image * images.out_height * images.out_width * pixel
        image_x, image_dx = x + image * height * line, dx + image * height * line
        cleared = begin
        for i in range(images.out_height):
            top, bottom = _inside(
                i, window.stride_down, window.padding_above, window.height, height
            )
            if bottom <= begin or top >= end:
                continue
            # Just before the sums, which then find the zeros in the nearest cache.
            reached = max(cleared, min(bottom, end))
            clear_bytes(image_dx + cleared * line, (reached - cleared) * line)
            cleared = reached
            for j in range(images.out_width):
                left, right = _inside(
                    j, window.stride_right, window.padding_left, window.width, width
                )
                out = (i * images.out_width + j) * pixel
                g_pixel = carray(as_pointer(zero, image_g + out), units)
                y_pixel = carray(as_pointer(zero, image_y + out), units)
                for k in range(units):
                    left_over[k] = factor * g_pixel[k]
                for r in range(top, bottom):
                    for c in range(left, right):
                        at = r * line + c * pixel
                        target = image_dx + at if begin <= r < end else address_in(elsewhere)
                        dx_pixel = carray(as_pointer(zero, target), units)
                        x_pixel = carray(as_pointer(zero, image_x + at), units)
                        if x != 0:
                            for k in range(units):
                                # Of equal ones the first takes it all.
                                hit = (x_pixel[k] == y_pixel[k]) | (x_pixel[k] != x_pixel[k])
                                dx_pixel[k] += left_over[k] if hit else zero
                                left_over[k] = zero if hit else left_over[k]
                        else:
                            for k in range(units):
                                dx_pixel[k] += left_over[k]
        clear_bytes(image_dx + cleared * line, (end - cleared) * line)
    keep_alive(elsewhere)
    return DONE


def _pool(x: ArrayLike, window: Window, start: float, factor: float, largest: bool) -> Array:
    x = as_dense(check_images("x", x))
    batch, height, width, units = x.shape
    places = window.positions(height, width)
    if not is_host(x):
        return cuda().max_pool2d(x, window) if largest else cuda().avg_pool2d(x, window)
    y = empty((batch, *places, units), x)
    run_task(
        _pool_part, x.dtype, _Reduction(start, factor),
        *window, *x.shape, *places, address_of(x), address_of(y), largest,
        parallel=x.size >= _SERIAL_BELOW,
    )  # fmt: skip
    return y


def _gradient(
    g: ArrayLike, shape: tuple[int, ...], window: Window, factor: float, *x_and_y: Array
) -> Array:
    g = check_images("g", g)
    batch, height, width, units = shape
    places = window.positions(height, width)
    if g.shape != (batch, *places, units):
        raise ValueError(f"g must have shape {(batch, *places, units)}, got {g.shape}")
    for name, array in zip("xy", x_and_y, strict=False):
        check_alike("g", g, name, array)
    if not is_host(g):
        return (
            cuda().max_pool2d_gradient(g, *x_and_y, window)
            if x_and_y
            else cuda().avg_pool2d_gradient(g, shape, window)
        )
    g, *others = map(as_dense, (g, *x_and_y))
    dx = empty(shape, g)
    run_task(
        _gradient_part, g.dtype, _Reduction(0.0, factor),
        *window, *shape, *places, *map(address_of, (g, dx, *others)), *[0] * (2 - len(others)),
        parallel=dx.size >= _SERIAL_BELOW,
    )  # fmt: skip
    return dx


def max_pool2d(x: ArrayLike, size: Pair, stride: Pair | None = None, padding: Pair = 0) -> Array:
    """Return the largest of the pixels in each window, for each unit.

    Parameters
    ----------
    x : array_like of float32 or float64, shape (batch, height, width, units)
        Any strides; a copy is made of what is not C-contiguous.
    size, stride, padding : int or pair of int
        Down and right, as for `torch.nn.MaxPool2d`: the stride is the size if it is left out, the
        padding is at most half the size and never the largest, and pixels at the end of an axis
        that fill no window take no part.

    Returns
    -------
    ndarray, shape (batch, out_height, out_width, units)
        ``out_height = (height + 2 padding - size) // stride + 1``. NaN where a window holds one.

    Raises
    ------
    TypeError, ValueError
        If a dtype or shape is another, a number is out of range, or no window fits an image.

    Examples
    --------
    >>> max_pool2d(np.arange(16.0).reshape(1, 4, 4, 1), 2)[0, ..., 0]
    array([[ 5.,  7.],
           [13., 15.]])
    """
    return _pool(x, Window.of(size, stride, padding), -np.inf, 1.0, largest=True)


def max_pool2d_gradient(
    g: ArrayLike,
    x: ArrayLike,
    y: ArrayLike,
    size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
) -> Array:
    """Return the gradient of x, of ``y = max_pool2d(x, size, stride, padding)``.

    The gradient of a window goes to its first pixel, row by row, that holds the largest value, or
    to the first NaN. Where windows overlap, gradients add up.

    Parameters
    ----------
    g, y : array_like of float32 or float64, shape (batch, out_height, out_width, units)
    x : array_like of the same dtype, shape (batch, height, width, units)
    size, stride, padding : int or pair of int
        As for `max_pool2d`.

    Returns
    -------
    ndarray, of the shape of x

    Raises
    ------
    TypeError, ValueError
        If a dtype, shape or number does not fit the others.

    Examples
    --------
    >>> x = np.array([1.0, 3.0, 3.0, 2.0]).reshape(1, 1, 4, 1)
    >>> y = max_pool2d(x, (1, 3), 1)
    >>> max_pool2d_gradient(np.ones_like(y), x, y, (1, 3), 1).ravel()
    array([0., 2., 0., 0.])
    """
    x, y = check_images("x", x), check_images("y", y)
    g = check_images("g", g)
    if g.shape != y.shape:
        raise ValueError(f"g must have the shape of y, {y.shape}, got {g.shape}")
    return _gradient(g, x.shape, Window.of(size, stride, padding), 1.0, x, y)


def avg_pool2d(x: ArrayLike, size: Pair, stride: Pair | None = None, padding: Pair = 0) -> Array:
    """Return the mean of the pixels in each window, for each unit.

    Parameters
    ----------
    x, size, stride, padding
        As for `max_pool2d`. Padding counts as pixels that are zero, as
        ``count_include_pad=True`` of `torch.nn.AvgPool2d`: every sum is divided by all of the size.

    Returns
    -------
    ndarray, shape (batch, out_height, out_width, units)

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d`.

    Examples
    --------
    >>> avg_pool2d(np.arange(16.0).reshape(1, 4, 4, 1), 2)[0, ..., 0]
    array([[ 2.5,  4.5],
           [10.5, 12.5]])
    """
    window = Window.of(size, stride, padding)
    return _pool(x, window, 0.0, 1 / (window.height * window.width), largest=False)


def avg_pool2d_gradient(
    g: ArrayLike,
    shape: tuple[int, int, int, int],
    size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
) -> Array:
    """Return the gradient of x, of ``avg_pool2d(x, size, stride, padding)``.

    Parameters
    ----------
    g : array_like of float32 or float64, shape (batch, out_height, out_width, units)
    shape : tuple of int
        That of x, which plays no other part.
    size, stride, padding : int or pair of int
        As for `avg_pool2d`.

    Returns
    -------
    ndarray, shape (batch, height, width, units)

    Raises
    ------
    TypeError, ValueError
        If a dtype, shape or number does not fit the others.

    Examples
    --------
    >>> avg_pool2d_gradient(np.ones((1, 1, 2, 1)), (1, 1, 3, 1), (1, 2), 1).ravel()
    array([0.5, 1. , 0.5])
    """
    if len(shape) != 4:
        raise ValueError(f"shape must be (batch, height, width, units), got {shape}")
    window = Window.of(size, stride, padding)
    return _gradient(g, shape, window, 1 / (window.height * window.width))
