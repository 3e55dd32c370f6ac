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
from numbadrop.kernels.cuda.memory import VECTOR_BYTES, copier, load, wide_product

__all__ = ["PADDING", "Layout", "Loader", "Operand", "loader", "place"]

PADDING = 16
"""Bytes between the rows of a tile in shared memory: without them, what a warp transposes on its
way would fall into few of the 32 banks."""
_TRANSPOSED_LANES = 8
"""Threads side by side along the depth, of a tile that is transposed: what they read are whole
sectors of 32 bytes, and with the padding, what a warp writes falls into all banks."""
_LANES = 32
"""Threads side by side along the outer axis, of one that is not: a warp has one index of depth."""

_TOGETHER = 4
"""Copies that a thread starts in a row: ptxas puts three instructions before each such row."""


class Layout(NamedTuple):
    """How an operand lies in memory, as far as a kernel is compiled for it."""

    along_depth: bool
    """Whether neighbours in memory are neighbours along the depth, else along the outer axis."""
    vector: bool = False
    """Whether they are copied 16 bytes at a time: that is the outer axis, it is dense, and every
    other place, its own length and the address of the data are multiples of that."""
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
    """Find the places that do not depend on the depth, and look ahead to the first ones that do."""
    fetch: Callable[..., Any]
    """Start to copy the share of the tile at a depth to shared memory, in which the outer axis is
    the dense one."""
    fetch_some: Callable[..., Any]
    """The same in steps, one for each element of the depth."""
    look_ahead: Callable[..., Any]
    """Read the places of the tile that is fetched next: they are there when they are needed."""
    fixed: int
    """Numbers that do not depend on the depth."""
    ahead: int
    """Numbers that do."""


@device_function
def _strided(units, stride, i):
    return i * stride


@device_function
def _gathered(units, stride, i):
    return load(units, i, np.int32) * stride


def place(gathered: bool) -> Any:
    """Return the device function ``f(units, stride, i)``, the place of an index of an axis."""
    return _gathered if gathered else _strided


def _lanes(layout: Layout, width: int, outer: int, depth: int, threads: int) -> tuple[int, int]:
    """Return how many threads stand side by side, along the outer axis and along the depth."""
    if layout.along_depth:
        along = min(depth, _TRANSPOSED_LANES)
    else:
        along = min(threads // min(outer // width, _LANES), depth)
    across = threads // along
    if along * across != threads or depth % along or outer % (across * width):
        raise ValueError(f"{threads} threads cannot share a tile of {outer} x {depth} evenly")
    return across, along


@cache
def loader(layout: Layout, dtype: np.dtype[Any], outer: int, depth: int, threads: int) -> Loader:
    """Make the loader of tiles of `outer` by `depth` elements."""
    along_depth, is_vector, _, depth_gathered, framed = layout
    width = VECTOR_BYTES // dtype.itemsize if is_vector else 1
    across, along = _lanes(layout, width, outer, depth, threads)
    outers, depths = outer // (across * width), depth // along
    tables = 3 if framed else 1
    pitch = outer + PADDING // dtype.itemsize
    outer_place = place(layout.outer_gathered)
    copies = outers * depths
    copies_a_step = max(-(-copies // depth), _TOGETHER)
    copy = copier(width)

    @device_function
    def lanes(thread):
        if along_depth:
            return thread // np.int32(along), thread % np.int32(along)
        return thread % np.int32(across), thread // np.int32(across)

    @device_function
    def look_ahead(operand, thread, at, end, count, ahead):
        if depth_gathered:
            _, depth_lane = lanes(thread)
            for q in range(depths):
                # What lies behind the end is not read, but its place is.
                k = min(np.int32(at + depth_lane + q * along), np.int32(end - 1))
                for t in range(tables):
                    ahead[t * depths + q] = load(operand.depth_units, t * count + k, np.int32)

    @device_function
    def begin(operand, thread, first, at, end, count, fixed, ahead):
        outer_lane, _ = lanes(thread)
        for p in range(outers):
            o = first + (outer_lane + p * across) * width
            # What lies behind the last is read again, for elements that nobody stores.
            o = min(np.int32(o), np.int32(operand.outer_count - width))
            fixed[p] = outer_place(operand.outer_units, operand.outer_stride, o)
            for t in range(1, tables):
                o += operand.outer_count
                fixed[t * outers + p] = load(operand.outer_units, o, np.int32)
        look_ahead(operand, thread, at, end, count, ahead)

    @device_function
    def fetch_one(operand, thread, at, end, fixed, ahead, shared, to, p, q):
        outer_lane, depth_lane = lanes(thread)
        k = np.int32(at + depth_lane + q * along)
        inside = k < end
        index = ahead[q] if depth_gathered else k
        if framed:
            y = np.uint32(fixed[outers + p] + ahead[depths + q])
            x = np.uint32(fixed[2 * outers + p] + ahead[2 * depths + q])
            # Behind the upper and the left border they are negative: as unsigned, very large.
            inside &= (y < np.uint32(operand.height)) & (x < np.uint32(operand.width))
            far, near = np.int32(fixed[p] + index), np.int32(0)
        elif along_depth:
            far, near = fixed[p], index
        else:
            far = wide_product(index, np.int32(operand.depth_stride))
            near = np.int32(fixed[p])
        to += depth_lane * pitch + outer_lane * width
        copy(shared, to + q * along * pitch + p * across * width, operand.data, far, near, inside)

    @device_function
    def fetch(operand, thread, at, end, fixed, ahead, shared, to):
        for q in range(depths):
            for p in range(outers):
                fetch_one(operand, thread, at, end, fixed, ahead, shared, to, p, q)

    @device_function
    def fetch_some(operand, thread, at, end, fixed, ahead, shared, to, step):
        for i in range(copies_a_step):
            c = step * copies_a_step + i
            if c < copies:
                p, q = c % outers, c // outers
                fetch_one(operand, thread, at, end, fixed, ahead, shared, to, p, q)

    return Loader(begin, fetch, fetch_some, look_ahead, tables * outers, tables * depths)
