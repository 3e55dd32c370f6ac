"""What the gradient rules of layers with weights share."""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray

from numbadrop.autograd import Block
from numbadrop.index_set import IndexSet

__all__ = ["Before", "on_block"]

Array = NDArray[Any]


class Before(NamedTuple):
    """Gradients before the rectifier and the scaling: of the sums, and of the bias."""

    h: Array
    b: Array


def on_block(values: Array, shape: tuple[int, ...], *index: IndexSet | None) -> Block | Array:
    """Return the gradient of an array of this shape whose part on `index` is `values`."""
    if values.shape == shape:
        return values
    units = zip(index, shape, strict=True)
    return Block(values, tuple(IndexSet.all(n) if kept is None else kept for kept, n in units))
