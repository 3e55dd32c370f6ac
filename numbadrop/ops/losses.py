"""Losses: what a net's output is worth, as one number."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numbadrop.autograd import primitive

__all__ = ["cross_entropy", "mse"]

Array = NDArray[Any]


@primitive
def cross_entropy(logits: Array, labels: ArrayLike, reduction: str = "mean") -> Array:
    """Return the negative log-likelihood of `labels` under the softmax of `logits`.

    Parameters
    ----------
    logits : ndarray, shape (batch, classes)
        Any finite floats: the largest of each row is subtracted first, so that nothing overflows.
    labels : array_like of int, shape (batch,)
        In [0, classes).
    reduction : {"mean", "sum"}
        Over the batch.

    Returns
    -------
    ndarray, shape ()
        In nats, of the dtype of `logits`.

    Raises
    ------
    TypeError
        If `labels` are not integers.
    ValueError
        If a shape, a label or `reduction` is not as above, or the batch is empty and its mean is
        asked for.

    Examples
    --------
    >>> cross_entropy(np.array([[0.0, 0.0], [1000.0, 0.0]]), [1, 0]).value.round(6)
    np.float64(0.346574)
    """
    if logits.ndim != 2:
        raise ValueError(f"logits must have shape (batch, classes), got {logits.shape}")
    checked = _check_labels(labels, *logits.shape)
    divisor = _divisor(reduction, len(logits), "logits")
    log_likelihood = _log_softmax(logits)[np.arange(len(logits)), checked]
    return np.asarray(-log_likelihood.sum() / divisor)


@cross_entropy.gradient("logits")
def _(g: Array, out: Array, logits: Array, labels: ArrayLike, reduction: str) -> Array:
    dx = _log_softmax(logits)
    np.exp(dx, out=dx)
    dx[np.arange(len(dx)), np.asarray(labels)] -= 1
    dx *= g / _divisor(reduction, len(dx), "logits")
    return dx


def _log_softmax(logits: Array) -> Array:
    shifted: Array = logits - logits.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def _check_labels(labels: ArrayLike, batch: int, classes: int) -> Array:
    labels = np.asarray(labels)
    if labels.shape != (batch,):
        raise ValueError(f"labels must have shape ({batch},) as logits, got {labels.shape}")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        at = int(np.argmin(np.isfinite(labels)))
        raise ValueError(f"labels must be integers in [0, {classes}), labels[{at}] is {labels[at]}")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers in [0, {classes}), got dtype {labels.dtype}")
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ValueError(f"labels must be in [0, {classes}), labels[{at}] is {labels[at]}")
    return labels


@primitive
def mse(prediction: Array, target: Array, reduction: str = "mean") -> Array:
    """Return the squared error between `prediction` and `target`.

    Parameters
    ----------
    prediction, target : ndarray
        Of one shape and one dtype: nothing is broadcast.
    reduction : {"mean", "sum"}
        Over all elements.

    Returns
    -------
    ndarray, shape ()

    Raises
    ------
    TypeError
        If the dtypes differ.
    ValueError
        If the shapes differ, `target` holds NaN or inf, `reduction` is not as above, or the mean
        of no elements is asked for.

    Examples
    --------
    >>> float(mse(np.array([1.0, 2.0]), np.array([1.0, 4.0])))
    2.0
    """
    target = np.asarray(target)
    if target.shape != prediction.shape:
        raise ValueError(f"target must have shape {prediction.shape}, got {target.shape}")
    if target.dtype != prediction.dtype:
        raise TypeError(f"target must be {prediction.dtype}, got {target.dtype}")
    error = (prediction - target).ravel()
    divisor = _divisor(reduction, error.size, "prediction")
    loss = np.asarray(np.square(error).sum() / divisor)
    # Only a bad loss pays for the search for its cause.
    if not np.isfinite(loss) and not np.isfinite(target).all():
        raise ValueError("target must be finite, got NaN or inf")
    return loss


@mse.gradient("prediction")
def _(g: Array, out: Array, prediction: Array, target: Array, reduction: str) -> Array:
    dx = prediction - target
    dx *= 2 * g / _divisor(reduction, dx.size, "prediction")
    return dx


@mse.gradient("target")
def _(g: Array, out: Array, prediction: Array, target: Array, reduction: str) -> Array:
    dx = target - prediction
    dx *= 2 * g / _divisor(reduction, dx.size, "prediction")
    return dx


def _divisor(reduction: str, count: int, name: str) -> int:
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
    if reduction == "sum":
        return 1
    if count == 0:
        raise ValueError(f"{name} is empty, and so has no mean; reduction='sum' gives 0")
    return count
