"""Sharing out the gradient of a convolution's weights, whose depth are the positions of all images.

Positions come in a few stretches, each of which has sums of its own, as large as the weights. They
are shared out first: what one thread brings near, or transforms, no other does. Only where there
are more threads do several share the channels or columns of one.
"""

from __future__ import annotations

from typing import NamedTuple

from numbadrop.kernels.elements import MACHINE
from numbadrop.kernels.jit import inner
from numbadrop.kernels.shares import share

__all__ = ["longest", "part_of_gradient", "stretches"]

_MOST_STRETCHES, _STRETCHES_BYTES = 8, 1 << 21


def stretches(units: int, weights_bytes: int) -> int:
    """Return how many stretches there are, of at least a unit, with sums of so many bytes each.

    The number decides in which order sums are made: it must not depend on the threads.
    """
    most = min(_MOST_STRETCHES, units, _STRETCHES_BYTES // max(weights_bytes, 1))
    # A power of two: with most even numbers of threads, all have as much to do.
    return 1 << max(most.bit_length() - 1, 0)


@inner
def longest(units, number):
    """Return how many units the longest stretch has."""
    return (units + number - 1) // number


class Part(NamedTuple):
    """What of the gradient of the weights one part computes."""

    first_stretch: int
    last_stretch: int
    """Behind the last of them."""
    first_channel: int
    channels: int
    first_vector: int
    """Of columns, in registers."""
    vectors: int


@inner
def part_of_gradient(number, channels, vectors, least, parts, part):
    """Share the gradient of the weights out: its stretches, and what several parts share of one.

    Channels are not cut into fewer than `least`, or where columns cannot be shared out evenly, than
    a tile has rows.
    """
    # Evenly, if both have a factor of two; else a few threads have a stretch more.
    common = 1
    while parts % (2 * common) == 0 and number % (2 * common) == 0:
        common *= 2
    sharing = parts // common if common > 1 else max(1, parts // number)
    groups = (parts + sharing - 1) // sharing
    group, part = part // sharing, part % sharing
    # Channels are cut first: then no thread copies, or transforms, the pixels that another does.
    if vectors % sharing != 0:
        least = min(least, MACHINE.tile_rows)
    across_channels = 1
    for pieces in range(2, sharing + 1):
        if sharing % pieces == 0 and channels >= pieces * least:
            across_channels = pieces
    across_cols = sharing // across_channels
    row, col = part // across_cols, part % across_cols
    first_channel = share(channels, across_channels, row)
    first_vector = share(vectors, across_cols, col)
    return Part(
        share(number, groups, group),
        share(number, groups, group + 1),
        first_channel,
        share(channels, across_channels, row + 1) - first_channel,
        first_vector,
        share(vectors, across_cols, col + 1) - first_vector,
    )
