"""Which memory register tiles prefetch while they multiply: what will be needed soon.

A core waits for few cache lines at a time, and what it reads meanwhile waits with them. So they are
not asked for in one go: requests are listed, and a tile makes one in each step of its loop.
"""

from __future__ import annotations

from typing import NamedTuple

from numbadrop.kernels.jit import inner
from numbadrop.kernels.memory import CACHE_LINE, align
from numbadrop.kernels.places import PLACES, PLACES_BYTES, list_places, list_units, shift_places
from numbadrop.kernels.shares import share
from numbadrop.kernels.windows import Axis

__all__ = ["REQUESTS_BYTES", "ahead_of", "count_requests", "list_requests"]

_MOST_REQUESTS = 640
"""A tile makes one for each two of its depth. A panel that is read along its depth has 520 at most
in a group, a band of the positions of images may have more."""
REQUESTS_BYTES = 8 * _MOST_REQUESTS


class Ahead(NamedTuple):
    """A stretch of memory in each of some units of an axis, in groups of `PLACES` units."""

    address: int
    """Where the stretch of unit 0 begins."""
    axis: Axis
    first: int
    last: int
    """Units with which the first group begins, and at most the last one."""
    groups: int
    step: int
    """Bytes of a request."""
    steps: int
    """Requests for each stretch."""
    last_step: int
    """Where the last of them begins: what lies behind a stretch may be another thread's."""


@inner
def ahead_of(address, axis, first, count, length, step):
    """Return the stretches, of `length` bytes, of units [first, first + count) of an axis.

    Left out are stretches that run backwards, and kept units that are fewer than `PLACES`: there
    are no more indices to read.
    """
    groups = (count + PLACES - 1) // PLACES
    last = first + (groups - 1) * PLACES
    if axis.indices != 0:
        last = first + count - PLACES
    if length <= 0 or (axis.indices != 0 and count < PLACES):
        groups = 0
    # Whole lines: what begins within one ends in one more than its length says.
    lead = address % CACHE_LINE
    length = align(lead + length, CACHE_LINE)
    steps = (length + step - 1) // step
    return Ahead(address - lead, axis, first, last, groups, step, steps, max(length - step, 0))


@inner
def count_requests(ahead):
    """Return how many requests bring all of it."""
    return ahead.groups * ahead.steps * PLACES


@inner
def list_requests(requests, end, ahead, parts, part):
    """List one part of the groups in `REQUESTS_BYTES` at `requests`, from `end` on.

    Return the new end of the list. What has no place in it is left out, as is a stretch longer than
    the list.
    """
    axis = ahead.axis
    for group in range(share(ahead.groups, parts, part), share(ahead.groups, parts, part + 1)):
        after = end + ahead.steps * PLACES_BYTES
        if after > requests + REQUESTS_BYTES:
            break
        first = min(ahead.first + group * PLACES, ahead.last)
        if axis.indices == 0:
            list_places(end, ahead.address + first * axis.stride, axis.stride)
        else:
            list_units(end, ahead.address, axis.stride, axis.indices + first * 8)
        for n in range(1, ahead.steps):
            shift_places(end + n * PLACES_BYTES, end, min(n * ahead.step, ahead.last_step))
        end = after
    return end
