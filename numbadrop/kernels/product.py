"""The product C = f(A B) or C += f(A B) as loops around packing and the register tile.

A is read where it lies, by address and two strides, or from a copy if its rows are far apart. B is
gathered while it is packed; a dense one that a single tile meets is read where it lies, too. C is a
block of rows and columns of an array. Forward pass, input gradient and weight gradient, dense or
gathered, differ in their operands alone. f is the `epilogue`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from numbadrop.kernels.elements import MACHINE, bytes_of, lanes
from numbadrop.kernels.epilogue import Epilogue, finish_tile, is_plain, list_bias
from numbadrop.kernels.jit import inlined, inner
from numbadrop.kernels.memory import (
    CACHE_LINE,
    add_elements,
    array_data,
    array_length,
    array_stride,
    clear_bytes,
    copy_bytes,
    copy_elements,
    first_of,
    keep_alive,
    load,
    load_index,
    stack_memory,
    store,
    words_behind,
)
from numbadrop.kernels.packing import MOST_UNITS, WORKSPACE_BYTES, Matrix, pack, workspace
from numbadrop.kernels.places import PLACES, PLACES_BYTES, list_places
from numbadrop.kernels.prefetch import REQUESTS_BYTES, ahead_of, list_requests
from numbadrop.kernels.tile import register_tile, request_bytes
from numbadrop.kernels.windows import (
    Axis,
    add_spread,
    find_spread,
    note_sources,
    offset,
    unit,
)

__all__ = [
    "Product",
    "Strided",
    "align",
    "begin_of",
    "full_parts",
    "multiply",
    "multiply_part",
    "share",
    "split",
]

_ROW_BYTES = MACHINE.tile_vectors * MACHINE.vector_bytes
_TILE_BYTES = MACHINE.tile_rows * _ROW_BYTES
"""Of the largest register tile."""
_DEPTH_BLOCK = 512
"""The greatest depth of a panel: it and the rows of A that meet it share the nearest caches."""
_GROUP_BYTES = 1 << 21
"""Most bytes of A that all panels pass before others come and B is packed again: half of it and
four times as much are slower, although it is twice the L2 of the CPU that this was measured on."""
_NEAR_BYTES, _NEAR_SUM_BYTES = 1 << 20, 1 << 22
"""Most bytes of a B, and of a C that is added to, which are not prefetched: where a core's own
cache holds its share, that takes longer than what it saves."""
_COPY_FROM_BYTES = 1 << 18
_COPY_FROM_PANELS = 8
"""From these on it pays to bring the rows of A together in memory."""

_GATHER_ROWS, _COPY_ROWS = 16, 6
"""To gather a panel, or to copy it, takes as long as to multiply it by so many rows."""
_MEETING_STEPS = 200
"""A row whose cache line two threads write costs as much as so many vectors of multiply-adds, or
much less: as near as the two CPUs are at the time."""


class Strided(NamedTuple):
    """An operand that is read where it lies, or from a copy that has become as simple."""

    address: int
    row: int
    """Bytes from one row to the next."""
    depth: int
    """Bytes from one element of the depth to the next."""


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
def align(address, step):
    """Return the first multiple of `step` that is not below `address`."""
    return (address + step - 1) // step * step


class Split(NamedTuple):
    """How things are shared out into parts, as equal as can be.

    A division takes tens of cycles: it stands outside of a tile's loop.
    """

    least: int
    longer: int
    """So many parts, the first ones, have one more."""


@inner
def split(total, parts):
    """Return how `total` things are shared out."""
    return Split(total // parts, total % parts)


@inner
def begin_of(parts, number):
    """Return where a part begins, by its number."""
    return number * parts.least + min(number, parts.longer)


@inner
def full_parts(parts, number):
    """Return how many of so many parts, the first ones, are tiles of the greatest height."""
    if parts.least == MACHINE.tile_rows:
        return number
    return parts.longer if parts.least + 1 == MACHINE.tile_rows else 0


@inner
def share(total, parts, number):
    """Return where part `number` of `total` things begins."""
    return begin_of(split(total, parts), number)


@inner
def _copy_rows(target, pitch, a, rows, row_bytes):
    """Bring rows of A, dense along the depth, together."""
    for i in range(rows):
        copy_bytes(target + i * pitch, a.address + i * a.row, row_bytes)


@inner
def _read_tile(alpha, tile, pitch, rows, columns, c, i0, j0):
    """Fetch from C, all of its columns, the sums of a tile that has been begun."""
    size = bytes_of(alpha)
    for i in range(rows):
        row = c.address + offset(c.rows, i0 + i)
        if c.cols.stride == size:
            copy_elements(alpha, tile + i * pitch, row + j0 * size, columns)
            continue
        for j in range(columns):
            store(tile + i * pitch + j * size, load(alpha, row + (j0 + j) * c.cols.stride))


@inner
def _bytes_of_all(alpha, matrix):
    """Return the size of a matrix, with what is not kept."""
    return matrix.rows.size * matrix.cols.size * bytes_of(alpha)


@inner
def _panel_ahead(alpha, b, k0, depth, j0, columns, step):
    """Return what a panel will be packed from."""
    size = bytes_of(alpha)
    row, col = offset(b.rows, k0), offset(b.cols, j0)
    if b.cols.stride == size:
        length = offset(b.cols, j0 + columns - 1) - col + size
        return ahead_of(b.address + col, b.rows, k0, depth, length, step)
    length = offset(b.rows, k0 + depth - 1) - row + size
    return ahead_of(b.address + row, b.cols, j0, columns, length, step)


@inner
def _write_tile(alpha, tile, pitch, rows, columns, c, i0, j0, scatter):
    """Bring a finished tile to its place: ``C = tile``, all columns kept, or ``C += tile``."""
    size = bytes_of(alpha)
    side_by_side = c.cols.stride == size and c.cols.indices == 0
    for i in range(rows):
        row = c.address + offset(c.rows, i0 + i)
        if side_by_side and scatter:
            add_elements(alpha, row + j0 * size, tile + i * pitch, columns)
            continue
        if side_by_side:
            copy_elements(alpha, row + j0 * size, tile + i * pitch, columns)
            continue
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
    # Counted in bytes: `size`, strides, and all that ends in _row, _step or _bytes. In registers:
    # `vectors`, `v0`, `thick`. In elements: the rest.
    epilogue, depth, scatter, a, b, c = (
        product.epilogue, product.depth, product.scatter, product.a, product.b, product.c
    )  # fmt: skip
    alpha = epilogue.scale
    finish = not is_plain(epilogue, product.bias)
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
    work = workspace(stack_memory(WORKSPACE_BYTES))
    # A tile goes to a dense C directly; else it passes through `edge`. So does one that is finished
    # at once: its way from there writes C once, of which two threads may share a cache line.
    direct = not scatter and c.cols.stride == size and c.cols.indices == 0 and c.rows.indices == 0
    edge = stack_memory(_TILE_BYTES)
    edge_row = width * size
    # Where the rows of a tile begin, in A, in C and in `edge`, and where its sums are made; and the
    # start of the one run of the depth.
    a_places, c_places = stack_memory(PLACES_BYTES), stack_memory(PLACES_BYTES)
    edge_places = stack_memory(PLACES_BYTES)
    list_places(edge_places, edge, edge_row)
    sums = c_places if direct and (blocks > 1 or not finish) else edge_places
    requests = stack_memory(REQUESTS_BYTES)
    one_run = stack_memory(8)
    store(one_run, 0)
    bias = stack_memory(_ROW_BYTES)
    clear_bytes(bias, _ROW_BYTES)

    vectors = (columns + wide - 1) // wide
    panels = (vectors + MACHINE.tile_vectors - 1) // MACHINE.tile_vectors
    panel_split = split(vectors, panels)
    groups = max(1, (rows * block * size + _GROUP_BYTES - 1) // _GROUP_BYTES)
    # Where the depth of A lies across memory, every element of a tile's column would come from a
    # cache line of its own, again for each panel: strips as high as a tile are packed instead.
    packed = a.depth != size and a.row == size and panels > 1
    # A panel that one tile meets is a copy for nothing, unless units have to be brought together.
    used_once = (
        rows <= MACHINE.tile_rows
        and b.cols.stride == size
        and b.cols.indices == 0
        and b.rows.indices == 0
    )
    # What lies near, or will not be packed, is not prefetched.
    b_far = _bytes_of_all(alpha, b) > _NEAR_BYTES and not used_once
    c_far = scatter and _bytes_of_all(alpha, c) > _NEAR_SUM_BYTES
    # What a register holds too much the next row overwrites, unless a row takes several registers.
    strip_row = MACHINE.tile_rows * size
    if strip_row > MACHINE.vector_bytes:
        strip_row = align(strip_row, MACHINE.vector_bytes)
    # Rows that are far apart share few sets of a cache, and would push each other out of it.
    copied = (
        a.depth == size and rows * block * size >= _COPY_FROM_BYTES and panels >= _COPY_FROM_PANELS
    )
    copy_row = block * size + CACHE_LINE
    most_rows = rows // groups + 1 + MACHINE.tile_rows
    a_copy_bytes = most_rows * copy_row if copied else 0
    if packed:
        strips = most_rows // MACHINE.tile_rows + 1
        a_copy_bytes = strips * block * strip_row + MACHINE.vector_bytes
    # Rows of a panel begin on cache lines; packing may write `wide` rows more.
    panel_bytes = align((block + wide) * width * size, CACHE_LINE)
    memory = np.empty(CACHE_LINE + panel_bytes + a_copy_bytes, np.uint8)
    panel = align(memory.ctypes.data, CACHE_LINE)
    a_copy = panel + panel_bytes

    # Loop 1: rows of A and C, a group at a time.
    for group in range(groups):
        i_group = i_first + share(rows, groups, group)
        group_rows = i_first + share(rows, groups, group + 1) - i_group
        tiles = (group_rows + MACHINE.tile_rows - 1) // MACHINE.tile_rows
        tile_split = split(group_rows, tiles)
        prefetching = full_parts(tile_split, tiles)
        # Loop 2: depth of A and B, a block at a time.
        for n in range(blocks):
            k0 = share(depth, blocks, n)
            deep = share(depth, blocks, n + 1) - k0
            begun = n > 0 and not scatter
            last = n == blocks - 1
            a_block = Strided(a.address + i_group * a.row + k0 * a.depth, a.row, a.depth)
            tile_step = 0
            if copied:
                _copy_rows(a_copy, copy_row, a_block, group_rows, deep * size)
                a_block = Strided(a_copy, copy_row, size)
            elif packed:
                tile_step = block * strip_row
                across = Matrix(a.address, Axis(a.depth, depth, 0), Axis(size, product.rows, 0))
                for t in range(tiles):
                    r0, r1 = begin_of(tile_split, t), begin_of(tile_split, t + 1)
                    strip = a_copy + t * tile_step
                    pack(alpha, strip, strip_row, across, k0, deep, i_group + r0, r1 - r0, work)
                a_block = Strided(a_copy, size, strip_row)
            # Loop 3: columns of B and C, a panel at a time.
            for p in range(panels):
                v0 = begin_of(panel_split, p)
                thick = begin_of(panel_split, p + 1) - v0
                panel_row = thick * wide * size
                j0 = j_first + v0 * wide
                filled = min(thick * wide, j_last - j0)
                if product.bias != 0:
                    list_bias(alpha, bias, product.bias, b.cols, j0, filled)
                b_tile, b_row = panel, panel_row
                if used_once and filled == thick * wide:
                    b_tile, b_row = b.address + k0 * b.rows.stride + j0 * size, b.rows.stride
                else:
                    pack(alpha, panel, panel_row, b, k0, deep, j0, filled, work)
                # Where the columns of C are dense, a tile is added to it a register at a time, from
                # the beginning of a register on, if rows begin there.
                c_start = offset(c.cols, j0)
                registers, spread_start, c_length = 0, c_start, 0
                if c_far and c.cols.stride == size:
                    c_length = offset(c.cols, j0 + filled - 1) - c_start + size
                if scatter and c.cols.stride == size and MACHINE.masked_stores:
                    lead = (c.address + c_start) % MACHINE.vector_bytes // size
                    span = lead + unit(c.cols, j0 + filled - 1) - unit(c.cols, j0) + 1
                    spread_start -= lead * size
                    if span <= MOST_UNITS * wide:
                        registers = find_spread(
                            alpha, c.cols, j0, j0 + filled, thick * wide, lead, work.table
                        )
                # What the panel after this one will be packed from, if it is prefetched.
                step = request_bytes(thick)
                next_p, next_k, next_deep, next_columns = p + 1, k0, deep, 0
                if next_p == panels and not last:
                    next_p, next_k = 0, k0 + deep
                    next_deep = share(depth, blocks, n + 2) - next_k
                next_j = j_first + begin_of(panel_split, next_p) * wide
                if b_far and next_p < panels:
                    next_end = j_first + begin_of(panel_split, next_p + 1) * wide
                    next_columns = min(next_end, j_last) - next_j
                # Loop 4: rows of A and C, a register tile at a time.
                for t in range(tiles):
                    r0 = begin_of(tile_split, t)
                    high = begin_of(tile_split, t + 1) - r0
                    i0 = i_group + r0
                    a_tile = a_block.address + (t * tile_step if packed else r0 * a_block.row)
                    if direct:
                        c_tile = c.address + i0 * c.rows.stride + j0 * size
                        list_places(c_places, c_tile, c.rows.stride)
                    elif registers > 0:
                        note_sources(work.table, c.address, c.rows, i0, high)
                    elif begun:
                        _read_tile(alpha, edge, edge_row, high, filled, c, i0, j0)
                    list_places(a_places, a_tile, a_block.row)
                    requests_end = requests
                    if c_length > 0 and t < prefetching:
                        after = i0 + high
                        ahead = ahead_of(
                            c.address + c_start, c.rows,
                            after, min(i_last - after, PLACES), c_length, step,
                        )  # fmt: skip
                        requests_end = list_requests(requests, requests_end, ahead, 1, 0)
                    if next_columns > 0 and t < prefetching:
                        ahead = _panel_ahead(
                            alpha, b, next_k, next_deep, next_j, next_columns, step
                        )
                        requests_end = list_requests(requests, requests_end, ahead, prefetching, t)
                    register_tile(
                        alpha, high, filled, 1, one_run, deep,
                        a_places, a_block.depth, b_tile, b_row, sums,
                        requests, requests_end, begun,
                    )  # fmt: skip
                    if finish and (last or scatter):
                        results = c_places if direct else edge_places
                        finish_tile(epilogue, results, sums, high, filled, bias)
                    if registers > 0:
                        add_spread(alpha, spread_start, high, edge, edge_row, registers, work.table)
                    elif not direct:
                        _write_tile(alpha, edge, edge_row, high, filled, c, i0, j0, scatter)
    keep_alive(memory)


@inner
def _parts_across_rows(alpha, product, cols, parts):
    """Return how many of the parts lie one above the other, so that the slowest takes the least.

    Every part of the rows packs B again, and where columns are cut two threads may write to the
    same cache line of each row, as they do where kept columns may begin anywhere.
    """
    b, c = product.b, product.c
    size, wide = bytes_of(alpha), lanes(alpha)
    gathers = b.rows.indices != 0 or b.cols.indices != 0 or b.cols.stride != size
    packing = _GATHER_ROWS if gathers else _COPY_ROWS
    meet = product.scatter or (c.address | c.rows.stride | wide * size) % CACHE_LINE != 0
    best, least = 1, np.inf
    for across_rows in range(1, parts + 1):
        if parts % across_rows == 0:
            across_cols = parts // across_rows
            rows = (product.rows + across_rows - 1) // across_rows
            vectors = (cols + across_cols * wide - 1) // (across_cols * wide)
            steps = vectors * (rows + packing) * product.depth
            if meet and across_cols > 1:
                steps += rows * _MEETING_STEPS
            if steps < least:
                best, least = across_rows, steps
    return best


@inner
def _gathered(array, rows, cols):
    """Return a block of the array with this `id`, given the addresses of the kept units."""
    return Matrix(
        array_data(array),
        Axis(array_stride(array, 0), array_length(array, 0), rows),
        Axis(array_stride(array, 1), array_length(array, 1), cols),
    )


def multiply_part(task, part, parts):
    """Do one part of a product; a task is an `Epilogue` and words.

    The words are the `id` of A, B and C; the address of the bias or 0; the columns; whether to
    scatter; and the addresses of the kept rows and columns of B, and of C, 0 where all are kept.
    """
    epilogue = first_of(task)
    words = words_behind(task)
    a, b, c = load_index(words, 0), load_index(words, 1), load_index(words, 2)
    bias, cols, scatter = load_index(words, 3), load_index(words, 4), load_index(words, 5) != 0
    rows = array_length(a, 0)
    product = Product(
        epilogue, bias, rows, cols, array_length(a, 1), scatter,
        Strided(array_data(a), array_stride(a, 0), array_stride(a, 1)),
        _gathered(b, load_index(words, 6), load_index(words, 7)),
        _gathered(c, load_index(words, 8), load_index(words, 9)),
    )  # fmt: skip
    wide = lanes(epilogue.scale)
    vectors = (cols + wide - 1) // wide
    across_rows = _parts_across_rows(epilogue.scale, product, cols, parts)
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
