"""The patches of images, which a convolution multiplies, and no matrix of them.

The patch of a position is all that a convolution's kernel covers there: for each of its taps, the
channels of one pixel. Images are dense, with channels last, so that an element of a patch lies at
``pixel[position] + tap``, and the taps of one row of the kernel are one run.

Where patches reach over the border of an image, a band of a few of its lines is copied into a
frame of zeros first, which stays in the second cache.
"""

from __future__ import annotations

from typing import NamedTuple

from numbadrop.kernels.jit import inner
from numbadrop.kernels.memory import clear_bytes, copy_bytes, load_index, store
from numbadrop.kernels.packing import Matrix
from numbadrop.kernels.places import list_rows
from numbadrop.kernels.windows import Axis

__all__ = [
    "PATCHES_WORDS", "Patches", "bring", "is_padded", "lines_in", "most_band_bytes",
    "read_matrix", "read_patches", "run_start",
]  # fmt: skip


class Patches(NamedTuple):
    """The patches of a batch of images; the words of a task, in this order."""

    address: int
    batch: int
    height: int
    width: int
    channels: int
    lines: int
    """Positions down an image."""
    columns: int
    """Positions along a line."""
    step_y: int
    step_x: int
    """Pixels from one position to the next."""
    first_y: int
    first_x: int
    """Pixel under the first tap of the first position; negative in the padding."""
    reach_y: int
    reach_x: int
    """Pixels from the first tap to the last."""
    runs: int
    run_pixels: int
    """A run of taps lies on so many pixels side by side."""
    taps: int
    """Address of int64 pairs: how far each run begins below and right of the first tap."""


PATCHES_WORDS = len(Patches._fields)


class _Spread(NamedTuple):
    """How far apart things lie in a band, in bytes."""

    row: int
    pixel: int


@inner
def _read_axis(words, at):
    return Axis(load_index(words, at), load_index(words, at + 1), load_index(words, at + 2))


@inner
def read_matrix(words, at):
    """Read a `Matrix` of 7 words of a task."""
    return Matrix(load_index(words, at), _read_axis(words, at + 1), _read_axis(words, at + 4))


@inner
def read_patches(words):
    """Read `Patches` from the words of a task."""
    return Patches(
        load_index(words, 0), load_index(words, 1), load_index(words, 2), load_index(words, 3),
        load_index(words, 4), load_index(words, 5), load_index(words, 6), load_index(words, 7),
        load_index(words, 8), load_index(words, 9), load_index(words, 10), load_index(words, 11),
        load_index(words, 12), load_index(words, 13), load_index(words, 14), load_index(words, 15),
    )  # fmt: skip


@inner
def _row_pixels(p):
    """Return how many pixels of a row the patches of a line cover."""
    return (p.columns - 1) * p.step_x + p.reach_x + 1


@inner
def is_padded(p):
    """Whether a patch reaches over the border."""
    last_y = p.first_y + (p.lines - 1) * p.step_y + p.reach_y
    last_x = p.first_x + _row_pixels(p) - 1
    return p.first_y < 0 or p.first_x < 0 or last_y >= p.height or last_x >= p.width


@inner
def lines_in(band_bytes, p, size):
    """Return how many lines of positions have their patches in a band of about that size."""
    rows = p.step_y + p.reach_y // p.lines  # an image of few lines brings what they reach, too
    return max(1, band_bytes // (_row_pixels(p) * p.channels * rows * size))


@inner
def most_band_bytes(p, lines, channels, size):
    """Return the most bytes that the patches of so many lines, of some channels, take."""
    if not is_padded(p):
        return 0
    images = min(lines, (lines + p.lines - 2) // p.lines + 1)
    rows = (lines - 1) * p.step_y + images * (p.reach_y + 1)
    return rows * _row_pixels(p) * channels * size


@inner
def _copy_row(target, p, image, y, first_channel, channels, size):
    """Copy what the patches of a line cover of one row of an image; zeros outside."""
    pixel = channels * size
    begin = max(p.first_x, 0)
    end = min(p.first_x + _row_pixels(p), p.width)
    if y < 0 or y >= p.height or begin >= end:
        clear_bytes(target, _row_pixels(p) * pixel)
        return
    left, inside = (begin - p.first_x) * pixel, (end - begin) * pixel
    clear_bytes(target, left)
    clear_bytes(target + left + inside, _row_pixels(p) * pixel - left - inside)
    source_pixel = p.channels * size
    source = p.address + ((image * p.height + y) * p.width + begin) * source_pixel
    source += first_channel * size
    if channels == p.channels:
        copy_bytes(target + left, source, inside)
        return
    for x in range(end - begin):
        copy_bytes(target + left + x * pixel, source + x * source_pixel, pixel)


@inner
def bring(p, band, places, first, last, first_channel, channels, size):
    """List where the first tap of the lines [first, last) lies, and return the spread.

    The lines of all images are numbered through. Where padding is needed, the pixels are copied to
    `band`, of the channels that are wanted.
    """
    if not is_padded(p):
        spread = _Spread(p.width * p.channels * size, p.channels * size)
        for n in range(first, last):
            row = (n // p.lines) * p.height + p.first_y + (n % p.lines) * p.step_y
            at = row * spread.row + p.first_x * spread.pixel + first_channel * size
            store(places + (n - first) * 8, p.address + at)
        return spread
    spread = _Spread(_row_pixels(p) * channels * size, channels * size)
    n = first
    while n < last:
        y = n % p.lines
        here = min(p.lines - y, last - n)
        rows = (here - 1) * p.step_y + p.reach_y + 1
        for r in range(rows):
            source = p.first_y + y * p.step_y + r
            target = band + r * spread.row
            _copy_row(target, p, n // p.lines, source, first_channel, channels, size)
        list_rows(places + (n - first) * 8, band, p.step_y * spread.row, here)
        band += rows * spread.row
        n += here
    return spread


@inner
def run_start(p, run, spread):
    """Return how many bytes behind the first tap of a patch a run begins."""
    return load_index(p.taps, 2 * run) * spread.row + load_index(p.taps, 2 * run + 1) * spread.pixel
