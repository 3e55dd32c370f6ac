"""How products are cut up: groups of rows, blocks of the depth, panels of columns, and tiles.

Each is as large as the cache allows in which it is to stay while what is inside of it runs.
"""

from __future__ import annotations

from typing import NamedTuple

from numbadrop.kernels.elements import MACHINE, WIDEST, bytes_of, lanes
from numbadrop.kernels.jit import inner
from numbadrop.kernels.shares import Split, begin_of, fewest_parts, length_of, split
from numbadrop.kernels.tile import WIDE, most_rows

__all__ = [
    "Cut", "Group", "Panel", "Piece", "cut_up", "group_of", "panel_of", "panel_row", "panels_of",
    "piece_of", "tile_rows",
]  # fmt: skip

_DEPTH_BLOCK = 512
"""The greatest depth of a panel: it and the rows of A that meet it share the nearest caches."""
_GROUP_BYTES, _STRIPS_BYTES = 1 << 20, 1 << 21
"""Most bytes of A that all panels pass before others come and B is packed again: half of an L2 of 2
MB for rows that are read where they lie. Strips are one stretch of memory, which is read ahead."""

_PAGE_BYTES = 4096
"""To walk further with each element costs no more: it touches a page of its own in any case."""
_WALKED_BYTES = 9 << 19
"""Most bytes over which tiles walk along the depth, once for each panel: for more it takes less
time to pack A first."""


class Panel(NamedTuple):
    """Some columns, as many as a register tile has at most."""

    first: int
    columns: int
    vectors: int
    """Of columns, the last of which may be in part."""


@inner
def panels_of(alpha, columns, kind):
    """Return how the registers that so many columns fill are shared out to panels.

    Just `WIDEST` registers are one panel where the caller's tiles, of this `kind`, are `WIDE`.
    """
    vectors = (columns + lanes(alpha) - 1) // lanes(alpha)
    if kind & WIDE and vectors == WIDEST:
        return split(vectors, 1)
    return fewest_parts(vectors, MACHINE.tile_vectors)


@inner
def panel_row(panels):
    """Return the bytes of a row of the widest of these panels."""
    return length_of(panels, 0) * MACHINE.vector_bytes


@inner
def tile_rows(panels):
    """Return how many rows the tiles have that meet these panels."""
    return most_rows(length_of(panels, 0))


@inner
def panel_of(alpha, panels, columns, number):
    """Return one of the panels of so many columns."""
    first = begin_of(panels, number) * lanes(alpha)
    vectors = length_of(panels, number)
    return Panel(first, min(vectors * lanes(alpha), columns - first), vectors)


class Cut(NamedTuple):
    """How the loops cut the rows, the depth and the columns of a product up."""

    groups: Split
    """Of rows of A and C."""
    blocks: Split
    """Of the depth; one of no depth makes zeros."""
    panels: Split
    """Of registers of columns."""
    packs_a: bool
    """Whether A is packed in strips: else each element of a row comes from a cache line of its own,
    again for each panel."""


@inner
def cut_up(alpha, a, rows, depth, columns):
    """Return the fewest pieces of so many rows of A, as equal as can be."""
    size = bytes_of(alpha)
    blocks = split(depth, max(1, (depth + _DEPTH_BLOCK - 1) // _DEPTH_BLOCK))
    panels = panels_of(alpha, columns, 0)
    walked = panels.parts * length_of(blocks, 0) * min(abs(a.depth), _PAGE_BYTES)
    packs_a = a.depth != size and a.row == size and walked > _WALKED_BYTES
    most = _STRIPS_BYTES if packs_a else _GROUP_BYTES
    groups = max(1, (rows * length_of(blocks, 0) * size + most - 1) // most)
    if panels.parts == 1 and blocks.parts == 1:  # Nothing comes back to a group.
        groups = 1
    return Cut(split(rows, groups), blocks, panels, packs_a)


class Group(NamedTuple):
    """A group of rows of A and C."""

    first: int
    tiles: Split
    """Of rows."""


@inner
def group_of(cut, i_first, number, tall):
    """Return a group by its number, in tiles of no more than `tall` rows."""
    tiles = fewest_parts(length_of(cut.groups, number), tall)
    return Group(i_first + begin_of(cut.groups, number), tiles)


class Piece(NamedTuple):
    """What a panel is packed from, of B: depth from `k0` on, and columns from `j0` on."""

    k0: int
    depth: int
    j0: int
    columns: int
    vectors: int


@inner
def piece_of(alpha, cut, depth, j_first, j_last, block, panel):
    """Return the piece of a panel; behind a block's last one comes the first of the next block.

    Behind the last of all comes one without columns.
    """
    if panel == cut.panels.parts:
        block, panel = block + 1, 0
    if block == cut.blocks.parts:
        return Piece(depth, 0, j_last, 0, 0)
    j0, columns, vectors = panel_of(alpha, cut.panels, j_last - j_first, panel)
    k0, deep = begin_of(cut.blocks, block), length_of(cut.blocks, block)
    return Piece(k0, deep, j_first + j0, columns, vectors)
