"""A data set for classification, split into training and test samples."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbadrop.data.augmentation import Augmentation
from numbadrop.data.floats import as_floats
from numbadrop.data.minibatches import Minibatches
from numbadrop.errors import UserError

__all__ = ["DataError", "Dataset"]

Array = NDArray[Any]


class DataError(UserError, ValueError):
    """Data that cannot be used; the message names the file or argument and what is wrong."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test samples of a classification task.

    Parameters
    ----------
    name : str
    train_inputs, test_inputs : ndarray, shape (samples, features)
        Floats, or small whole numbers. Images are flattened, their channels innermost.
    train_labels, test_labels : ndarray of int, shape (samples,)
        In ``[0, classes)``.
    classes : int
    divisor : float, default 1
        What whole numbers of this data are divided by to become the floats that a net sees: 255
        where bytes become floats in [0, 1]. That was done already to inputs stored as floats, and
        is done to others batch by batch.
    image_shape : tuple of int, optional
        Height, width and channels, where the inputs are images.

    Raises
    ------
    DataError
        If shapes or lengths do not fit together, there are no samples, an input is not finite,
        `divisor` is not above 0, or a label is not an integer in ``[0, classes)``.

    Examples
    --------
    >>> inputs, labels = np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1])
    >>> data = Dataset("rows", inputs, labels, inputs[:2], labels[:2], classes=2)
    >>> data.features
    4
    """

    name: str
    train_inputs: Array
    train_labels: Array
    test_inputs: Array
    test_labels: Array
    classes: int
    divisor: float = 1.0
    image_shape: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            inputs, labels = getattr(self, f"{part}_inputs"), getattr(self, f"{part}_labels")
            check_inputs(f"{self.name}: {part}_inputs", inputs)
            check_labels(f"{self.name}: {part}_labels", labels, len(inputs), self.classes)
        if self.test_inputs.shape[1] != self.features:
            raise DataError(
                f"{self.name}: train_inputs have {self.features} features, "
                f"test_inputs have {self.test_inputs.shape[1]}"
            )
        if not self.divisor > 0:
            raise DataError(f"{self.name}: divisor must be above 0, got {self.divisor}")
        shape = self.image_shape
        if shape is not None and (
            len(shape) != 3 or min(shape) < 1 or math.prod(shape) != self.features
        ):
            raise DataError(
                f"{self.name}: image_shape must be (height, width, channels) of {self.features} "
                f"features, got {shape}"
            )

    @property
    def features(self) -> int:
        """Number of input units."""
        return int(self.train_inputs.shape[1])

    def minibatches(
        self, batch_size: int, seed: int = 0, augmentation: Augmentation | None = None
    ) -> Minibatches:
        """Return the training samples as `Minibatches` of the floats that a net sees.

        Raises
        ------
        DataError
            If `augmentation` is given and the inputs are not images.
        ValueError
            If an argument is out of range.
        """
        if augmentation is not None and self.image_shape is None:
            raise DataError(f"{self.name}: augmentation needs images, image_shape is None")
        return Minibatches(
            self.train_inputs,
            self.train_labels,
            batch_size,
            seed,
            divisor=self.divisor,
            augmentation=augmentation,
            image_shape=self.image_shape,
        )

    def validation_split(self, count: int) -> Dataset:
        """Return a data set that tests on `count` of the training samples instead.

        For choosing hyper-parameters: the test samples are not in it. The ones held out are drawn
        at random, since samples may lie sorted by class, and are always the same.

        Raises
        ------
        ValueError
            If `count` does not leave at least one sample on either side.
        """
        samples = len(self.train_inputs)
        if not 1 <= count < samples:
            raise ValueError(f"count must be in [1, {samples}), got {count}")
        held_out = np.zeros(samples, np.bool_)
        held_out[np.random.default_rng(0).choice(samples, count, replace=False)] = True
        return replace(
            self,
            train_inputs=self.train_inputs[~held_out],
            train_labels=self.train_labels[~held_out],
            test_inputs=self.train_inputs[held_out],
            test_labels=self.train_labels[held_out],
        )


def dataset_of(
    name: str,
    train: Array,
    train_labels: Array,
    test: Array,
    test_labels: Array,
    classes: int,
) -> Dataset:
    """Return the data set of samples with any axes, in float32: bytes become floats in [0, 1].

    Samples with two axes are images of one channel, with three, images with channels. The test
    samples are scaled as the training samples are.

    Raises
    ------
    DataError
        As `Dataset` does, and if training and test images differ in shape, or only one of them
        are whole numbers.
    """
    if (train.dtype.kind == "f") != (test.dtype.kind == "f"):
        raise DataError(
            f"{name}: training and test inputs must both be floats or both whole numbers, got "
            f"{train.dtype} and {test.dtype}"
        )
    divisor = 255.0 if train.dtype == np.uint8 else 1.0
    shape, test_shape = _image_shape(train), _image_shape(test)
    if shape is not None and test_shape is not None and shape != test_shape:
        raise DataError(f"{name}: training images are of shape {shape}, test images {test_shape}")
    return Dataset(
        name,
        _rows_of_floats(train, divisor),
        train_labels.astype(np.int64),
        _rows_of_floats(test, divisor),
        test_labels.astype(np.int64),
        classes,
        divisor=divisor,
        image_shape=shape,
    )


def _image_shape(samples: Array) -> tuple[int, int, int] | None:
    match samples.shape[1:]:
        case (height, width):
            return height, width, 1
        case (height, width, channels):
            return height, width, channels
    return None


def _rows_of_floats(samples: Array, divisor: float) -> Array:
    rows = samples.reshape(len(samples), math.prod(samples.shape[1:]))
    # What is not numbers at all, or no longer finite, `Dataset` refuses by name.
    if rows.dtype.kind not in "fiub":
        return rows
    with np.errstate(over="ignore"):
        return as_floats(rows, divisor).astype(np.float32, copy=False)


def check_inputs(name: str, inputs: Array) -> None:
    """Raise DataError unless `inputs` are finite numbers of shape (samples, features)."""
    if inputs.ndim != 2 or 0 in inputs.shape:
        raise DataError(f"{name} must be of shape (samples, features), got shape {inputs.shape}")
    if inputs.dtype.kind not in "fiub":
        raise DataError(f"{name} must be numbers, got dtype {inputs.dtype}")
    if inputs.dtype.kind != "f":
        return
    finite = np.isfinite(inputs).all(axis=1)
    if not finite.all():
        at = int(np.argmin(finite))
        raise DataError(f"{name} must be finite, sample {at} has a NaN or an infinity")


def check_labels(name: str, labels: Array, samples: int, classes: int) -> None:
    """Raise DataError unless `labels` are integers in [0, classes), one for each sample."""
    if labels.shape != (samples,):
        raise DataError(
            f"{name} must be of shape ({samples},), one for each input, got {labels.shape}"
        )
    if labels.dtype.kind not in "iu":
        raise DataError(f"{name} must be integers, got dtype {labels.dtype}")
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if outside.size:
        at = outside[0]
        raise DataError(f"{name} must be in [0, {classes}), got {labels[at]} at position {at}")
