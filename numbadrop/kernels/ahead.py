"""What register tiles ask for while they multiply: memory that will be needed soon.

A core waits for few cache lines at a time, and what it reads meanwhile waits with them. So they are
not asked for in one go: they are listed, and a tile makes one request in each step of its loop.
"""

from __future__ import annotations

from typing import NamedTuple

from numbadrop.kernels.jit import inner
from numbadrop.kernels.places import PLACES, PLACES_BYTES, list_places, list_units, shift_places
from numbadrop.kernels.windows import Axis

__all__ = ["REQUESTS_BYTES", "Ahead", "ahead_of", "list_ahead", "list_part"]

_MOST_REQUESTS = 264
"""A tile of the greatest depth of a matrix product makes no more."""
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

    Kept units that are fewer than `PLACES` are left out: there are no more indices to read.
    """
    groups = (count + PLACES - 1) // PLACES
    last = first + (groups - 1) * PLACES
    if axis.indices != 0:
        last = first + count - PLACES
        groups = groups if count >= PLACES else 0
    steps = (length + step - 1) // step
    return Ahead(address, axis, first, last, groups, step, steps, max(length - step, 0))


@inner
def list_ahead(requests, listed, ahead, begin, end):
    """List groups [begin, end) in `REQUESTS_BYTES` at `requests`, behind what is listed.

    Return where the list ends. What has no place in it is left out.
    """
    axis = ahead.axis
    for group in range(begin, end):
        behind = listed + ahead.steps * PLACES_BYTES
        if behind > requests + REQUESTS_BYTES:
            break
        first = min(ahead.first + group * PLACES, ahead.last)
        if axis.indices == 0:
            list_places(listed, ahead.address + first * axis.stride, axis.stride)
        else:
            list_units(listed, ahead.address, axis.stride, axis.indices + first * 8)
        for n in range(1, ahead.steps):
            offset = min(n * ahead.step, ahead.last_step)
            shift_places(listed + n * PLACES_BYTES, listed, offset)
        listed = behind
    return listed


@inner
def list_part(requests, listed, ahead, parts, part):
    """List one part of all groups, of as many as there are tiles to ask for them."""
    begin, end = ahead.groups * part // parts, ahead.groups * (part + 1) // parts
    return list_ahead(requests, listed, ahead, begin, end)
