"""Minibatches in a seeded random order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Minibatches", "as_floats"]

Array = NDArray[Any]


def as_floats(inputs: Array) -> Array:
    """Return `inputs` as floats: floats as they are, integers and booleans cast to float32.

    Data sets of small whole numbers stay in memory as bytes and pass through here one minibatch
    at a time.

    Examples
    --------
    >>> as_floats(np.array([[0, 1]], dtype=np.uint8))
    array([[0., 1.]], dtype=float32)
    """
    return inputs if inputs.dtype.kind == "f" else inputs.astype(np.float32)


class Minibatches:
    """Samples cut into batches, in an order that depends on the seed and the epoch alone.

    No state is carried from one epoch to the next, so that any step of any epoch can be reached
    directly: that is what lets a run resume in the middle of an epoch.

    Parameters
    ----------
    inputs : ndarray, shape (samples, ...)
        Floats, or integers that are cast to float32 batch by batch.
    labels : ndarray, shape (samples, ...)
    batch_size : int
        The last batch of an epoch is shorter where the samples do not divide evenly.
    seed : int, default 0

    Raises
    ------
    TypeError
        If `inputs` are not numbers.
    ValueError
        If there are no samples, if `inputs` and `labels` are of different length, if a label is NaN
        or infinite, if `batch_size` is below 1 or if `seed` is negative.

    Notes
    -----
    The order is that of ``numpy.random.Generator.permutation``, which NumPy may change between
    its releases.

    Examples
    --------
    >>> inputs, labels = np.eye(5, dtype=np.float32), np.arange(5)
    >>> minibatches = Minibatches(inputs, labels, batch_size=2, seed=0)
    >>> len(minibatches)
    3
    >>> [x.shape for x, y in minibatches.batches(epoch=0)]
    [(2, 5), (2, 5), (1, 5)]
    >>> [x.shape for x, y in minibatches.batches(epoch=0, start=1)]
    [(2, 5), (1, 5)]
    """

    def __init__(self, inputs: Array, labels: Array, batch_size: int, seed: int = 0) -> None:
        if inputs.dtype.kind not in "fiub":
            raise TypeError(f"inputs must be numbers, got dtype {inputs.dtype}")
        if inputs.ndim < 1 or labels.ndim < 1 or len(inputs) != len(labels) or len(inputs) == 0:
            raise ValueError(
                "inputs and labels must have one entry a sample and at least one sample, "
                f"got shapes {inputs.shape} and {labels.shape}"
            )
        if labels.dtype.kind == "f" and not np.isfinite(labels).all():
            at = np.argwhere(~np.isfinite(labels))[0]
            raise ValueError(
                f"labels must be finite, got {labels[tuple(at)]} at position {at.tolist()}"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        self.inputs = inputs
        self.labels = labels
        self.batch_size = batch_size
        self.seed = seed

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return -(-len(self.inputs) // self.batch_size)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the order of the samples in an epoch, shape (samples,)."""
        # A spawn key, not SeedSequence([seed, epoch]): entropy is padded with zeros, so epoch 0
        # would share its stream with default_rng(seed), which a model seeded alike draws from.
        stream = np.random.SeedSequence(self.seed, spawn_key=(epoch,))
        return np.random.default_rng(stream).permutation(len(self.inputs))

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Array, Array]]:
        """Yield ``(inputs, labels)`` of each batch of an epoch, from batch `start` on.

        Every batch is a fresh array that the caller may keep.

        Parameters
        ----------
        epoch : int
            Counted from 0.
        start : int, default 0
            How many batches to skip.
        """
        order = self.order(epoch)
        for first in range(start * self.batch_size, len(order), self.batch_size):
            chosen = order[first : first + self.batch_size]
            yield as_floats(self.inputs.take(chosen, axis=0)), self.labels.take(chosen, axis=0)
