"""Winograd's convolution: kernels of 3 x 3 with 4/9 of the multiplications, of 5 x 5 with half.

A square of 2 x 2 results comes from 4 x 4 pixels x and 3 x 3 weights w by a product element by
element, ``A' [(G w G') * (B' x B)] A``, and its gradient in w is ``G' [(B' x B) * (A g A')] G``
(Lavin and Gray 2015, arXiv:1509.09308, section 4.1, F(2x2, 3x3)). Summed over channels, or over
squares, that is one matrix product for each of the 16 elements. As many squares are transformed at
a time as stay in the second cache; the register tile reads them there.

A larger kernel is a sum of pieces of 3 x 3, two taps apart, and the next piece meets the next
square of pixels: each is transformed once, and the sum goes over pieces and channels. A tap that
two pieces share belongs to the one before, so that in an axis' second and later pieces the first
tap is zero, and with it the first element of ``G w``: of 4 x 16 products for 5 x 5, 49 are left.

The factors are 1 and 1/2: sums come out about as exact as those of the direct product. What leaves
the range of the numbers does so earlier, since the transforms add up to four of them.
"""

from __future__ import annotations

import numpy as np

from numbadrop.kernels.blocking import panel_of, panel_row, panels_of, tile_rows
from numbadrop.kernels.elements import MACHINE, bytes_of, lanes
from numbadrop.kernels.epilogue import finish_tile, is_plain
from numbadrop.kernels.geometry import Taps
from numbadrop.kernels.jit import DONE, inner
from numbadrop.kernels.memory import (
    CACHE_LINE,
    add_elements,
    address_in,
    align,
    first_of,
    keep_alive,
    load_index,
    stack_memory,
    store,
    words_behind,
)
from numbadrop.kernels.packing import WORKSPACE_BYTES, pack, workspace
from numbadrop.kernels.patches import PATCHES_WORDS, read_matrix, read_patches
from numbadrop.kernels.places import PLACES, PLACES_BYTES, list_places, list_rows, shift_places
from numbadrop.kernels.sandwich import sandwich
from numbadrop.kernels.shares import begin_of, fewest_parts, length_of, share
from numbadrop.kernels.squares import (
    SQUARE_BYTES,
    first_pixel_square,
    kernel_pieces,
    last_pixel_square,
    list_square,
    matrices_before,
    matrix_number,
    most_pixel_squares,
    pieces_with,
    pixel_square,
    pixel_squares,
    place_after,
    place_of,
    products_along,
    result_squares,
)
from numbadrop.kernels.stretches import longest, part_of_gradient
from numbadrop.kernels.tile import WHOLE, WIDE, register_tile

__all__ = [
    "convolve_part", "correlate_part", "long_stretches", "matrices_elements", "pays",
    "transform_part", "weights_part",
]  # fmt: skip

_IMAGE = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))  # B'
_WEIGHTS = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))  # G
_RESULT = ((1, 1, 1, 0), (0, 1, -1, -1))  # A'
_transform_image = sandwich("image", _IMAGE)
_transform_weights = sandwich("weights", _WEIGHTS)
_transform_gradient = sandwich("gradient", tuple(zip(*_RESULT, strict=True)))
_result_of = sandwich("result", _RESULT)
_weight_gradient_of = sandwich("weight_gradient", tuple(zip(*_WEIGHTS, strict=True)))

_CHANNELS = {3: 17, 5: 12, 7: 12}
_SQUARES = 64
_GAIN = 1.8
"""With so many taps along both axes, from so many channels on both sides, and squares of results,
and where it takes so many times fewer multiplications, it is faster than the direct product
(measured)."""
_BEYOND_BYTES = 1 << 19
"""Most bytes of transformed lines that larger kernels need beyond those of a block of squares."""
_TILES = WIDE | WHOLE
"""The kind of all tiles."""
_BLOCK_BYTES = 1 << 17
"""About the bytes of squares that are transformed at a time: they must stay in the second cache,
together with those of the products."""
_LEAST_SQUARES = 32
"""But at least so many: weights that do not fit there come from memory for each block."""
_LEAST_LINES = 4
"""And so many lines for each line of pixels that only later pieces meet: the next block transforms
it again, and that must be the smaller part."""
_LONG_BLOCK_BYTES = 3 << 18
"""The bytes where each block is one more pass over the sums."""
_LEAST_DEPTH = 64
"""But at least so many squares of these, which are the depth of a pass."""
_DEEP = 64
"""Rows of the weights that are transformed at a time."""
_PAGE = 4096
_STAGGER = 5 * CACHE_LINE
"""The 16 elements of a square lie so many bytes, and pages, apart: each in a set of its own of the
nearest cache."""


def pays(batch: int, down: Taps, along: Taps, channels: int, cols: int, itemsize: int) -> bool:
    """Whether Winograd's convolution exists for these taps, and is faster than the direct one.

    In the gradient of a convolution with strides, a part of the taps of a larger kernel may do.
    """
    for axis in (down, along):
        taps = len(axis.places)
        if taps not in _CHANNELS or axis.step != 1 or axis.reach != taps - 1:
            return False
        if min(channels, cols) < _CHANNELS[taps]:
            return False
    down_squares, along_squares = -(-down.number // 2), -(-along.number // 2)
    matrices = products_along(down.reach) * products_along(along.reach)
    direct = len(down.places) * len(along.places) * down.number * along.number
    beyond = (down.reach // 2 - 1) * along_squares * 16 * channels * itemsize
    return (
        batch * down_squares * along_squares >= _SQUARES
        and direct >= _GAIN * matrices * down_squares * along_squares
        and beyond <= _BEYOND_BYTES
    )


def matrices_elements(down: Taps, along: Taps, channels: int, cols: int, itemsize: int) -> int:
    """Return the size of the memory for what weights, or their gradient, become.

    Rows of the matrices are whole registers and a cache line, and begin on one.
    """
    matrices = products_along(down.reach) * products_along(along.reach)
    row = -(-cols * itemsize // MACHINE.vector_bytes) * MACHINE.vector_bytes + CACHE_LINE
    return (matrices * channels * row + CACHE_LINE) // itemsize


def long_stretches(batch: int, down: Taps, along: Taps) -> int:
    """Return into how many stretches of whole lines, and of no short depth, squares can be cut."""
    lines = batch * -(-down.number // 2)
    return min(lines, lines * -(-along.number // 2) // _LEAST_DEPTH)


@inner
def _apart(size):
    """Return how far one of 16 blocks of this size should lie behind the one before."""
    return align(size, _PAGE) + _STAGGER


@inner
def _transform_images(alpha, p, first, count, first_channel, channels, v, v_step, v_row, zeros):
    """Transform some channels of the squares of pixels [first, first + count)."""
    size = bytes_of(alpha)
    sources, targets = stack_memory(SQUARE_BYTES), stack_memory(16 * 8)
    list_rows(targets, v, v_step, 16)
    pixel = p.channels * size
    line = p.width * pixel
    pixels = pixel_squares(p)
    image, y, x = place_of(pixels, first)
    for t in range(count):
        list_square(
            sources, 4, p.address + image * p.height * line + first_channel * size,
            p.height, p.width, line, pixel, p.first_y + 2 * y, p.first_x + 2 * x, zeros,
        )  # fmt: skip
        _transform_image(alpha, sources, 0, targets, t * v_row, channels)
        image, y, x = place_after(pixels, image, y, x)


def transform_part(task, part, parts):
    """Compute ``G w G'`` of some of the weights; a task is a factor and words.

    The factor only gives the element type. The words are the channels and the columns; how far the
    last tap lies below and right of the first; the weights as a `Matrix`, whose depth are the
    channels of one tap after the other; and the address of memory for them. There they lie a panel
    of columns after the other, in it one of the 16 elements after the other, of it one piece after
    the other, and of that a row for each channel.
    """
    (alpha,) = first_of(task)
    words = words_behind(task)
    channels, cols = load_index(words, 0), load_index(words, 1)
    reach_x = load_index(words, 3)
    pieces = kernel_pieces(load_index(words, 2), reach_x)
    b = read_matrix(words, 4)
    u = align(load_index(words, 11), CACHE_LINE)
    first, last = share(channels, parts, part), share(channels, parts, part + 1)
    if first == last:
        return DONE
    size = bytes_of(alpha)
    wide = lanes(alpha)
    panels = panels_of(alpha, cols, WIDE)
    work = workspace(stack_memory(WORKSPACE_BYTES))
    tap_bytes = (_DEEP + wide) * panel_row(panels) + CACHE_LINE
    # Nine taps; one that belongs to another piece; and an element that is zero.
    taps_memory = np.zeros(11 * tap_bytes + CACHE_LINE, np.uint8)
    taps = align(address_in(taps_memory), CACHE_LINE)
    not_here, nowhere = taps + 9 * tap_bytes, taps + 10 * tap_bytes
    sources = stack_memory(25 * 8)
    targets = sources + 9 * 8
    for n in range(panels.parts):
        j0, columns, vectors = panel_of(alpha, panels, cols, n)
        row = vectors * MACHINE.vector_bytes
        matrix = channels * row
        panel = u + matrices_before(pieces, 16) * channels * j0 * size
        for piece in range(pieces.down * pieces.along):
            down, along = piece // pieces.along, piece % pieces.along
            for k in range(first, last, _DEEP):
                deep = min(_DEEP, last - k)
                for i in range(3):
                    for j in range(3):
                        packed = not_here
                        if (i > 0 or down == 0) and (j > 0 or along == 0):
                            packed = taps + (3 * i + j) * tap_bytes
                            tap = (2 * down + i) * (reach_x + 1) + 2 * along + j
                            pack(
                                alpha, packed, row, b, tap * channels + k, deep, j0, columns, work,
                            )  # fmt: skip
                        store(sources + (3 * i + j) * 8, packed)
                for q in range(16):
                    number = matrix_number(pieces, q, down, along)
                    place = panel + number * matrix + k * row
                    store(targets + q * 8, place if number >= 0 else nowhere)
                _transform_weights(alpha, sources, 0, targets, 0, deep * vectors * wide)
    keep_alive(taps_memory)
    return DONE


def convolve_part(task, part, parts):
    """Compute ``C = f(A' [U * (B' x B)] A)`` for some squares; a task is an `Epilogue` and words.

    The words are `Patches`; the address of the bias of each column or 0; the columns, and the
    address of their transformed weights U; and of C the address, and the bytes from one image, one
    line and one position to the next.
    """
    epilogue = first_of(task)
    alpha = epilogue.scale
    words = words_behind(task)
    p = read_patches(words)
    words += 8 * PATCHES_WORDS
    bias, cols = load_index(words, 0), load_index(words, 1)
    u = align(load_index(words, 2), CACHE_LINE)
    c, c_image, c_line, c_pixel = (
        load_index(words, 3), load_index(words, 4), load_index(words, 5), load_index(words, 6)
    )  # fmt: skip
    pieces, pixels = kernel_pieces(p.reach_y, p.reach_x), pixel_squares(p)
    results = result_squares(p)
    squares = p.batch * results.down * results.along
    begin, end = share(squares, parts, part), share(squares, parts, part + 1)
    if begin == end:
        return DONE
    finish = not is_plain(epilogue, bias)
    size = bytes_of(alpha)
    panels = panels_of(alpha, cols, WIDE)
    v_row = align(p.channels * size, CACHE_LINE) + CACHE_LINE
    most = max(_BLOCK_BYTES // (16 * v_row), _LEAST_SQUARES)
    most = min(max(most, _LEAST_LINES * (pieces.down - 1) * results.along), end - begin)
    m_row = panel_row(panels)
    v_step, m_step = _apart(most_pixel_squares(p, most) * v_row), _apart(most * m_row)
    block_memory = np.empty(16 * (v_step + m_step) + CACHE_LINE, np.uint8)
    v = align(address_in(block_memory), CACHE_LINE)
    m = v + 16 * v_step
    # What lies outside: pixels that are read, results that are written, and no bias.
    outside_memory = np.zeros(p.channels * size + 2 * m_row, np.uint8)
    zeros = address_in(outside_memory)
    nowhere = zeros + p.channels * size
    no_bias = nowhere + m_row
    most_runs = pieces.down * pieces.along
    a_places, c_places = stack_memory(PLACES_BYTES), stack_memory(PLACES_BYTES)
    # Of the last rows and squares a whole table is read, or written, and what lies behind is not
    # used.
    table_memory = np.empty(16 + 4 + most_runs + 5 * most + PLACES, np.int64)
    sums = address_in(table_memory)
    targets = sums + 8 * 16
    run_starts = targets + 8 * 4
    rows = run_starts + 8 * most_runs
    places = rows + 8 * most

    # Loop 1: squares of results, a block at a time.
    for first in range(begin, end, most):
        count = min(most, end - first)
        begin_pixels = first_pixel_square(p, first)
        _transform_images(
            alpha, p, begin_pixels, last_pixel_square(p, first + count - 1) + 1 - begin_pixels,
            np.int64(0), p.channels, v, v_step, v_row, zeros,
        )  # fmt: skip
        image, y, x = place_of(results, first)
        for t in range(count):
            store(rows + 8 * t, v + (pixel_square(p, image, y, x) - begin_pixels) * v_row)
            list_square(
                places + 32 * t, 2, c + image * c_image, p.lines, p.columns, c_line, c_pixel,
                2 * y, 2 * x, np.int64(0),
            )  # fmt: skip
            image, y, x = place_after(results, image, y, x)
        tiles = fewest_parts(count, tile_rows(panels))
        # Loop 2: columns, a panel at a time.
        for n in range(panels.parts):
            j0, columns, vectors = panel_of(alpha, panels, cols, n)
            row, filled = vectors * MACHINE.vector_bytes, vectors * lanes(alpha)
            matrix = p.channels * row
            b = u + matrices_before(pieces, 16) * p.channels * j0 * size
            # Loop 3: the elements of a square. Loop 4: squares, a register tile at a time.
            for q in range(16):
                some = pieces_with(pieces, q)
                for i in range(some.down):
                    at = run_starts + 8 * i * some.along
                    list_rows(at, i * pixels.along * v_row, v_row, some.along)
                for t in range(tiles.parts):
                    r0, high = begin_of(tiles, t), length_of(tiles, t)
                    shift_places(a_places, rows + 8 * r0, q * v_step)
                    list_places(c_places, m + q * m_step + r0 * m_row, m_row)
                    register_tile(
                        alpha, high, filled, some.down * some.along, run_starts, p.channels,
                        a_places, size, b, row, c_places, 0, 0, False, _TILES,
                    )  # fmt: skip
                b += some.down * some.along * matrix
            list_rows(sums, m, m_step, 16)
            bias_here = no_bias if bias == 0 else bias + j0 * size
            for t in range(count):
                for i in range(4):
                    place = load_index(places + 32 * t, i)
                    store(targets + 8 * i, place + j0 * size if place != 0 else nowhere)
                _result_of(alpha, sums, t * m_row, targets, 0, columns)
                if finish:
                    finish_tile(epilogue, targets, targets, 4, columns, bias_here)
    keep_alive(block_memory)
    keep_alive(outside_memory)
    keep_alive(table_memory)
    return DONE


def correlate_part(task, part, parts):
    """Compute the sums of ``(B' x B) * (A g A')``; a task is a factor and words.

    The factor only gives the element type. The words are `Patches`; the address and the columns of
    G, whose rows are the positions of all images; and the address of memory for the sums, and of
    how many stretches there are. G is dense.
    """
    (alpha,) = first_of(task)
    words = words_behind(task)
    p = read_patches(words)
    words += 8 * PATCHES_WORDS
    g, cols = load_index(words, 0), load_index(words, 1)
    sums, number = align(load_index(words, 2), CACHE_LINE), load_index(words, 3)
    size = bytes_of(alpha)
    wide = lanes(alpha)
    all_vectors = (cols + wide - 1) // wide
    # Where channels fill no more than one register, fewer would take as long to transform.
    least = wide if p.channels <= wide else MACHINE.tile_rows
    first_stretch, last_stretch, first_channel, channels, v_first, vectors = part_of_gradient(
        number, p.channels, all_vectors, least, parts, part
    )
    if channels == 0 or vectors == 0 or first_stretch == last_stretch:
        return DONE
    j_first = v_first * wide
    columns = min(vectors * wide, cols - j_first)
    pieces, pixels = kernel_pieces(p.reach_y, p.reach_x), pixel_squares(p)
    results = result_squares(p)
    squares = p.batch * results.down * results.along
    panels = panels_of(alpha, columns, WIDE)
    # What meets one piece lies side by side along a line of an image. Other pieces meet some more
    # behind it: then the depth comes in lines, and stretches and blocks are whole ones.
    several = pieces.down * pieces.along > 1
    whole = results.along if several else 1
    # The blocks decide in which order sums are made: they must not depend on the threads.
    square_bytes = 16 * (p.channels * size + all_vectors * MACHINE.vector_bytes)
    most = max(_LONG_BLOCK_BYTES // square_bytes, _LEAST_DEPTH)
    blocks = fewest_parts(longest(squares // whole, number), max(most // whole, 1))
    most = length_of(blocks, 0) * whole
    line = whole if several else most
    v_row = align(channels * size, CACHE_LINE) + CACHE_LINE
    y_row = vectors * MACHINE.vector_bytes + CACHE_LINE
    v_step, y_step = _apart(most_pixel_squares(p, most) * v_row), _apart(most * y_row)
    sum_row = all_vectors * MACHINE.vector_bytes + CACHE_LINE
    sum_step = p.channels * sum_row
    stretch_step = align(matrices_before(pieces, 16) * sum_step, CACHE_LINE)
    sums += first_channel * sum_row + v_first * MACHINE.vector_bytes
    block_memory = np.empty(16 * v_step + CACHE_LINE, np.uint8)
    v = align(address_in(block_memory), CACHE_LINE)
    # Zeros, as in `workspace`: behind the last column nothing is written.
    gradient_memory = np.zeros(16 * y_step + CACHE_LINE, np.uint8)
    y = align(address_in(gradient_memory), CACHE_LINE)
    zeros_memory = np.zeros(max(channels, columns) * size, np.uint8)
    zeros = address_in(zeros_memory)
    a_places, c_places = stack_memory(PLACES_BYTES), stack_memory(PLACES_BYTES)
    values = stack_memory(SQUARE_BYTES)
    table_memory = np.empty(16 + most // line, np.int64)
    gradients = address_in(table_memory)
    run_starts = gradients + 8 * 16
    list_rows(gradients, y, y_step, 16)
    tiles = fewest_parts(channels, tile_rows(panels))
    g_line = p.columns * cols * size

    # Loop 1: squares of results, which are the depth, a block at a time.
    stretch, first = first_stretch, share(squares // whole, number, first_stretch) * whole
    while stretch < last_stretch:
        # No stretch is empty, see `long_stretches`.
        begin = share(squares // whole, number, stretch) * whole
        end = share(squares // whole, number, stretch + 1) * whole
        count = min(most, end - first)
        runs = (count + line - 1) // line
        begin_pixels = first_pixel_square(p, first)
        _transform_images(
            alpha, p, begin_pixels, last_pixel_square(p, first + count - 1) + 1 - begin_pixels,
            first_channel, channels, v, v_step, v_row, zeros,
        )  # fmt: skip
        for n in range(runs):
            start = first_pixel_square(p, first + n * line) - begin_pixels
            store(run_starts + 8 * n, start * v_row)
        image, down, along = place_of(results, first)
        for t in range(count):
            list_square(
                values, 2, g + image * p.lines * g_line + j_first * size, p.lines, p.columns,
                g_line, cols * size, 2 * down, 2 * along, zeros,
            )  # fmt: skip
            _transform_gradient(alpha, values, 0, gradients, t * y_row, columns)
            image, down, along = place_after(results, image, down, along)
        # Loops 2 and 3: the elements of a square, and pieces that have it. Loops 4 and 5: columns
        # and channels, a register tile.
        sums_here = sums + stretch * stretch_step
        for q in range(16):
            some = pieces_with(pieces, q)
            for piece in range(some.down * some.along):
                beyond = piece // some.along * pixels.along + piece % some.along
                v_here = v + q * v_step + beyond * v_row
                for n in range(panels.parts):
                    panel = panel_of(alpha, panels, columns, n)
                    at = panel.first * size
                    for t in range(tiles.parts):
                        r0, high = begin_of(tiles, t), length_of(tiles, t)
                        list_places(a_places, v_here + r0 * size, size)
                        list_places(c_places, sums_here + r0 * sum_row + at, sum_row)
                        register_tile(
                            alpha, high, panel.vectors * wide, runs, run_starts, count // runs,
                            a_places, v_row, y + q * y_step + at, y_row, c_places, 0, 0,
                            first > begin, _TILES,
                        )  # fmt: skip
                sums_here += sum_step
        first += count
        if first == end:
            stretch += 1
    keep_alive(block_memory)
    keep_alive(gradient_memory)
    keep_alive(zeros_memory)
    keep_alive(table_memory)
    return DONE


def weights_part(task, part, parts):
    """Compute ``C = G' S G`` for some channels, of all sums S of `correlate_part`.

    The task is the same, and the address of C.
    """
    (alpha,) = first_of(task)
    words = words_behind(task)
    p = read_patches(words)
    words += 8 * PATCHES_WORDS
    cols, number, c = load_index(words, 1), load_index(words, 3), load_index(words, 4)
    sums = align(load_index(words, 2), CACHE_LINE)
    size = bytes_of(alpha)
    begin, end = share(p.channels, parts, part), share(p.channels, parts, part + 1)
    pieces = kernel_pieces(p.reach_y, p.reach_x)
    matrices = matrices_before(pieces, 16)
    sum_row = (cols + lanes(alpha) - 1) // lanes(alpha) * MACHINE.vector_bytes + CACHE_LINE
    sum_step = p.channels * sum_row
    stretch_step = align(matrices * sum_step, CACHE_LINE)
    for stretch in range(1, number):
        for matrix in range(matrices):
            for k in range(begin, end):
                row = sums + matrix * sum_step + k * sum_row
                add_elements(alpha, row, row + stretch * stretch_step, cols)
    sources = stack_memory(16 * 8)
    targets = stack_memory(9 * 8)
    # From the last piece to the first: a tap that several share is written by its owner last.
    for piece in range(pieces.down * pieces.along - 1, -1, -1):
        down, along = piece // pieces.along, piece % pieces.along
        for q in range(16):
            # An element that this piece lacks counts for no tap that it owns: any will do.
            matrix = max(matrix_number(pieces, q, down, along), 0)
            store(sources + 8 * q, sums + matrix * sum_step)
        corner = 2 * down * (p.reach_x + 1) + 2 * along
        for i in range(3):
            tap = corner + i * (p.reach_x + 1)
            at = c + tap * p.channels * cols * size
            list_rows(targets + 24 * i, at, p.channels * cols * size, 3)
        for k in range(begin, end):
            _weight_gradient_of(alpha, sources, k * sum_row, targets, k * cols * size, cols)
    return DONE
