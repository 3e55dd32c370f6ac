"""The way of an operand into shared memory: what is gathered is gathered on this way.

An operand is a matrix of an outer axis, that of the rows or columns of the product, and the depth.
Its element (o, k) lies at ``data[place(o) + place(k)]``: an axis is either a stride, or a vector of
indices times one. Transposing swaps the two, dropout indexes them, and a convolution's patches
are ``pixel[o] + tap[k]``; those that leave the image are zero.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from numbadrop.kernels.cuda.jit import device_function
from numbadrop.kernels.cuda.memory import (
    VECTOR_BYTES,
    copy_vector,
    load,
    load_vector,
    store_shared,
)

__all__ = ["PADDING", "Layout", "Loader", "Operand", "loader", "place"]

PADDING = 16
"""Bytes between the rows of a tile in shared memory: without them, what a warp transposes on its
way would fall into few of the 32 banks."""


class Layout(NamedTuple):
    """How an operand lies in memory, as far as a kernel is compiled for it."""

    along_depth: bool
    """Whether neighbours in memory are neighbours along the depth, else along the outer axis."""
    vector: bool = False
    """Whether they are read 16 bytes at a time: that axis is dense, and every other place, its own
    length and the address of the data are multiples of that."""
    outer_gathered: bool = False
    depth_gathered: bool = False
    framed: bool = False
    """Whether both axes lead over the border of an image, behind which elements are zero."""


class Operand(NamedTuple):
    """An operand as its kernel takes it: addresses, and numbers of elements.

    An axis that is not gathered has 0 for indices. Those of a framed operand, int32, are three
    for each element of the axis: its place, and how far down and along it lies in the image.
    """

    data: Any
    outer_units: Any
    outer_stride: int
    outer_count: int
    depth_units: Any
    depth_stride: int
    height: int = 0
    width: int = 0


class Loader(NamedTuple):
    """The steps of a thread on the way of its share of a tile, as device functions."""

    begin: Callable[..., Any]
    """Find the places that do not depend on the depth."""
    fetch: Callable[..., Any]
    """Read the share of the tile at a depth into registers."""
    put: Callable[..., Any]
    """Write it to shared memory, in which the outer axis is the dense one."""
    held: int
    """Elements of a thread's share."""
    fixed: int
    """Numbers that `begin` finds."""


@device_function
def _strided(units, stride, i):
    return i * stride


@device_function
def _gathered(units, stride, i):
    return load(units, i, np.int32) * stride


def place(gathered: bool) -> Any:
    """Return the device function ``f(units, stride, i)``, the place of an index of an axis."""
    return _gathered if gathered else _strided


@cache
def loader(layout: Layout, dtype: np.dtype[Any], outer: int, depth: int, threads: int) -> Loader:
    """Make the loader of tiles of `outer` by `depth` elements."""
    along_depth, is_vector, _, _, framed = layout
    element = dtype.type
    width = VECTOR_BYTES // dtype.itemsize if is_vector else 1
    lanes, others = (depth, outer) if along_depth else (outer, depth)
    lanes //= width
    step = threads // lanes
    passes = others // step
    if passes * step * lanes * width != outer * depth:
        raise ValueError(f"{threads} threads cannot share a tile of {outer} x {depth} evenly")
    places, outer_run, depth_run = (passes, 1, width) if along_depth else (1, width, 1)
    pitch = outer + PADDING // dtype.itemsize
    outer_place, depth_place = place(layout.outer_gathered), place(layout.depth_gathered)

    @device_function
    def begin(operand, thread, first, fixed):
        for p in range(places):
            if along_depth:
                o = first + thread // lanes + p * step
            else:
                o = first + thread % lanes * width
            # What lies behind the last is read again, for elements that nobody stores.
            o = min(np.int32(o), np.int32(operand.outer_count - outer_run))
            fixed[p] = outer_place(operand.outer_units, operand.outer_stride, o)
            if framed:
                down = operand.outer_count + o
                fixed[places + p] = load(operand.outer_units, down, np.int32)
                along = down + operand.outer_count
                fixed[2 * places + p] = load(operand.outer_units, along, np.int32)

    @device_function
    def fetch(operand, thread, at, end, count, fixed, held):
        for p in range(passes):
            if along_depth:
                k, f = at + thread % lanes * width, p
            else:
                k, f = at + thread // lanes + p * step, 0
            # Read or not, there is no branch: the place is one that exists, the value may be zero.
            k = np.int32(k)
            inside = k < end
            k = min(k, np.int32(end - depth_run))
            index = fixed[f] + depth_place(operand.depth_units, operand.depth_stride, k)
            if framed:
                y = load(operand.depth_units, count + k, np.int32)
                x = load(operand.depth_units, 2 * count + k, np.int32)
                y, x = np.int32(fixed[places + f] + y), np.int32(fixed[2 * places + f] + x)
                inside &= (y >= 0) & (y < np.int32(operand.height))
                inside &= (x >= 0) & (x < np.int32(operand.width))
                index = np.int32(index)
                index = index if inside else 0
            if is_vector:
                load_vector(held, p * width, operand.data, index)
            else:
                held[p] = load(operand.data, index, element)
            for v in range(width):
                held[p * width + v] = held[p * width + v] if inside else element(0)

    @device_function
    def put(held, thread, shared, at):
        for p in range(passes):
            if along_depth:
                k, o = thread % lanes * width, thread // lanes + p * step
                for v in range(width):
                    store_shared(shared, at + (k + v) * pitch + o, held[p * width + v])
            else:
                k, o = thread // lanes + p * step, thread % lanes * width
                if is_vector:
                    copy_vector(shared, at + k * pitch + o, held, p * width)
                else:
                    store_shared(shared, at + k * pitch + o, held[p])

    return Loader(begin, fetch, put, passes * width, 3 * places if framed else places)
