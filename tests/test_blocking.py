"""How products are cut up: every row, depth and column is in one piece, and none is too large."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from numbadrop.kernels.blocking import (
    _DEPTH_BLOCK,
    _GROUP_BYTES,
    _STRIPS_BYTES,
    _WALKED_BYTES,
    cut_up,
    group_of,
    panel_of,
    panels_of,
    piece_of,
)
from numbadrop.kernels.elements import MACHINE, WIDEST
from numbadrop.kernels.product import Strided
from numbadrop.kernels.shares import begin_of, fewest_parts, length_of
from numbadrop.kernels.tile import WIDE


@numba.njit
def parts_of(total, most):
    parts = fewest_parts(total, most)
    return [(begin_of(parts, n), length_of(parts, n)) for n in range(parts.parts)]


@numba.njit
def panels(alpha, columns, kind):
    parts = panels_of(alpha, columns, kind)
    return [panel_of(alpha, parts, columns, n) for n in range(parts.parts)]


@numba.njit
def groups_and_pieces(alpha, a, sizes, begins):
    (rows, depth, columns), (i_first, j_first) = sizes, begins
    cut = cut_up(alpha, a, rows, depth, columns)
    groups = [group_of(cut, i_first, n, 8) for n in range(cut.groups.parts)]
    pieces = [
        piece_of(alpha, cut, depth, j_first, j_first + columns, n, p)
        for n in range(cut.blocks.parts)
        for p in range(cut.panels.parts + 1)
    ]
    return cut, groups, pieces


@numba.njit
def packs(alpha, a, rows, depth, columns):
    return cut_up(alpha, a, rows, depth, columns).packs_a


def assert_covers(pieces, first, end):
    """`pieces` of a beginning and a length lie one behind the other and are as equal as can be."""
    assert [begin for begin, _ in pieces] == list(
        np.cumsum([first, *(length for _, length in pieces)])[:-1]
    )
    lengths = [length for _, length in pieces]
    assert first + sum(lengths) == end
    assert max(lengths) - min(lengths) <= 1
    assert min(lengths) > 0


@pytest.mark.parametrize("most", [1, 2, 6, 8])
def test_the_fewest_parts_cover_everything_once(most):
    assert parts_of(0, most) == []
    for total in range(1, 50):
        parts = parts_of(total, most)
        assert_covers(parts, 0, total)
        assert max(length for _, length in parts) <= most
        assert len(parts) == -(-total // most)


@pytest.mark.parametrize("kind", [0, WIDE])
@pytest.mark.parametrize("alpha", [np.float32(1), np.float64(1)])
def test_panels_are_whole_registers_but_for_the_last_one(alpha, kind):
    lanes = MACHINE.vector_bytes // alpha.itemsize
    for columns in range(1, 9 * lanes + 2):
        found = panels(alpha, columns, kind)
        assert sum(panel.columns for panel in found) == columns
        if kind & WIDE and -(-columns // lanes) == WIDEST:
            assert len(found) == 1
            continue
        assert max(panel.vectors for panel in found) <= MACHINE.tile_vectors
        for panel, after in zip(found, [*found[1:], None], strict=True):
            assert panel.vectors == -(-panel.columns // lanes)
            if after is not None:
                assert after.first == panel.first + panel.columns
                assert panel.columns == panel.vectors * lanes


@pytest.mark.parametrize(
    ("rows", "depth", "columns"),
    [(1, 1, 1), (7, 0, 5), (3000, 1025, 200), (5000, 512, 10), (5000, 700, 10), (900, 3000, 500)],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_groups_blocks_and_panels(rows, depth, columns, transposed):
    alpha = np.float32(1)
    a = Strided(0, 4, 4 * rows) if transposed else Strided(0, 4 * depth, 4)
    cut, groups, pieces = groups_and_pieces(alpha, a, (rows, depth, columns), (3, 16))
    most = _STRIPS_BYTES if cut.packs_a else _GROUP_BYTES
    tiles = [group.tiles for group in groups]
    heights = [(t.least * t.parts + t.longer) for t in tiles]
    assert_covers([(g.first, high) for g, high in zip(groups, heights, strict=True)], 3, 3 + rows)
    deep = max(piece.depth for piece in pieces)
    assert deep <= _DEPTH_BLOCK
    walked = cut.panels.parts * deep * min(4 * rows, 4096)
    assert cut.packs_a == (transposed and walked > _WALKED_BYTES)
    # One that nothing comes back to needs no group.
    if cut.panels.parts > 1 or cut.blocks.parts > 1:
        assert (max(heights) - 1) * deep * alpha.itemsize < most
    else:
        assert len(groups) == 1
    # Behind the last panel of a block comes the first of the next one, and nothing behind that.
    blocks = np.array(pieces).reshape(cut.blocks.parts, cut.panels.parts + 1, -1)
    np.testing.assert_array_equal(blocks[:-1, -1], blocks[1:, 0])
    assert pieces[-1].columns == pieces[-1].vectors == 0
    if depth > 0:
        assert_covers(list(map(tuple, blocks[:, 0, :2])), 0, depth)
    for block in blocks[:, :-1]:
        assert block[0, 2] == 16
        assert block[:, 3].sum() == columns


def test_a_transposed_a_is_packed_where_many_panels_walk_far_along_it():
    alpha = np.float32(1)
    wide = MACHINE.tile_vectors * MACHINE.vector_bytes // alpha.itemsize
    for sign in (1, -1):
        rows_apart = Strided(0, 4, sign * 4 * 1000)
        assert packs(alpha, rows_apart, 1000, 512, 3 * wide)
        assert not packs(alpha, rows_apart, 1000, 512, 2 * wide)
        assert not packs(alpha, rows_apart, 1000, 100, 3 * wide)
        # However far rows are apart, an element touches no more than a page.
        assert not packs(alpha, Strided(0, 4, sign * 1 << 20), 1000, 100, 3 * wide)
    # Along the depth there is nothing to gain, and what is spread in both ways cannot be packed.
    assert not packs(alpha, Strided(0, 4000, 4), 1000, 512, 9 * wide)
    assert not packs(alpha, Strided(0, 8, 4000), 1000, 512, 9 * wide)
