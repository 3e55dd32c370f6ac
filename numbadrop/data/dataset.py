"""A data set for classification, split into training and test samples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
        Floats; or small whole numbers, which minibatches cast to float32 as they are.
    train_labels, test_labels : ndarray of int, shape (samples,)
        In ``[0, classes)``.
    classes : int
    divisor : float, default 1
        What whole numbers of the original data were divided by to give the inputs: 255 where
        bytes became floats in [0, 1]. `predict` does the same to a file of whole numbers.

    Raises
    ------
    DataError
        If shapes or lengths do not fit together, there are no samples, an input is not finite, or
        a label is not an integer in ``[0, classes)``.

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

    @property
    def features(self) -> int:
        """Number of input units."""
        return int(self.train_inputs.shape[1])

    def validation_split(self, count: int) -> Dataset:
        """Return a data set that tests on the last `count` training samples instead.

        For choosing hyper-parameters: the test samples are not in it.

        Raises
        ------
        ValueError
            If `count` does not leave at least one sample on either side.
        """
        samples = len(self.train_inputs)
        if not 1 <= count < samples:
            raise ValueError(f"count must be in [1, {samples}), got {count}")
        return replace(
            self,
            train_inputs=self.train_inputs[:-count],
            train_labels=self.train_labels[:-count],
            test_inputs=self.train_inputs[-count:],
            test_labels=self.train_labels[-count:],
        )


def check_inputs(name: str, inputs: Array) -> None:
    """Raise DataError unless `inputs` are finite numbers of shape (samples, features)."""
    if inputs.ndim != 2 or 0 in inputs.shape:
        raise DataError(f"{name} must be of shape (samples, features), got shape {inputs.shape}")
    if inputs.dtype.kind not in "fiub":
        raise DataError(f"{name} must be numbers, got dtype {inputs.dtype}")
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
