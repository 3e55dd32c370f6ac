"""Where Winograd's convolution has its squares: of results, of pixels, and which meet which.

Results are computed in squares of 2 x 2, each from a square of 4 x 4 pixels, two pixels from the
next. A kernel larger than 3 x 3 is a grid of pieces, two taps apart, so that square (y, x) of
results meets with piece (i, j) the square of pixels (y + i, x + j). Squares of both kinds are
numbered through all images, a line after the other.
"""

from __future__ import annotations

from typing import NamedTuple

from numbadrop.kernels.jit import inner
from numbadrop.kernels.memory import store
from numbadrop.kernels.places import PLACES_BYTES, list_places

__all__ = [
    "SQUARE_BYTES", "first_pixel_square", "kernel_pieces", "last_pixel_square", "list_square",
    "matrices_before", "matrix_number", "most_pixel_squares", "pieces_with", "pixel_square",
    "pixel_squares", "place_after", "place_of", "products_along", "result_squares",
]  # fmt: skip

SQUARE_BYTES = 12 * 8 + PLACES_BYTES
"""What the places of a square of up to 4 x 4 take, with what is written behind them."""


class Grid(NamedTuple):
    """So many things down, and along."""

    down: int
    along: int


def products_along(reach: int) -> int:
    """Return how many products along one axis a kernel takes whose last tap is so far behind.

    Of its pieces, one for every two taps behind the first, the first takes 4 and the others 3.
    """
    return 3 * (reach // 2) + 1


@inner
def kernel_pieces(reach_y, reach_x):
    """Return the grid of the pieces of a kernel."""
    return Grid(reach_y // 2, reach_x // 2)


@inner
def result_squares(p):
    """Return the grid of the squares of results of an image."""
    return Grid((p.lines + 1) // 2, (p.columns + 1) // 2)


@inner
def pixel_squares(p):
    """Return the grid of the squares of pixels that meet any piece, in an image."""
    results, pieces = result_squares(p), kernel_pieces(p.reach_y, p.reach_x)
    return Grid(results.down + pieces.down - 1, results.along + pieces.along - 1)


@inner
def place_of(grid, n):
    """Return of number n on the grids of all images the image, and its place down and along it."""
    return n // (grid.down * grid.along), n // grid.along % grid.down, n % grid.along


@inner
def place_after(grid, image, y, x):
    """Return the place of the next number, without the divisions that `place_of` takes."""
    x += 1
    if x == grid.along:
        y, x = y + 1, 0
    if y == grid.down:
        image, y = image + 1, 0
    return image, y, x


@inner
def first_pixel_square(p, n):
    """Return which square of pixels meets the first piece, for square of results number n."""
    image, y, x = place_of(result_squares(p), n)
    return pixel_square(p, image, y, x)


@inner
def pixel_square(p, image, y, x):
    """Return the number of a square of pixels by its place."""
    pixels = pixel_squares(p)
    return (image * pixels.down + y) * pixels.along + x


@inner
def last_pixel_square(p, n):
    """Return which square of pixels meets the last piece."""
    pieces = kernel_pieces(p.reach_y, p.reach_x)
    beyond = (pieces.down - 1) * pixel_squares(p).along + pieces.along - 1
    return first_pixel_square(p, n) + beyond


@inner
def most_pixel_squares(p, count):
    """Return the most squares of pixels from the first to the last that `count` results meet."""
    results, pieces = result_squares(p), kernel_pieces(p.reach_y, p.reach_x)
    lines = (count + results.along - 2) // results.along + 1
    images = (lines + results.down - 2) // results.down + 1
    between_lines = lines * (pieces.along - 1)
    return count + between_lines + images * (pieces.down - 1) * pixel_squares(p).along


@inner
def pieces_with(pieces, q):
    """Return the grid of the pieces, from the first on, that have element q of 16."""
    return Grid(pieces.down if q >= 4 else 1, pieces.along if q % 4 > 0 else 1)


@inner
def matrix_number(pieces, q, down, along):
    """Return which matrix is that of element q of a piece, or -1 where the piece lacks it."""
    some = pieces_with(pieces, q)
    if down >= some.down or along >= some.along:
        return -1
    return matrices_before(pieces, q) + down * some.along + along


@inner
def matrices_before(pieces, q):
    """Return how many matrices the elements before q have: one for each of their pieces."""
    total = 0
    for before in range(q):
        some = pieces_with(pieces, before)
        total += some.down * some.along
    return total


@inner
def list_square(table, side, address, lines, columns, line, pixel, y, x, outside):
    """List the places of a square of an image from (y, x) on; `outside` for those not there.

    From the last of its rows on, `PLACES` entries may be written: squares side by side in a table
    are listed in order.
    """
    if y >= 0 and y + side <= lines and x >= 0 and x + side <= columns:
        first = address + y * line + x * pixel
        for i in range(side):
            list_places(table + i * side * 8, first + i * line, pixel)
        return
    for i in range(side):
        for j in range(side):
            place = outside
            if 0 <= y + i < lines and 0 <= x + j < columns:
                place = address + (y + i) * line + (x + j) * pixel
            store(table + (i * side + j) * 8, place)
