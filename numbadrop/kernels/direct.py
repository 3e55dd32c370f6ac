"""The direct convolution: a matrix product with the patches of images.

With the patches as the rows of a matrix P, a convolution is ``f(P B)`` and the gradient of its
weights is ``P' G``. In both products a tile reads P where `patches` says that it lies: the register
tile, or that of `dots` where a convolution has few results for a position.
"""

from __future__ import annotations

import numpy as np

from numbadrop.kernels.blocking import panel_of, panel_row, panels_of, tile_rows
from numbadrop.kernels.dots import dot_bytes, dot_pitch, dot_rows, dot_tile, dots_pay
from numbadrop.kernels.elements import MACHINE, bytes_of, lanes
from numbadrop.kernels.epilogue import finish_tile, is_plain, list_bias
from numbadrop.kernels.jit import DONE, inner
from numbadrop.kernels.memory import (
    CACHE_LINE,
    address_in,
    align,
    first_of,
    keep_alive,
    load_index,
    stack_memory,
    store,
    words_behind,
)
from numbadrop.kernels.packing import WORKSPACE_BYTES, Matrix, pack, pack_piece, workspace
from numbadrop.kernels.patches import (
    PATCHES_WORDS,
    bring,
    is_padded,
    lines_in,
    most_band_bytes,
    read_matrix,
    read_patches,
    run_start,
)
from numbadrop.kernels.places import PLACES, PLACES_BYTES, list_places, shift_places
from numbadrop.kernels.prefetch import REQUESTS_BYTES, ahead_of, list_requests
from numbadrop.kernels.shares import begin_of, fewest_parts, full_parts, length_of, share, split
from numbadrop.kernels.stretches import longest, part_of_gradient
from numbadrop.kernels.tile import NEAREST, WIDE, register_tile, request_bytes
from numbadrop.kernels.windows import Axis

__all__ = ["convolve_part", "correlate_part"]

_NEAR_TILES = NEAREST | WIDE
"""The kind of tile of a convolution."""
_PACKED_BYTES = 1 << 20
"""Most bytes of packed panels that a band of patches meets: they must stay in the second cache."""
_BAND_BYTES, _LONG_BAND_BYTES = 1 << 18, 1 << 19
"""Size of a band of patches, and where each band is one more pass over C."""
_LONG_GRADIENT_BYTES = 1 << 18
"""Most bytes of G that such a band meets, several times: they must stay in the second cache."""

_PIECES_BYTES = 2 * PLACES_BYTES
"""Of places that are listed a piece of a line at a time, each a whole table from there on."""

_FEW_ROWS = 6 * MACHINE.tile_rows
"""Tiles of up to so many rows read any G where it lies: for more, packing pays unless positions are
whole cache lines."""
_FAR_BYTES = 1 << 20
"""Most bytes of a G that few tiles read without asking for it ahead."""
_LONG_DEPTH = 32
"""From here on what the tile before has asked for is no longer near when a tile writes it: it asks
for that again."""
_AHEAD_BYTES = 1024
"""So much of G is asked for at a time where most of it will be read."""


@inner
def _reads_in_place(unpacked, cols, last_position, positions, first_column, columns):
    """Whether tiles read some columns of G where they lie, up to a position, if it is `unpacked`.

    In the last register that may be elements of the next position, for results that are not
    written, but nothing behind the last one.
    """
    end = last_position * cols + first_column + columns
    return unpacked and end <= positions * cols


@inner
def _gradient_ahead(gradient, first, count, begin, end, step):
    """Return what a band reads of G: bytes [begin, end) of positions, or all if that is most."""
    row = gradient.rows.stride
    if 2 * (end - begin) > row:
        stretches = Axis(_AHEAD_BYTES, count * row // _AHEAD_BYTES, 0)
        address = gradient.address + first * row
        return ahead_of(address, stretches, 0, stretches.size, _AHEAD_BYTES, step)
    return ahead_of(gradient.address + begin, gradient.rows, first, count, end - begin, step)


@inner
def _has_lone_pixels(p):
    """Whether patches are pixels of the images, of which no two tiles of rows share one."""
    return p.runs * p.run_pixels == 1 and not is_padded(p)


def convolve_part(task, part, parts):
    """Compute ``C = f(P B)`` for some of the lines; a task is an `Epilogue` and words.

    The words are `Patches`; the address of the bias or 0; the columns of B, and B as a `Matrix`;
    and of C the address, and the bytes from one image, one line and one position to the next.
    """
    epilogue = first_of(task)
    alpha = epilogue.scale
    words = words_behind(task)
    p = read_patches(words)
    words += 8 * PATCHES_WORDS
    bias, cols = load_index(words, 0), load_index(words, 1)
    b = read_matrix(words, 2)
    c, c_image, c_line, c_pixel = (
        load_index(words, 9), load_index(words, 10), load_index(words, 11), load_index(words, 12)
    )  # fmt: skip
    begin, end = share(p.batch * p.lines, parts, part), share(p.batch * p.lines, parts, part + 1)
    if begin == end or cols == 0 or p.columns == 0:
        return DONE
    finish = not is_plain(epilogue, bias)
    size = bytes_of(alpha)
    wide = lanes(alpha)
    depth = p.runs * p.run_pixels * p.channels
    panels = panels_of(alpha, cols, WIDE)
    widest_row = panel_row(panels)
    panel_bytes = depth * widest_row
    least_groups = max(1, (panels.parts * panel_bytes + _PACKED_BYTES - 1) // _PACKED_BYTES)
    groups = split(panels.parts, min(panels.parts, least_groups))
    most_panels = length_of(groups, 0)
    work = workspace(stack_memory(WORKSPACE_BYTES))
    by_dots = dots_pay(alpha, depth, cols)
    tall = dot_rows(cols) if by_dots else tile_rows(panels)
    packed_bytes = most_panels * panel_bytes + wide * widest_row
    if by_dots:
        packed_bytes = dot_bytes(alpha, dot_pitch(alpha, depth))
    packed_memory = np.empty(packed_bytes + CACHE_LINE, np.uint8)
    packed = align(address_in(packed_memory), CACHE_LINE)
    bias_memory = np.zeros(most_panels * widest_row, np.uint8)
    biases = address_in(bias_memory)
    most_lines = min(lines_in(_BAND_BYTES, p, size), end - begin)
    band_memory = np.empty(most_band_bytes(p, most_lines, p.channels, size) + CACHE_LINE, np.uint8)
    band = align(address_in(band_memory), CACHE_LINE)
    # Of the rows of a tile: in P, in C, and the panel's part of C.
    a_places, targets = stack_memory(_PIECES_BYTES), stack_memory(_PIECES_BYTES)
    c_places = stack_memory(PLACES_BYTES)
    places_memory = np.empty(p.runs + 2 * most_lines, np.int64)
    run_starts = address_in(places_memory)
    line_places = run_starts + 8 * p.runs
    line_targets = line_places + 8 * most_lines

    requests = stack_memory(REQUESTS_BYTES)
    lone_pixels = _has_lone_pixels(p)

    # Loop 1: columns of B and C, as many panels at a time as the cache holds.
    for group in range(groups.parts):
        first_panel, last_panel = begin_of(groups, group), begin_of(groups, group + 1)
        for n in range(first_panel, last_panel):
            j0, columns, vectors = panel_of(alpha, panels, cols, n)
            at = n - first_panel
            b_row = dot_pitch(alpha, depth) if by_dots else vectors * MACHINE.vector_bytes
            pack_piece(
                alpha, packed + at * panel_bytes, b_row, b, np.int64(0), depth, j0, columns,
                by_dots, work,
            )  # fmt: skip
            if bias != 0:
                list_bias(alpha, biases + at * widest_row, bias, b.cols, j0, columns)
        # Loop 2: lines of all images, a band at a time.
        for line in range(begin, end, most_lines):
            lines = min(most_lines, end - line)
            spread = bring(p, band, line_places, line, line + lines, np.int64(0), p.channels, size)
            for n in range(lines):
                image, y = (line + n) // p.lines, (line + n) % p.lines
                store(line_targets + n * 8, c + image * c_image + y * c_line)
            for run in range(p.runs):
                store(run_starts + run * 8, run_start(p, run, spread))
            patch_step = p.step_x * spread.pixel
            tiles = fewest_parts(lines * p.columns, tall)
            y, x = 0, 0
            # Loop 3: rows of P and C, a register tile at a time.
            for t in range(tiles.parts):
                high = length_of(tiles, t)
                i = 0
                while i < high:
                    along = min(high - i, p.columns - x)
                    first_patch = load_index(line_places, y) + x * patch_step
                    list_places(a_places + i * 8, first_patch, patch_step)
                    first_target = load_index(line_targets, y) + x * c_pixel
                    list_places(targets + i * 8, first_target, c_pixel)
                    i += along
                    x += along
                    if x == p.columns:
                        y, x = y + 1, 0
                # Loop 4: columns of B and C, a panel at a time.
                for n in range(first_panel, last_panel):
                    j0, columns, vectors = panel_of(alpha, panels, cols, n)
                    at = n - first_panel
                    b_panel = packed + at * panel_bytes
                    shift_places(c_places, targets, j0 * size)
                    if by_dots:
                        dot_tile(
                            alpha, high, columns, p.runs, run_starts, p.run_pixels * p.channels,
                            a_places, b_panel, dot_pitch(alpha, depth), c_places, False,
                        )  # fmt: skip
                    else:
                        # What the next tile writes, and reads. At the end of a line, where
                        # positions are apart, it is asked for in vain.
                        shift_places(requests, c_places, high * c_pixel)
                        requests_end = requests + PLACES_BYTES
                        if depth >= _LONG_DEPTH:
                            shift_places(requests_end, c_places, 0)
                            requests_end += PLACES_BYTES
                        if lone_pixels and n == first_panel:
                            ahead = ahead_of(
                                load_index(a_places, 0), Axis(patch_step, 0, 0), high, PLACES,
                                spread.pixel, request_bytes(vectors),
                            )  # fmt: skip
                            requests_end = list_requests(
                                requests, requests_end, ahead, np.int64(1), np.int64(0)
                            )
                        register_tile(
                            alpha, high, columns, p.runs, run_starts, p.run_pixels * p.channels,
                            a_places, size, b_panel, vectors * MACHINE.vector_bytes,
                            c_places, requests, requests_end, False, _NEAR_TILES,
                        )  # fmt: skip
                    if finish:
                        biases_here = biases + at * widest_row
                        finish_tile(epilogue, c_places, c_places, high, columns, biases_here)
    keep_alive(packed_memory)
    keep_alive(bias_memory)
    keep_alive(band_memory)
    keep_alive(places_memory)
    return DONE


def correlate_part(task, part, parts):
    """Compute ``C = P' G`` for some of its rows and columns; a task is a factor and words.

    The factor only gives the element type. The words are `Patches`, each tap a run; the address
    and the columns of G, whose rows are the positions of all images; the address of C; and how many
    C there are, one behind the other. G and C are dense. Of several C, each is the product of a
    stretch of the lines.
    """
    (alpha,) = first_of(task)
    words = words_behind(task)
    p = read_patches(words)
    words += 8 * PATCHES_WORDS
    g, cols = load_index(words, 0), load_index(words, 1)
    c, number = load_index(words, 2), load_index(words, 3)
    size = bytes_of(alpha)
    wide = lanes(alpha)
    all_vectors = (cols + wide - 1) // wide
    first_stretch, last_stretch, first_channel, channels, v_first, vectors = part_of_gradient(
        number, p.channels, all_vectors, MACHINE.tile_rows, parts, part
    )
    rows = p.runs * channels
    all_lines = p.batch * p.lines
    positions = all_lines * p.columns
    if rows == 0 or vectors == 0 or positions == 0 or first_stretch == last_stretch:
        return DONE
    c_bytes = p.runs * p.channels * cols * size

    j_first = v_first * wide
    j_last = min(j_first + vectors * wide, cols)
    panels = panels_of(alpha, j_last - j_first, WIDE)
    tall, widest_row = tile_rows(panels), panel_row(panels)
    # The bands decide in which order sums are made: they must not depend on the threads.
    most_lines = min(
        lines_in(_LONG_BAND_BYTES, p, size),
        max(1, _LONG_GRADIENT_BYTES // (p.columns * all_vectors * wide * size)),
    )
    most_lines = length_of(fewest_parts(longest(all_lines, number), most_lines), 0)
    panel_bytes = most_lines * p.columns * widest_row
    work = workspace(stack_memory(WORKSPACE_BYTES))
    packed_memory = np.empty(panels.parts * panel_bytes + wide * widest_row + CACHE_LINE, np.uint8)
    packed = align(address_in(packed_memory), CACHE_LINE)
    band_memory = np.empty(most_band_bytes(p, most_lines, channels, size) + CACHE_LINE, np.uint8)
    band = align(address_in(band_memory), CACHE_LINE)
    a_places, targets = stack_memory(PLACES_BYTES), stack_memory(PLACES_BYTES)
    c_places = stack_memory(PLACES_BYTES)
    places_memory = np.empty(most_lines, np.int64)
    line_places = address_in(places_memory)
    gradient = Matrix(g, Axis(cols * size, positions, 0), Axis(size, cols, 0))
    tiles = fewest_parts(rows, tall)
    prefetching = full_parts(tiles, tall)
    # Few tiles wait for the memory of a large G. To ask for what the next band reads of it, all but
    # the last must be of the greatest height.
    few, far = rows <= _FEW_ROWS, positions * cols * size > _FAR_BYTES and vectors > 1
    unpacked = few or (g % CACHE_LINE == 0 and cols * size % CACHE_LINE == 0)
    if few and far:
        prefetching = rows // tall
    requests = stack_memory(REQUESTS_BYTES)
    # Positions are pixels, one behind the other.
    pointwise = _has_lone_pixels(p) and p.step_y == 1 and p.step_x == 1

    own_end = share(all_lines, number, last_stretch) * p.columns
    # Loop 1: the positions, which are the depth, a band at a time.
    stretch, line = first_stretch, share(all_lines, number, first_stretch)
    while stretch < last_stretch:
        begin, end = share(all_lines, number, stretch), share(all_lines, number, stretch + 1)
        lines = min(most_lines, end - line)
        last_position = (line + lines) * p.columns - 1
        spread = bring(
            p, band, line_places, line, line + lines, first_channel, channels, size
        )  # fmt: skip
        for n in range(panels.parts):
            panel = panel_of(alpha, panels, j_last - j_first, n)
            j0, filled = j_first + panel.first, panel.vectors * wide
            if not _reads_in_place(unpacked, cols, last_position, positions, j0, filled):
                pack(
                    alpha, packed + n * panel_bytes, filled * size, gradient,
                    line * p.columns, lines * p.columns, j0, panel.columns, work,
                )  # fmt: skip
        after = (line + lines) * p.columns
        next_positions = min(most_lines * p.columns, own_end - after)
        # Loop 2: rows of P' and C, which are channels of taps, a register tile at a time.
        tap, channel = 0, 0
        for t in range(tiles.parts):
            high = length_of(tiles, t)
            if few and far:
                high = min(tall, rows - t * tall)
            for i in range(high):
                store(a_places + i * 8, run_start(p, tap, spread) + channel * size)
                row = tap * p.channels + first_channel + channel
                store(targets + i * 8, c + stretch * c_bytes + (row * cols + j_first) * size)
                channel += 1
                if channel == channels:
                    tap, channel = tap + 1, 0
            # Loop 3: columns of G and C, a panel at a time.
            for n in range(panels.parts):
                panel = panel_of(alpha, panels, j_last - j_first, n)
                j0, filled = j_first + panel.first, panel.vectors * wide
                shift_places(c_places, targets, panel.first * size)
                b, b_row = packed + n * panel_bytes, filled * size
                if _reads_in_place(unpacked, cols, last_position, positions, j0, filled):
                    b_row = cols * size
                    b = g + line * p.columns * b_row + j0 * size
                # What the next band will be packed from, or read.
                requests_end = requests
                step, turn = request_bytes(panel.vectors), t * panels.parts + n
                if t < prefetching and (far or not few):
                    ahead = _gradient_ahead(
                        gradient, after, next_positions, j_first * size, j_last * size, step
                    )
                    requests_end = list_requests(
                        requests, requests_end, ahead, prefetching * panels.parts, turn
                    )
                if t < prefetching and pointwise:
                    ahead = ahead_of(
                        p.address + first_channel * size, Axis(spread.pixel, positions, 0), after,
                        next_positions, channels * size, step,
                    )  # fmt: skip
                    requests_end = list_requests(
                        requests, requests_end, ahead, prefetching * panels.parts, turn
                    )
                register_tile(
                    alpha, high, panel.columns, lines, line_places, p.columns,
                    a_places, p.step_x * spread.pixel, b, b_row, c_places,
                    requests, requests_end, line > begin, WIDE,
                )  # fmt: skip
        line += lines
        if line == end:
            stretch += 1
    keep_alive(packed_memory)
    keep_alive(band_memory)
    keep_alive(places_memory)
    return DONE
