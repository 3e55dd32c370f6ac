"""Where the taps of a convolution's kernel lie, forward and backward, along one axis at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from numbadrop.kernels.arrays import Pair, check_pair

__all__ = ["Geometry", "Taps", "check_geometry", "conv2d_size", "out_size"]


class Geometry(NamedTuple):
    """Kernel, stride, padding and dilation of a convolution along one axis."""

    kernel: int
    stride: int
    padding: int
    dilation: int

    def out_size(self, size: int) -> int:
        """Return how many outputs `size` inputs have."""
        return (size + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    def forward(self, size: int) -> Taps:
        """Return where the patches of all outputs lie among `size` inputs."""
        places = ((tap * self.dilation - self.padding, tap) for tap in range(self.kernel))
        return Taps(0, 1, self.out_size(size), self.stride, tuple(places))

    def backward(self, size: int) -> Iterator[Taps]:
        """Yield where the patches of `size` inputs lie among the outputs.

        Inputs a stride apart are reached by the same taps.
        """
        for first in range(min(self.stride, size)):
            places = []
            for tap in reversed(range(self.kernel)):
                place, rest = divmod(first + self.padding - tap * self.dilation, self.stride)
                if rest == 0:
                    places.append((place, tap))
            yield Taps(first, self.stride, len(range(first, size, self.stride)), 1, tuple(places))


class Taps(NamedTuple):
    """Which taps of a kernel meet what, along one axis."""

    target: int
    """The first element that is computed."""
    target_step: int
    """From one element that is computed to the next."""
    number: int
    """How many are computed."""
    step: int
    """From the patch of one of them to that of the next."""
    places: tuple[tuple[int, int], ...]
    """Where each tap of the first element's patch lies, ascending, and which it is."""

    @property
    def first(self) -> int:
        """Where the first tap of the first element's patch lies."""
        return self.places[0][0] if self.places else 0

    @property
    def reach(self) -> int:
        """How far the last tap lies behind it."""
        return self.places[-1][0] - self.first if self.places else 0

    @property
    def span(self) -> int:
        """How many elements the patches cover, from the first to the last."""
        return (self.number - 1) * self.step + self.reach + 1

    def leaves(self, size: int) -> bool:
        """Whether a patch reaches over the border of so many elements."""
        return self.first < 0 or self.first + self.span > size


def conv2d_size(
    size: tuple[int, int],
    kernel_size: Pair,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
) -> tuple[int, int]:
    """Return height and width of what a convolution makes of an image of this size.

    Raises
    ------
    TypeError, ValueError
        If a number is not an integer or out of range, or the kernel is larger than the padded
        image.

    Examples
    --------
    >>> conv2d_size((32, 32), 3, stride=2, padding=1)
    (16, 16)
    """
    axes = check_geometry(kernel_size, stride, padding, dilation)
    return out_size(axes, check_pair("size", size, 0))


def check_geometry(
    kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> tuple[Geometry, Geometry]:
    """Return the geometry along both axes.

    Raises
    ------
    TypeError, ValueError
        If a number is out of range for any image.
    """
    kernels, strides = check_pair("kernel_size", kernel_size, 1), check_pair("stride", stride, 1)
    paddings, dilations = check_pair("padding", padding, 0), check_pair("dilation", dilation, 1)
    down, along = zip(kernels, strides, paddings, dilations, strict=True)
    return Geometry(*down), Geometry(*along)


def out_size(axes: tuple[Geometry, Geometry], size: tuple[int, ...]) -> tuple[int, int]:
    """Return height and width of the output, or refuse a kernel that does not fit the image."""
    for name, axis, length in zip(("height", "width"), axes, size, strict=True):
        if axis.out_size(length) < 1:
            raise ValueError(
                f"the kernel is larger than the padded image: {name} {length} with padding "
                f"{axis.padding} on both sides, kernel size {axis.kernel} with dilation "
                f"{axis.dilation}"
            )
    return axes[0].out_size(size[0]), axes[1].out_size(size[1])
