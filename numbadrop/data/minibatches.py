"""Minibatches in a seeded random order."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbadrop.data.ahead import ahead
from numbadrop.data.augmentation import Augmentation
from numbadrop.data.floats import as_floats

__all__ = ["Minibatches"]

Array = NDArray[Any]


class Minibatches:
    """Samples cut into batches, in an order that depends on the seed and the epoch alone.

    No state is carried from one epoch to the next, so that any step of any epoch can be reached
    directly: that is what lets a run resume in the middle of an epoch.

    Parameters
    ----------
    inputs : ndarray, shape (samples, ...)
        Floats, or whole numbers that become float32 batch by batch.
    labels : ndarray, shape (samples, ...)
    batch_size : int
        The last batch of an epoch is shorter where the samples do not divide evenly.
    seed : int, default 0
    divisor : float, default 1
        What whole numbers are divided by.
    augmentation : Augmentation, optional
        Changes each batch, in a way that depends on the seed, the epoch and the number of the
        batch alone.
    image_shape : tuple of int, optional
        Height, width and channels of an input, for `augmentation`.

    Raises
    ------
    TypeError
        If `inputs` are not numbers.
    ValueError
        If there are no samples, if `inputs` and `labels` are of different length, if a label is NaN
        or infinite, if `batch_size` is below 1, if `seed` is negative, or if `augmentation` comes
        without the `image_shape` of an input or shifts an image out of sight.

    Notes
    -----
    The order is that of ``numpy.random.Generator.permutation``, which NumPy may change between
    its releases; so are the draws of `augmentation`.

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

    def __init__(
        self,
        inputs: Array,
        labels: Array,
        batch_size: int,
        seed: int = 0,
        *,
        divisor: float = 1.0,
        augmentation: Augmentation | None = None,
        image_shape: tuple[int, int, int] | None = None,
    ) -> None:
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
        if augmentation is not None:
            if image_shape is None:
                raise ValueError("augmentation needs images: image_shape is None")
            if math.prod(image_shape) != math.prod(inputs.shape[1:]):
                raise ValueError(
                    f"image_shape must be that of an input of shape {inputs.shape[1:]}, "
                    f"got {image_shape}"
                )
            if augmentation.shift >= min(image_shape[:2]):
                raise ValueError(
                    f"shift must be below the sides of an image, got {augmentation.shift} for "
                    f"images of shape {image_shape}"
                )
        self.inputs = inputs
        self.labels = labels
        self.batch_size = batch_size
        self.seed = seed
        self.divisor = divisor
        self.augmentation = augmentation
        self.image_shape = image_shape

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
        augmentation, image_shape = self.augmentation, self.image_shape

        def batch(number: int) -> tuple[Array, Array]:
            chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
            inputs, labels = self.inputs.take(chosen, axis=0), self.labels.take(chosen, axis=0)
            if augmentation is not None and image_shape is not None:
                # The key is longer than that of `order`: the two streams have nothing in common.
                stream = np.random.SeedSequence(self.seed, spawn_key=(epoch, number))
                images = inputs.reshape(-1, *image_shape)
                inputs = augmentation(images, np.random.default_rng(stream)).reshape(inputs.shape)
            return as_floats(inputs, self.divisor), labels

        numbers = range(start, len(self))
        # Handing a batch over lengthens a step by 0.1 ms. To gather and convert 128 images of
        # 32 x 32 x 3 bytes takes about that, and less where they are floats; to augment them takes
        # several times that, which a thread hides where there is a core to spare
        # (asv_benchmarks/benchmarks/batches.py).
        yield from map(batch, numbers) if augmentation is None else ahead(batch, numbers)
