"""Sharing things out: rows among threads, vectors among panels, rows among register tiles."""

from __future__ import annotations

from typing import NamedTuple

from numbadrop.kernels.jit import inner

__all__ = ["Split", "begin_of", "fewest_parts", "full_parts", "length_of", "share", "split"]


class Split(NamedTuple):
    """How things are shared out into parts, as equal as can be.

    A division takes tens of cycles: it stands outside of a tile's loop.
    """

    parts: int
    least: int
    longer: int
    """So many parts, the first ones, have one more."""


@inner
def split(total, parts):
    """Return how `total` things are shared out."""
    return Split(parts, total // parts, total % parts)


@inner
def fewest_parts(total, most):
    """Return how `total` things are shared out so that no part has more than `most`."""
    return split(total, (total + most - 1) // most)


@inner
def begin_of(parts, number):
    """Return where a part begins, by its number."""
    return number * parts.least + min(number, parts.longer)


@inner
def length_of(parts, number):
    """Return how many things a part has."""
    return parts.least + 1 if number < parts.longer else parts.least


@inner
def full_parts(parts, most):
    """Return how many parts, the first ones, have as many as `most`, the most that one may have."""
    if parts.least == most:
        return parts.parts
    return parts.longer if parts.least + 1 == most else 0


@inner
def share(total, parts, number):
    """Return where part `number` of `total` things begins."""
    return begin_of(split(total, parts), number)
