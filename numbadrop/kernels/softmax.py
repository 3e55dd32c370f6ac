"""The negative log-likelihood under a softmax, and its gradient, in one pass over each row."""

from __future__ import annotations

from numbers import Real
from typing import NamedTuple

import numpy as np
from numba import carray
from numpy.typing import ArrayLike, NDArray

from numbadrop.kernels.arrays import Array, check_alike, check_matrix, check_real
from numbadrop.kernels.device import as_array, cuda, is_host, to_device
from numbadrop.kernels.jit import DONE
from numbadrop.kernels.memory import (
    array_data,
    array_length,
    as_pointer,
    first_of,
    load_index,
    store,
    words_behind,
)
from numbadrop.kernels.shares import share
from numbadrop.kernels.task import run_task

__all__ = ["cross_entropy", "cross_entropy_gradient", "labels_beside"]

_SERIAL_BELOW = 5_000
"""Exponentials that one thread takes about as fast as a region of several starts."""


class _Factor(NamedTuple):
    factor: float


def _cross_entropy_part(task, part, parts):
    (factor,) = first_of(task)
    words = words_behind(task)
    logits, gradient = load_index(words, 0), load_index(words, 3) != 0
    shape = rows, cols = array_length(logits, 0), array_length(logits, 1)
    z = carray(as_pointer(factor, array_data(logits)), shape)
    labels = carray(as_pointer(rows, array_data(load_index(words, 1))), rows)
    out = as_pointer(factor, array_data(load_index(words, 2)))
    loss, dz = carray(out, rows), carray(out, shape)  # one of the two
    for i in range(share(rows, parts, part), share(rows, parts, part + 1)):
        label = labels[i]
        known = 0 <= label < cols
        largest = z[i, 0] if cols > 0 else factor
        for j in range(1, cols):
            if z[i, j] > largest:
                largest = z[i, j]
        total = 0.0  # in float64, however many classes there are
        for j in range(cols):
            power = np.exp(z[i, j] - largest)
            total += power
            if gradient:
                dz[i, j] = power
        if not known:
            store(array_data(load_index(words, 4)), 1)
        elif gradient:
            for j in range(cols):
                dz[i, j] = dz[i, j] * (factor / total)
            dz[i, label] -= factor
        else:
            loss[i] = np.log(total) - (z[i, label] - largest)
    return DONE


def _run(logits: Array, labels: ArrayLike, factor: float | Array, gradient: bool) -> Array:
    """Return the losses, or the gradient times a factor, on the host."""
    batch, classes = logits.shape
    checked = _check_labels(labels, batch, classes)
    factor = check_real("factor", factor, logits.dtype)
    logits = np.ascontiguousarray(logits)
    out = np.empty(logits.shape if gradient else batch, logits.dtype)
    unknown = np.zeros(1, np.int64)
    run_task(
        _cross_entropy_part, logits.dtype, _Factor(factor),
        id(logits), id(checked), id(out), gradient, id(unknown),
        parallel=logits.size >= _SERIAL_BELOW,
    )  # fmt: skip
    if unknown[0]:
        _refuse_unknown(labels, checked, classes)
    return out


def _refuse_unknown(labels: ArrayLike, checked: NDArray[np.int64], classes: int) -> None:
    wrong = (checked < 0) | (checked >= classes)
    if wrong.any():
        at = int(np.argmax(wrong))
        given = np.asarray(labels)[at]
        raise ValueError(f"labels must be in [0, {classes}), labels[{at}] is {given}")


def _sent(labels: ArrayLike, batch: int, classes: int) -> Array:
    """Return labels as int64 on the GPU.

    Those that come from there are not looked at: the loss of one that is out of range is NaN.
    """
    array = as_array(labels)
    if is_host(array):
        checked = _check_labels(array, batch, classes)
        _refuse_unknown(labels, checked, classes)
        return to_device(checked)
    if array.shape != (batch,):
        raise ValueError(f"labels must have shape ({batch},) as logits, got {array.shape}")
    if array.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers in [0, {classes}), got dtype {array.dtype}")
    return array if array.dtype == np.int64 else array.astype(np.int64)


def labels_beside(logits: Array, labels: ArrayLike) -> ArrayLike:
    """Return labels where the logits are, to be sent once for a loss and its gradient."""
    if is_host(logits):
        return labels
    return _sent(labels, *check_matrix("logits", logits).shape)


def _check_labels(labels: ArrayLike, batch: int, classes: int) -> NDArray[np.int64]:
    labels = np.asarray(labels)
    if labels.shape != (batch,):
        raise ValueError(f"labels must have shape ({batch},) as logits, got {labels.shape}")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        at = int(np.argmin(np.isfinite(labels)))
        raise ValueError(f"labels must be integers in [0, {classes}), labels[{at}] is {labels[at]}")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers in [0, {classes}), got dtype {labels.dtype}")
    # An unsigned number that is too large becomes a negative one, which is out of range as well.
    checked = np.ascontiguousarray(labels, np.int64)
    return checked if checked.flags.aligned else checked.copy()


def cross_entropy(logits: ArrayLike, labels: ArrayLike) -> Array:
    """Return the negative log-likelihood of each label under the softmax of its row.

    Parameters
    ----------
    logits : array_like of float32 or float64, shape (batch, classes)
        Any finite values: the largest of each row is subtracted first, so that nothing overflows.
    labels : array_like of int, shape (batch,)
        In [0, classes). Of logits on a GPU the labels may be on either side.

    Returns
    -------
    ndarray, shape (batch,)
        In nats. NaN where a label that was on a GPU already is out of range.

    Raises
    ------
    TypeError
        If `logits` are not float32 or float64, or `labels` not integers.
    ValueError
        If a shape or a label does not fit.

    Examples
    --------
    >>> cross_entropy([[0.0, 0.0], [1000.0, 0.0]], [1, 0]).round(6)
    array([0.693147, 0.      ])
    """
    logits = check_matrix("logits", logits)
    if not is_host(logits):
        return cuda().cross_entropy(logits, _sent(labels, *logits.shape))
    return _run(logits, labels, 1.0, gradient=False)


def cross_entropy_gradient(
    logits: ArrayLike, labels: ArrayLike, factor: float | Array = 1.0
) -> Array:
    """Return the gradient of the sum of `cross_entropy`, times a factor.

    ``factor (softmax(logits)[b, j] - (1 if j == labels[b] else 0))``.

    Parameters
    ----------
    logits, labels
        As for `cross_entropy`.
    factor : float, default 1.0
        Of logits on a GPU also an array of one element there, which is not waited for.

    Returns
    -------
    ndarray, shape (batch, classes)

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`.

    Examples
    --------
    >>> cross_entropy_gradient([[0.0, 0.0]], [1])
    array([[ 0.5, -0.5]])
    """
    logits = check_matrix("logits", logits)
    if is_host(logits):
        return _run(logits, labels, factor, gradient=True)
    checked = _sent(labels, *logits.shape)
    if isinstance(factor, Real):
        factor = check_real("factor", factor, logits.dtype)
    else:
        factor = as_array(factor)
        check_alike("factor", factor, "logits", logits)
        if factor.size != 1:
            raise ValueError(f"factor must be one number, got shape {factor.shape}")
    return cuda().cross_entropy_gradient(logits, checked, factor)
