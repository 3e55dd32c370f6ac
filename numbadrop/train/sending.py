"""Minibatches on the way to where the model is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from numbadrop.data.ahead import ahead
from numbadrop.kernels import to_device

__all__ = ["send", "sent_ahead"]

Array = NDArray[Any]


def send(array: Array, device: str) -> Array:
    """Return a host array in the memory of a device, "cpu" or "cuda"."""
    sent: Array = to_device(array) if device == "cuda" else array
    return sent


def sent_ahead(
    batches: Iterator[tuple[Array, Array]], count: int, device: str
) -> Iterator[tuple[Array, Array]]:
    """Yield so many minibatches, the inputs in the memory of a device.

    For a GPU, a thread assembles and sends them ahead, while the kernels of a step run. Labels
    stay on the host, where they are checked and counted.
    """
    if device == "cpu":
        return batches

    def next_sent(number: int) -> tuple[Array, Array]:
        x, y = next(batches)
        return to_device(x, beside=True), y

    return ahead(next_sent, range(count))
