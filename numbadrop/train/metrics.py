"""Error rates, and the line that an epoch leaves in ``metrics.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbadrop.errors import UserError
from numbadrop.train.atomic import patiently, write_atomically

__all__ = ["EpochMetrics", "error_rate", "read_metrics", "top_k_error"]

Array = NDArray[Any]


class EpochMetrics(NamedTuple):
    """What is known at the end of an epoch.

    Attributes
    ----------
    epoch : int
        Counted from 1.
    train_loss : float
        Mean over the samples of the epoch, each in its own step: with dropout, and with the
        weights of that step.
    train_error : float
        Fraction of them that was wrong, measured in the same way.
    test_error : float
        Fraction, without dropout, at the end of the epoch.
    seconds : float
        Time in training steps.
    step_ms_median : float
        Median time of a step (batch, forward, backward, update), in milliseconds.
    """

    epoch: int
    train_loss: float
    train_error: float
    test_error: float
    seconds: float
    step_ms_median: float


def error_rate(scores: Array, labels: Array) -> float:
    """Return the fraction of samples whose highest score is not at their label.

    Parameters
    ----------
    scores : ndarray, shape (samples, classes)
    labels : ndarray of int, shape (samples,)

    Examples
    --------
    >>> error_rate(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1]))
    0.5
    """
    return top_k_error(scores, labels, 1)


def top_k_error(scores: Array, labels: Array, k: int) -> float:
    """Return the fraction of samples whose label is not among their `k` highest scores.

    Of equal scores, that of the lower class counts as higher, as in `numpy.argmax`. A NaN counts as
    higher than any number.

    Parameters
    ----------
    scores : ndarray, shape (samples, classes)
    labels : ndarray of int, shape (samples,)
        In ``[0, classes)``.
    k : int
        In ``[1, classes]``.

    Raises
    ------
    TypeError
        If labels are not integers.
    ValueError
        If shapes do not fit, there are no samples, or a label or `k` is out of range.

    Examples
    --------
    >>> scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]])
    >>> top_k_error(scores, np.array([2, 1]), k=2)
    0.5
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers, got dtype {labels.dtype}")
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or len(scores) == 0:
        raise ValueError(
            "scores must be of shape (samples, classes) and labels of shape (samples,), "
            f"got {scores.shape} and {labels.shape}"
        )
    classes = scores.shape[1]
    if not 1 <= k <= classes:
        raise ValueError(f"k must be in [1, {classes}], got {k}")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels must be in [0, {classes}), got {labels.min()} to {labels.max()}")
    return float(np.mean(misses(scores, labels, k)))


def misses(scores: Array, labels: Array, k: int = 1) -> NDArray[np.bool_]:
    """Return, for each sample, whether its label is not among its `k` highest scores."""
    if k == 1:  # The same as below, where speed matters.
        return np.asarray((scores.argmax(axis=1) != labels) | np.isnan(scores).any(axis=1))
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    ahead = ~(scores <= own)  # unlike scores > own, true where there is a NaN
    ahead |= (scores == own) & (np.arange(scores.shape[1]) < labels[:, None])
    return np.asarray(np.count_nonzero(ahead, axis=1) >= k)


def append_metrics(path: Path, metrics: EpochMetrics) -> None:
    """Add a line to the file in a single write."""
    with patiently(lambda: path.open("ab", buffering=0)) as file:
        file.write(_line(metrics))


def write_metrics(path: Path, history: Iterable[EpochMetrics]) -> None:
    """Replace the file by the lines of `history`."""
    write_atomically(path, b"".join(map(_line, history)))


def _line(metrics: EpochMetrics) -> bytes:
    return json.dumps(metrics._asdict()).encode() + b"\n"


def read_metrics(path: str | Path) -> list[EpochMetrics]:
    """Return the epochs in a ``metrics.jsonl`` file.

    A last line that is not whole, as where the program was ended while it wrote, does not count.

    Raises
    ------
    UserError
        If another line is damaged.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "metrics.jsonl")
    ...     write_metrics(path, [EpochMetrics(1, 0.7, 0.4, 0.3, 60.0, 4.5)])
    ...     read_metrics(path)[-1].test_error
    0.3
    """
    *lines, last = Path(path).read_bytes().split(b"\n")
    history = []
    for number, line in enumerate([*lines, last] if last else lines, 1):
        try:
            history.append(EpochMetrics(**json.loads(line)))
        except (TypeError, ValueError) as error:
            if number <= len(lines):
                raise UserError(f"{path}, line {number}: no metrics of an epoch, {error}") from None
    return history
