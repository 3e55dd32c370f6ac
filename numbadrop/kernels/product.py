"""The product C = f(A B) or C += f(A B) as loops around packing and the register tile.

A is read where it lies, by address and two strides. B is gathered while it is packed. C is a
block of rows and columns of an array. Forward pass, input gradient and weight gradient, dense or
gathered, differ in their operands alone.

f is the epilogue, which a tile passes through while it is still in the nearest cache:
``f(v) = scale rectify(v + bias)``, where ``rectify(v) = v if v > 0 else slope v``. It is a whole
layer with ReLU and dropout, and also the factor of a scatter.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import carray, types

from numbadrop.kernels.elements import MACHINE, bytes_of, lanes
from numbadrop.kernels.jit import inlined, inner, native_kernel
from numbadrop.kernels.memory import (
    as_address,
    as_pointer,
    first_of,
    keep_alive,
    load,
    load_index,
    store,
)
from numbadrop.kernels.packing import MOST_UNITS, Matrix, pack, workspace, workspace_bytes
from numbadrop.kernels.tile import register_tile
from numbadrop.kernels.windows import Axis, add_spread, find_spread, offset, unit

__all__ = ["Epilogue", "Product", "Strided", "multiply", "native_multiply", "share"]

_CACHE_LINE = 64
_DEPTH_BLOCK = 320
"""The greatest depth of a panel: it and the rows of A that meet it share the nearest caches."""
_GROUP_BYTES = 1 << 20
"""Most bytes of A that all panels pass before others come: they must stay in L2."""


class Strided(NamedTuple):
    """An operand that is read where it lies, or from a copy that has become as simple."""

    address: int
    row: int
    """Bytes from one row to the next."""
    depth: int
    """Bytes from one element of the depth to the next."""


class Epilogue(NamedTuple):
    """The factors of ``f(v) = scale (v + bias if v + bias > 0 else slope (v + bias))``."""

    slope: float
    scale: float
    """Its type is the element type of the operands."""


class Product(NamedTuple):
    """A product to compute: ``C = f(A B)`` or, with `scatter`, ``C += f(A B)``."""

    epilogue: Epilogue
    bias: int
    """Address of one number for each unit of the columns of B, or 0 where there is none."""
    rows: int
    cols: int
    depth: int
    scatter: bool
    a: Strided
    b: Matrix
    c: Matrix


@inner
def _align(address, step):
    return (address + step - 1) // step * step


@inner
def share(total, parts, number):
    """Return where part `number` of `total` things begins, the parts as equal as can be."""
    return total * number // parts


@inner
def _finish_tile(epilogue, tile, pitch, rows, columns, bias):
    """Apply the epilogue to a tile where it lies; `bias` is an array."""
    slope, scale = epilogue.slope, epilogue.scale
    for i in range(rows):
        row = carray(as_pointer(scale, tile + i * pitch), columns)
        for j in range(columns):
            value = row[j] + bias[j]
            row[j] = scale * (value if value > 0 else slope * value)


@inner
def _read_tile(alpha, tile, pitch, rows, columns, c, i0, j0):
    """Fetch from C the sums of a tile that has been begun."""
    for i in range(rows):
        row = c.address + offset(c.rows, i0 + i)
        for j in range(columns):
            value = load(alpha, row + offset(c.cols, j0 + j))
            store(tile + i * pitch + j * bytes_of(alpha), value)


@inner
def _write_tile(alpha, tile, pitch, rows, columns, c, i0, j0, scatter, registers, table):
    """Bring a finished tile to its place in C: ``C = tile`` or ``C += tile``.

    With `registers`, it is added so many registers at a time.
    """
    if registers > 0:
        column = c.address + offset(c.cols, j0)
        for i in range(rows):
            add_spread(alpha, column + offset(c.rows, i0 + i), tile + i * pitch, registers, table)
        return
    size = bytes_of(alpha)
    for i in range(rows):
        row = c.address + offset(c.rows, i0 + i)
        for j in range(columns):
            value = load(alpha, tile + i * pitch + j * size)
            target = row + offset(c.cols, j0 + j)
            if scatter:
                value = load(alpha, target) + value
            store(target, value)


@inlined
def multiply(product, i_first, i_last, j_first, j_last):
    """Compute rows [i_first, i_last) and columns [j_first, j_last) of C on the calling thread.

    `j_first` is a multiple of the lanes.
    """
    epilogue, depth, scatter, a, b, c = (
        product.epilogue, product.depth, product.scatter, product.a, product.b, product.c
    )  # fmt: skip
    alpha = epilogue.scale
    finish = product.bias != 0 or epilogue.slope != 1 or epilogue.scale != 1
    size = bytes_of(alpha)
    wide = lanes(alpha)
    columns = j_last - j_first
    rows = i_last - i_first
    if columns <= 0 or rows <= 0:
        return
    # One block of no depth makes zeros.
    blocks = max(1, (depth + _DEPTH_BLOCK - 1) // _DEPTH_BLOCK)
    block = (depth + blocks - 1) // blocks
    width = MACHINE.tile_vectors * wide
    # Zeros, because what stands behind the last column is multiplied too (and thrown away):
    # arbitrary bytes can be denormal numbers, which some CPUs multiply a hundred times slower.
    work_memory = np.zeros(workspace_bytes(), np.uint8)
    work = workspace(work_memory.ctypes.data)
    # Rows of a panel begin on cache lines; packing may write `wide` rows more.
    panel_memory = np.empty((block + wide) * width * size + _CACHE_LINE, np.uint8)
    panel = _align(panel_memory.ctypes.data, _CACHE_LINE)
    # A tile of whole registers goes to a dense C directly; all others pass through `edge`.
    direct = not scatter and c.cols.stride == size and c.cols.indices == 0 and c.rows.indices == 0
    edge_row = width * size
    edge_memory = np.empty(MACHINE.tile_rows * edge_row + _CACHE_LINE, np.uint8)
    edge = _align(edge_memory.ctypes.data, _CACHE_LINE)
    bias = np.full(width, alpha)  # of the type of alpha
    bias[:] = 0

    vectors = (columns + wide - 1) // wide
    panels = (vectors + MACHINE.tile_vectors - 1) // MACHINE.tile_vectors
    groups = max(1, (rows * block * size + _GROUP_BYTES - 1) // _GROUP_BYTES)
    # Where the depth of A lies across memory, every element of a tile's column would come from a
    # cache line of its own, again for each panel: strips as high as a tile are packed instead.
    packed = a.depth != size and a.row == size and panels > 1
    # What a register holds too much the next row overwrites, unless a row takes several registers.
    strip_row = MACHINE.tile_rows * size
    if strip_row > MACHINE.vector_bytes:
        strip_row = _align(strip_row, MACHINE.vector_bytes)
    most_tiles = rows // groups // MACHINE.tile_rows + 2 if packed else 0
    strips_memory = np.empty(
        most_tiles * block * strip_row + MACHINE.vector_bytes + _CACHE_LINE, np.uint8
    )
    strips = _align(strips_memory.ctypes.data, _CACHE_LINE)

    # Loop 1: rows of A and C, a group at a time.
    for group in range(groups):
        i_group = i_first + share(rows, groups, group)
        group_rows = i_first + share(rows, groups, group + 1) - i_group
        tiles = (group_rows + MACHINE.tile_rows - 1) // MACHINE.tile_rows
        # Loop 2: depth of A and B, a block at a time.
        for n in range(blocks):
            k0 = share(depth, blocks, n)
            deep = share(depth, blocks, n + 1) - k0
            begun = n > 0 and not scatter
            last = n == blocks - 1
            if packed:
                across = Matrix(a.address, Axis(a.depth, depth, 0), Axis(size, product.rows, 0))
                for t in range(tiles):
                    r0, r1 = share(group_rows, tiles, t), share(group_rows, tiles, t + 1)
                    strip = strips + t * block * strip_row
                    pack(alpha, strip, strip_row, across, k0, deep, i_group + r0, r1 - r0, work)
            # Loop 3: columns of B and C, a panel at a time.
            for p in range(panels):
                v0 = share(vectors, panels, p)
                thick = share(vectors, panels, p + 1) - v0
                panel_row = thick * wide * size
                j0 = j_first + v0 * wide
                filled = min(thick * wide, j_last - j0)
                in_place = direct and filled == thick * wide
                if product.bias != 0:
                    for j in range(filled):
                        bias[j] = load(alpha, product.bias + unit(b.cols, j0 + j) * size)
                pack(alpha, panel, panel_row, b, k0, deep, j0, filled, work)
                registers = 0
                if scatter and c.cols.stride == size:
                    span = unit(c.cols, j0 + filled - 1) - unit(c.cols, j0) + 1
                    if span <= MOST_UNITS * wide:
                        registers = find_spread(
                            alpha, c.cols, j0, j0 + filled, thick * wide, work.table
                        )
                # Loop 4: rows of A and C, a register tile at a time.
                for t in range(tiles):
                    r0 = share(group_rows, tiles, t)
                    high = share(group_rows, tiles, t + 1) - r0
                    i0 = i_group + r0
                    if packed:
                        rows_of_a = Strided(strips + t * block * strip_row, size, strip_row)
                    else:
                        rows_of_a = Strided(a.address + i0 * a.row + k0 * a.depth, a.row, a.depth)
                    target, target_row = edge, edge_row
                    if in_place:
                        target = c.address + i0 * c.rows.stride + j0 * size
                        target_row = c.rows.stride
                    elif begun:
                        _read_tile(alpha, target, target_row, high, filled, c, i0, j0)
                    register_tile(
                        alpha, high, thick, deep,
                        rows_of_a.address, rows_of_a.row, rows_of_a.depth,
                        panel, target, target_row, begun,
                    )  # fmt: skip
                    if finish and (last or scatter):
                        _finish_tile(epilogue, target, target_row, high, thick * wide, bias)
                    if not in_place:
                        _write_tile(
                            alpha, target, target_row, high, filled, c, i0, j0, scatter,
                            registers, work.table,
                        )  # fmt: skip
    keep_alive(strips_memory)
    keep_alive(work_memory)
    keep_alive(panel_memory)
    keep_alive(edge_memory)


@inner
def _grid(threads, rows, columns, wide):
    """Split `threads` into (across rows, across columns) so that the busiest part is smallest.

    Columns are cut first, since every part of the rows packs B again.
    """
    best_rows = 1
    best = np.inf
    for across_rows in range(1, threads + 1):
        if threads % across_rows == 0:
            across_columns = threads // across_rows
            part = -(-columns // (across_columns * wide)) * (-(-rows // across_rows) + 16)
            if part < best:
                best = part
                best_rows = across_rows
    return best_rows


@inner
def _read_axis(words, at):
    return Axis(load_index(words, at), load_index(words, at + 1), load_index(words, at + 2))


@inner
def _read_matrix(words, at):
    return Matrix(load_index(words, at), _read_axis(words, at + 1), _read_axis(words, at + 4))


def _multiply_part(task, part, parts):
    epilogue = first_of(task)
    words = as_address(task) + len(epilogue) * bytes_of(epilogue.scale)
    rows = load_index(words, 1)
    cols = load_index(words, 2)
    product = Product(
        epilogue, load_index(words, 0), rows, cols, load_index(words, 3),
        load_index(words, 4) != 0,
        Strided(load_index(words, 5), load_index(words, 6), load_index(words, 7)),
        _read_matrix(words, 8),
        _read_matrix(words, 15),
    )  # fmt: skip
    wide = lanes(epilogue.scale)
    vectors = (cols + wide - 1) // wide
    across_rows = _grid(parts, rows, cols, wide)
    across_cols = parts // across_rows
    row = part // across_cols
    col = part % across_cols
    multiply(
        product,
        share(rows, across_rows, row),
        share(rows, across_rows, row + 1),
        share(vectors, across_cols, col) * wide,
        min(share(vectors, across_cols, col + 1) * wide, cols),
    )


@cache
def native_multiply(element: Any) -> Any:
    """Return the native kernel for one element type; a task is the words of a `Product`."""
    first = types.NamedUniTuple(element, len(Epilogue._fields), Epilogue)
    return native_kernel(_multiply_part, first)
