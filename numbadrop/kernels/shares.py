"""Sharing things out: rows among threads, vectors among panels, rows among register tiles."""

from __future__ import annotations

from typing import NamedTuple

from numbadrop.kernels.elements import MACHINE
from numbadrop.kernels.jit import inner

__all__ = ["Split", "begin_of", "full_parts", "share", "split"]


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
