"""Gathered convolutions: the product, one operand of which is the matrix of patches.

That matrix is nowhere: an element of it is a pixel of the images, and lies at the place of the
patch plus that of the tap and channel. Both are tables, made once for images of a shape.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbadrop.index_set import IndexSet
from numbadrop.kernels.cuda.array import DeviceArray
from numbadrop.kernels.cuda.gather import Layout, Operand
from numbadrop.kernels.cuda.operands import comes_in_vectors, indices, transposed
from numbadrop.kernels.cuda.product import Ending, Target, multiply
from numbadrop.kernels.geometry import Geometry, Taps

__all__ = ["conv2d_at", "gathered_conv2d", "gathered_conv2d_t"]

Axes = tuple[Geometry, Geometry]
Shape = tuple[int, ...]
_MOST_ELEMENTS = 2**29
"""Of images or weights: bytes are counted in 32 bits."""
"""Whose places are numbers of bytes, of at most 8 an element, in 32 bits."""


class _Patches(NamedTuple):
    """The patches of images: tables of places, each with how far down and along it lies."""

    positions: DeviceArray
    """Of int32, shape (3, batch * positions)."""
    depth: DeviceArray
    """Of int32, shape (3, taps * channels)."""
    order: tuple[int, ...]
    """Which tap of the kernel each is."""
    framed: bool
    """Whether a patch reaches over the border."""


def _table(
    place: NDArray[np.int64], down: NDArray[np.int64], along: NDArray[np.int64]
) -> DeviceArray:
    rows = [np.broadcast_to(row, place.shape).ravel() for row in (place, down, along)]
    return DeviceArray.from_host(np.stack(rows).astype(np.int32))


def _patches(shape: Shape, down: Taps, along: Taps, kernel_width: int) -> _Patches:
    batch, height, width, channels = shape
    if batch * height * width * channels > _MOST_ELEMENTS:
        raise ValueError(f"images on a GPU must have at most 2**29 elements, got shape {shape}")
    image = np.arange(batch)[:, None, None] * height
    y = np.arange(down.number)[:, None] * down.step
    x = np.arange(along.number) * along.step
    positions = _table(((image + y) * width + x) * channels, y, x)
    taps = [(a, b, i * kernel_width + j) for a, i in down.places for b, j in along.places]
    dy, dx, order = np.array(taps, np.int64).reshape(-1, 3).T[..., None]
    depth = _table((dy * width + dx) * channels + np.arange(channels), dy, dx)
    framed = bool(taps) and (down.leaves(height) or along.leaves(width))
    return _Patches(positions, depth, tuple(order.ravel().tolist()), framed)


@lru_cache(maxsize=64)
def _forward(shape: Shape, axes: Axes) -> _Patches:
    down, along = (axis.forward(size) for axis, size in zip(axes, shape[1:3], strict=True))
    return _patches(shape, down, along, axes[1].kernel)


@lru_cache(maxsize=64)
def _backward(
    shape: Shape, axes: Axes, size: tuple[int, int]
) -> list[tuple[_Patches, DeviceArray]]:
    """Return the patches of the gradient, and the pixels that they are summed for.

    The stride deals out the pixels among several such products.
    """
    found = []
    image = np.arange(shape[0])[:, None, None] * size[0]
    for down, along in product(axes[0].backward(size[0]), axes[1].backward(size[1])):
        y = (down.target + np.arange(down.number) * down.target_step)[:, None]
        x = along.target + np.arange(along.number) * along.target_step
        pixels = DeviceArray.from_host(((image + y) * size[1] + x).astype(np.int32).ravel())
        found.append((_patches(shape, down, along, axes[1].kernel), pixels))
    return found


@lru_cache(maxsize=64)
def _depth(order: tuple[int, ...], step: int, units: IndexSet | None, size: int) -> DeviceArray:
    """Return where the units of each tap lie, on an axis of `step` units a tap."""
    if step * (1 + max(order, default=0)) > _MOST_ELEMENTS:
        raise ValueError("weights of a convolution on a GPU must be at most 2**29")
    kept = np.arange(size) if units is None else units.indices
    places = np.array(order, np.int64)[:, None] * step + kept
    return DeviceArray.from_host(places.astype(np.int32).ravel())


def _images(x: DeviceArray, patches: _Patches, along_depth: bool) -> tuple[Operand, Layout]:
    """Describe the matrix of patches: positions times depth, or that transposed."""
    outer, depth = patches.positions, patches.depth
    if not along_depth:
        outer, depth = depth, outer
    height, width, channels = x.shape[1:]
    vector = not along_depth and comes_in_vectors(x, channels)
    layout = Layout(along_depth, vector, True, True, patches.framed)
    operand = Operand(
        x.address, outer.address, 1, outer.shape[1],
        depth.address, 1, height, width,
    )  # fmt: skip
    return operand, layout


def gathered_conv2d(
    x: DeviceArray, w: DeviceArray, in_channels: IndexSet | None, out_channels: IndexSet | None, *,
    axes: Axes, bias: DeviceArray | None, slope: float, scale: float, out: DeviceArray,
) -> DeviceArray:  # fmt: skip
    """See `numbadrop.kernels.gathered_conv2d`."""
    n_in, n_out = w.shape[2:]
    patches = _forward(x.shape, axes)
    taps = len(patches.order)
    # All channels of one tap lie behind those of the tap before.
    rows = None if in_channels is None else _depth(patches.order, n_in, in_channels, n_in)
    cols = out.shape[3]
    places = 0 if rows is None else rows.address
    weights = Operand(w.address, indices(out_channels), 1, cols, places, n_out)
    layout = Layout(
        False, out_channels is None and comes_in_vectors(w, n_out), out_channels is not None,
        in_channels is not None,
    )  # fmt: skip
    offset = 0 if bias is None else bias.address
    target = Target(out.address, 0, cols, 0, offset, slope, scale)
    ending = Ending(biased=bias is not None)
    depth = taps * x.shape[3]
    multiply(out.dtype, *_images(x, patches, True), weights, layout, target, ending, depth)
    return out


def gathered_conv2d_t(
    g: DeviceArray, w: DeviceArray, in_channels: IndexSet | None, out_channels: IndexSet | None, *,
    axes: Axes, out: DeviceArray,
) -> DeviceArray:  # fmt: skip
    """See `numbadrop.kernels.gathered_conv2d_t`."""
    n_in, n_out = w.shape[2:]
    cols = out.shape[3]
    layout = Layout(True, False, in_channels is not None, True)
    for patches, pixels in _backward(g.shape, axes, out.shape[1:3]):
        places = _depth(patches.order, n_in * n_out, out_channels, n_out)
        weights = Operand(w.address, indices(in_channels), n_out, cols, places.address, 1)
        target = Target(out.address, pixels.address, cols, 0, 0, 1.0, 1.0)
        depth = len(patches.order) * g.shape[3]
        ending = Ending(rows_gathered=True)
        multiply(out.dtype, *_images(g, patches, True), weights, layout, target, ending, depth)
    return out


def conv2d_at(x: DeviceArray, g: DeviceArray, *, axes: Axes, out: DeviceArray) -> DeviceArray:
    """See `numbadrop.kernels.conv2d_at`."""
    patches, gradient = _forward(x.shape, axes), g.reshape(-1, g.shape[3])
    target = Target(out.address, 0, g.shape[3], 0, 0, 1.0, 1.0)
    images = _images(x, patches, False)
    multiply(out.dtype, *images, *transposed(gradient), target, Ending(), len(gradient))
    return out
