"""The product C = f(A B) or C += f(A B) as loops around packing and a tile in registers.

A is read where it lies, by address and two strides, or packed if panels walk far across memory. B
is gathered while it is packed; a dense one that a single tile meets is read where it lies, too. A C
that is added to may be a block of the rows and columns of an array. Forward pass, input gradient
and weight gradient, dense or gathered, differ in their operands alone. f is the `epilogue`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from numbadrop.kernels.blocking import cut_up, group_of, piece_of
from numbadrop.kernels.dots import dot_bytes, dot_pitch, dot_rows, dot_tile, dots_pay
from numbadrop.kernels.elements import MACHINE, bytes_of, lanes
from numbadrop.kernels.epilogue import Epilogue, finish_tile, is_plain, list_bias
from numbadrop.kernels.jit import DONE, inlined, inner
from numbadrop.kernels.memory import (
    CACHE_LINE,
    add_elements,
    address_in,
    align,
    array_data,
    array_length,
    array_stride,
    clear_bytes,
    first_of,
    keep_alive,
    load,
    load_index,
    stack_memory,
    store,
    words_behind,
)
from numbadrop.kernels.packing import (
    MOST_UNITS,
    WORKSPACE_BYTES,
    Matrix,
    pack,
    pack_piece,
    workspace,
)
from numbadrop.kernels.places import PLACES, PLACES_BYTES, list_places
from numbadrop.kernels.prefetch import REQUESTS_BYTES, ahead_of, count_requests, list_requests
from numbadrop.kernels.shares import begin_of, fewest_parts, full_parts, length_of, share
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
    "TASK_BYTES", "TASK_WORDS", "Product", "Strided", "multiply", "multiply_part", "write_task",
]  # fmt: skip

_ROW_BYTES = MACHINE.tile_vectors * MACHINE.vector_bytes
_TILE_BYTES = MACHINE.tile_rows * _ROW_BYTES
"""Of the largest register tile."""
_STACK_BYTES = 1 << 15
"""Most bytes of packed operands that lie on the stack: to allocate memory takes a tenth of the time
of a small product."""
_NEAR_BYTES, _NEAR_SUM_BYTES = 1 << 20, 1 << 22
"""Most bytes of a B, and of a C that is added to, which are not prefetched: where a core's own
cache holds its share, that takes longer than what it saves."""
_STEPS_A_REQUEST = 8
"""Of a tile that prefetches B: it could make a request for each two, but waits for them then. The
fewer do, the better, since their loop is slower."""
_PACK_AHEAD_BYTES = 1 << 22
"""From so many bytes of B on, what a tile has asked for is packed right behind it: where rows are
powers of two apart, a whole panel would not stay in the cache until its turn."""

_GATHER_ROWS, _COPY_ROWS = 16, 6
"""To gather a panel, or to copy it, takes as long as to multiply it by so many rows."""
_DOT_ROWS = 64
"""From so many on it pays to transpose few columns of B while they are packed."""
_MEETING_STEPS = 200
"""A row whose cache line two threads write costs as much as so many vectors of multiply-adds, or
much less: as near as the two CPUs are at the time."""


class Strided(NamedTuple):
    """An operand that is read where it lies, or where it has been packed."""

    address: int
    row: int
    """Bytes from one row to the next."""
    depth: int
    """Bytes from one element of the depth to the next."""


class Product(NamedTuple):
    """A product to compute: ``C = f(A B)`` or, with `scatter`, ``C += f(A B)``.

    Without `scatter` all of C is kept, and its columns are dense.
    """

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


# In what follows sizes, strides, pitches and what ends in _row, _step or _bytes count bytes, while
# vectors and registers count registers, and rows, columns and depth count elements.


class _Strips(NamedTuple):
    """How tiles read A where its depth lies across memory: in strips, each as high as a tile."""

    pitch: int
    """From one step of a strip's depth to the next, 0 where A is read where it lies."""
    strip: int
    """From one strip to the next."""
    size: int
    """Of all strips of a group's block."""


@inner
def _strips(alpha, cut):
    """Return the strips that a group of rows of A is packed to."""
    if not cut.packs_a:
        return _Strips(0, 0, 0)
    size = bytes_of(alpha)
    # What a register holds too much the next row overwrites, unless a row takes several.
    pitch = MACHINE.tile_rows * size
    if pitch > MACHINE.vector_bytes:
        pitch = align(pitch, MACHINE.vector_bytes)
    strip = length_of(cut.blocks, 0) * pitch
    most = fewest_parts(length_of(cut.groups, 0), MACHINE.tile_rows).parts
    return _Strips(pitch, strip, most * strip + MACHINE.vector_bytes)


@inlined
def _bring_near(alpha, strips, packed, product, group, k0, depth, work):
    """Pack, if need be, depth [k0, k0 + depth) of a group's rows; return how they are read now."""
    a, size = product.a, bytes_of(alpha)
    if strips.pitch == 0:
        return Strided(a.address + group.first * a.row + k0 * a.depth, a.row, a.depth)
    across = Matrix(a.address, Axis(a.depth, product.depth, 0), Axis(size, product.rows, 0))
    for t in range(group.tiles.parts):
        i0, high = group.first + begin_of(group.tiles, t), length_of(group.tiles, t)
        pack(alpha, packed + t * strips.strip, strips.pitch, across, k0, depth, i0, high, work)
    return Strided(packed, size, strips.pitch)


@inner
def _bytes_of_all(alpha, matrix):
    """Return the size of a matrix, with what is not kept."""
    return matrix.rows.size * matrix.cols.size * bytes_of(alpha)


@inner
def _panel_ahead(alpha, b, piece, step):
    """Return what a panel will be packed from: nothing behind the last one."""
    size = bytes_of(alpha)
    if piece.columns == 0:
        nothing = np.int64(0)
        return ahead_of(b.address, b.rows, nothing, nothing, nothing, step)
    row, col = offset(b.rows, piece.k0), offset(b.cols, piece.j0)
    if b.cols.stride == size:
        length = offset(b.cols, piece.j0 + piece.columns - 1) - col + size
        return ahead_of(b.address + col, b.rows, piece.k0, piece.depth, length, step)
    length = offset(b.rows, piece.k0 + piece.depth - 1) - row + size
    return ahead_of(b.address + row, b.cols, piece.j0, piece.columns, length, step)


@inlined
def _pack_part(alpha, panel, b, piece, parts, part, work):
    """Pack the rows of a panel that are one part of its groups of requests."""
    groups, pitch = (piece.depth + PLACES - 1) // PLACES, piece.vectors * MACHINE.vector_bytes
    row = share(groups, parts, part) * PLACES
    rows = min(share(groups, parts, part + 1) * PLACES, piece.depth) - row
    pack(alpha, panel + row * pitch, pitch, b, piece.k0 + row, rows, piece.j0, piece.columns, work)


@inner
def _sums_ahead(alpha, c, i0, rows, piece, step):
    """Return the rows from `i0` on, few of them, that a panel's tiles will be added to."""
    col = offset(c.cols, piece.j0)
    length = offset(c.cols, piece.j0 + piece.columns - 1) - col + bytes_of(alpha)
    return ahead_of(c.address + col, c.rows, i0, min(rows, PLACES), length, step)


class _Spread(NamedTuple):
    """How the columns of a panel are added to C, where they are dense, a register at a time."""

    start: int
    """From a row of C to the first register."""
    registers: int
    """None where tiles are added element by element."""


@inner
def _find_spread(alpha, c, piece, work):
    """Return registers that begin where those of memory do, if all rows begin alike there.

    There are none where columns are not dense or very far apart, or masked stores are slow.
    """
    size, wide = bytes_of(alpha), lanes(alpha)
    if not MACHINE.masked_stores or c.cols.stride != size:
        return _Spread(0, 0)
    start, end = offset(c.cols, piece.j0), piece.j0 + piece.columns
    lead = 0
    if c.rows.stride % MACHINE.vector_bytes == 0:
        lead = (c.address + start) % MACHINE.vector_bytes // size
    span = lead + unit(c.cols, end - 1) - unit(c.cols, piece.j0) + 1
    if span > MOST_UNITS * wide:
        return _Spread(0, 0)
    filled = piece.vectors * wide
    return _Spread(
        start - lead * size, find_spread(alpha, c.cols, piece.j0, end, filled, lead, work.table)
    )


@inner
def _add_tile(alpha, tile, rows, columns, c, i0, j0):
    """Add a finished tile to its place where `add_spread` does not."""
    size = bytes_of(alpha)
    for i in range(rows):
        source = tile + i * _ROW_BYTES
        row = c.address + offset(c.rows, i0 + i)
        if c.cols.stride == size and c.cols.indices == 0:
            add_elements(alpha, row + j0 * size, source, columns)
            continue
        for j in range(columns):
            target = row + offset(c.cols, j0 + j)
            store(target, load(alpha, target) + load(alpha, source + j * size))


@inlined
def _has_few_columns(alpha, product, block):
    """Whether `dot_tile` computes the product, which must not depend on the threads."""
    a, b, size = product.a, product.b, bytes_of(alpha)
    reused = b.rows.stride == size or product.rows >= _DOT_ROWS
    return (
        a.depth == size and not product.scatter and reused and dots_pay(alpha, block, product.cols)
    )


@inlined
def multiply(product, i_first, i_last, j_first, j_last):
    """Compute rows [i_first, i_last) and columns [j_first, j_last) of C on the calling thread.

    `j_first` is a multiple of the lanes.
    """
    epilogue, scatter, a, b, c = (
        product.epilogue, product.scatter, product.a, product.b, product.c
    )  # fmt: skip
    alpha = epilogue.scale
    size, wide = bytes_of(alpha), lanes(alpha)
    if i_last <= i_first or j_last <= j_first:
        return
    cut = cut_up(alpha, a, i_last - i_first, product.depth, j_last - j_first)
    strips = _strips(alpha, cut)
    block = length_of(cut.blocks, 0)
    finish = not is_plain(epilogue, product.bias)
    by_dots = _has_few_columns(alpha, product, block)
    tall = dot_rows(product.cols) if by_dots else np.int64(MACHINE.tile_rows)
    # A panel that one tile meets is a copy for nothing, unless units have to be brought together.
    used_once = (
        i_last - i_first <= MACHINE.tile_rows
        and not by_dots
        and b.cols.stride == size
        and b.cols.indices == 0
        and b.rows.indices == 0
    )
    # What lies near, or will not be packed, is not prefetched, and `dot_tile` asks for nothing.
    b_far = _bytes_of_all(alpha, b) > _NEAR_BYTES and not used_once and not by_dots
    packs_ahead = b_far and b.cols.stride == size and _bytes_of_all(alpha, b) >= _PACK_AHEAD_BYTES
    c_far = scatter and c.cols.stride == size and _bytes_of_all(alpha, c) > _NEAR_SUM_BYTES

    work = workspace(stack_memory(WORKSPACE_BYTES))
    memory_ahead = stack_memory(WORKSPACE_BYTES)
    work_ahead = workspace(memory_ahead) if packs_ahead else work
    requests = stack_memory(REQUESTS_BYTES)
    edge, bias = stack_memory(_TILE_BYTES), stack_memory(_ROW_BYTES)
    clear_bytes(bias, _ROW_BYTES)
    # Where the rows of a tile begin, in A, in C and in `edge`, and where its sums are made; and the
    # start of the one run of the depth.
    a_places, c_places = stack_memory(PLACES_BYTES), stack_memory(PLACES_BYTES)
    edge_places = stack_memory(PLACES_BYTES)
    list_places(edge_places, edge, _ROW_BYTES)
    # A tile that will be added passes through `edge`. So does one that is finished at once: its way
    # from there writes C once, of which two threads may share a cache line.
    sums = c_places if not scatter and (cut.blocks.parts > 1 or not finish) else edge_places
    one_run = stack_memory(8)
    store(one_run, 0)
    # Rows of a panel begin on cache lines; packing may write `wide` rows more.
    panel_bytes = align((block + wide) * _ROW_BYTES, CACHE_LINE)
    if by_dots:
        panel_bytes = dot_bytes(alpha, dot_pitch(alpha, block))
    ahead_bytes = panel_bytes if packs_ahead else 0
    needed = panel_bytes + ahead_bytes + strips.size
    panels = stack_memory(_STACK_BYTES)
    if needed > _STACK_BYTES:
        memory = np.empty(CACHE_LINE + needed, np.uint8)
        panels = align(address_in(memory), CACHE_LINE)
    packed_strips = panels + panel_bytes + ahead_bytes

    # Loop 1: rows of A and C, a group at a time.
    for m in range(cut.groups.parts):
        group = group_of(cut, i_first, m, tall)
        prefetching = full_parts(group.tiles, MACHINE.tile_rows)
        # Loop 2: depth of A and B, a block at a time.
        for n in range(cut.blocks.parts):
            begun, last = n > 0 and not scatter, n == cut.blocks.parts - 1
            k0, depth = begin_of(cut.blocks, n), length_of(cut.blocks, n)
            a_rows = _bring_near(alpha, strips, packed_strips, product, group, k0, depth, work)
            # Loop 3: columns of B and C, a panel at a time.
            for p in range(cut.panels.parts):
                piece = piece_of(alpha, cut, product.depth, j_first, j_last, n, p)
                following = piece_of(alpha, cut, product.depth, j_first, j_last, n, p + 1)
                j0, columns = piece.j0, piece.columns
                if product.bias != 0:
                    list_bias(alpha, bias, product.bias, b.cols, j0, columns)
                # What tiles pack ahead lies in two places in turn; nobody has packed the first one.
                number = n * cut.panels.parts + p
                panel = panels + number % 2 * ahead_bytes
                b_panel, b_row = panel, piece.vectors * MACHINE.vector_bytes
                if by_dots:
                    b_row = dot_pitch(alpha, depth)
                if used_once and columns == piece.vectors * wide:
                    b_panel, b_row = b.address + k0 * b.rows.stride + j0 * size, b.rows.stride
                elif not packs_ahead or prefetching == 0 or number == 0:
                    pack_piece(alpha, panel, b_row, b, k0, depth, j0, columns, by_dots, work)
                spread = _find_spread(alpha, c, piece, work) if scatter else _Spread(0, 0)
                step = request_bytes(piece.vectors)
                b_ahead = _panel_ahead(alpha, b, following, step)
                b_prefetching = 0
                if b_far and following.columns > 0:
                    steps = count_requests(b_ahead) * _STEPS_A_REQUEST
                    b_prefetching = min(prefetching, max(1, b_ahead.groups), 1 + steps // depth)
                # Loop 4: rows of A and C, a register tile at a time.
                for t in range(group.tiles.parts):
                    r0, high = begin_of(group.tiles, t), length_of(group.tiles, t)
                    i0 = group.first + r0
                    behind = t * strips.strip if strips.pitch > 0 else r0 * a_rows.row
                    list_places(a_places, a_rows.address + behind, a_rows.row)
                    if spread.registers > 0:
                        note_sources(work.table, c.address, c.rows, i0, high)
                    elif not scatter:
                        c_tile = c.address + i0 * c.rows.stride + j0 * size
                        list_places(c_places, c_tile, c.rows.stride)
                    requests_end = requests
                    if c_far and t < prefetching:
                        c_ahead = _sums_ahead(alpha, c, i0 + high, i_last - i0 - high, piece, step)
                        requests_end = list_requests(
                            requests, requests_end, c_ahead, np.int64(1), np.int64(0)
                        )
                    if t < b_prefetching:
                        requests_end = list_requests(
                            requests, requests_end, b_ahead, b_prefetching, t
                        )
                    if by_dots:
                        dot_tile(
                            alpha, high, columns, 1, one_run, depth, a_places, b_panel, b_row,
                            sums, begun,
                        )  # fmt: skip
                    else:
                        register_tile(
                            alpha, high, columns, 1, one_run, depth, a_places, a_rows.depth,
                            b_panel, b_row, sums, requests, requests_end, begun, 0,
                        )  # fmt: skip
                    if finish and (last or scatter):
                        results = edge_places if scatter else c_places
                        finish_tile(epilogue, results, sums, high, columns, bias)
                    if spread.registers > 0:
                        add_spread(
                            alpha, spread.start, high, edge, _ROW_BYTES, spread.registers,
                            work.table,
                        )  # fmt: skip
                    elif scatter:
                        _add_tile(alpha, edge, high, columns, c, i0, j0)
                    if packs_ahead and t < b_prefetching:
                        _pack_part(
                            alpha, panels + (number + 1) % 2 * ahead_bytes, b, following,
                            b_prefetching, t, work_ahead,
                        )  # fmt: skip
    if needed > _STACK_BYTES:
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


TASK_WORDS = 10
TASK_BYTES = 8 * (2 + TASK_WORDS)
"""Of a task of `multiply_part`, whose factors are not longer than words."""


@inner
def write_task(task, slope, scale, a, b, c, bias, cols, scatter, units):
    """Write a task of `multiply_part` down; `units` are the addresses of the kept rows and columns.

    They are those of B or, with `scatter`, of C.
    """
    size = bytes_of(scale)
    clear_bytes(task, TASK_BYTES)
    store(task, slope)
    store(task + size, scale)
    words = task + 2 * size
    store(words, a)
    store(words + 8, b)
    store(words + 16, c)
    store(words + 24, bias)
    store(words + 32, cols)
    store(words + 40, scatter)
    places = words + 48 + 16 * scatter
    store(places, units[0])
    store(places + 8, units[1])


def multiply_part(task, part, parts):
    """Do one part of a `Product`; a task is an `Epilogue` and words.

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
    across_rows = 1 if parts == 1 else _parts_across_rows(epilogue.scale, product, cols, parts)
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
    return DONE
