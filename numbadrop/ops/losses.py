"""Losses: what a net's output is worth, as one number."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numbadrop import kernels
from numbadrop.autograd import primitive
from numbadrop.kernels.arrays import check_dtype, check_same_memory
from numbadrop.kernels.device import as_array, is_host

__all__ = ["cross_entropy", "mse"]

Array = NDArray[Any]


@primitive
def cross_entropy(logits: Array, labels: ArrayLike, reduction: str = "mean") -> Array:
    """Return the negative log-likelihood of `labels` under the softmax of `logits`.

    Parameters
    ----------
    logits, labels
        As for `numbadrop.kernels.cross_entropy`.
    reduction : {"mean", "sum"}
        Over the batch.

    Returns
    -------
    ndarray, shape ()
        In nats, of the dtype of `logits`.

    Raises
    ------
    TypeError
        If `logits` are not float32 or float64, or `labels` not integers.
    ValueError
        If a shape, a label or `reduction` is not as above, or the batch is empty and its mean is
        asked for.

    Examples
    --------
    >>> cross_entropy(np.array([[0.0, 0.0], [1000.0, 0.0]]), [1, 0]).value.round(6)
    np.float64(0.346574)
    """
    divisor = _divisor(reduction, len(logits), "logits")
    loss: Array = kernels.cross_entropy(logits, labels).sum()
    return loss if divisor == 1 else loss / divisor


@cross_entropy.gradient("logits")
def _(g: Array, out: Array, logits: Array, labels: ArrayLike, reduction: str) -> Array:
    divisor = _divisor(reduction, len(logits), "logits")
    # On a GPU, a division takes a kernel.
    factor: Array = g if divisor == 1 and not is_host(g) else g / divisor
    return kernels.cross_entropy_gradient(logits, labels, factor)


@primitive
def mse(prediction: Array, target: Array, reduction: str = "mean") -> Array:
    """Return the squared error between `prediction` and `target`.

    Parameters
    ----------
    prediction, target : ndarray of float32 or float64
        Of one shape and one dtype: nothing is broadcast.
    reduction : {"mean", "sum"}
        Over all elements.

    Returns
    -------
    ndarray, shape ()

    Raises
    ------
    TypeError
        If a dtype is another, or the two differ.
    ValueError
        If the shapes differ, `target`, on the host, holds NaN or inf, `reduction` is not as above,
        or the mean of no elements is asked for.

    Examples
    --------
    >>> float(mse(np.array([1.0, 2.0]), np.array([1.0, 4.0])))
    2.0
    """
    check_dtype("prediction", prediction)
    target = as_array(target)
    check_same_memory("target", target, "prediction", prediction)
    if target.shape != prediction.shape:
        raise ValueError(f"target must have shape {prediction.shape}, got {target.shape}")
    if target.dtype != prediction.dtype:
        raise TypeError(f"target must be {prediction.dtype}, got {target.dtype}")
    error = (prediction - target).ravel()
    divisor = _divisor(reduction, error.size, "prediction")
    loss: Array = np.square(error).sum() / divisor
    # Only a bad loss pays for the search for its cause. One on a GPU is not waited for.
    if is_host(target) and not np.isfinite(loss) and not np.isfinite(target).all():
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
