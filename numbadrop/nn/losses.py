"""Losses of what a net returns."""

from __future__ import annotations

from numpy.typing import ArrayLike

from numbadrop import ops
from numbadrop.autograd import Variable
from numbadrop.kernels.device import as_array
from numbadrop.kernels.softmax import labels_beside
from numbadrop.nn.activation import Activation, Array, Input

__all__ = ["cross_entropy", "mse"]


def cross_entropy(logits: Input, labels: ArrayLike, reduction: str = "mean") -> Variable:
    """Return the negative log-likelihood of `labels` under the softmax of a net's output.

    Parameters
    ----------
    logits : ndarray, Variable or Activation, shape (batch, classes)
    labels : array_like of int, shape (batch,)
        In [0, classes).
    reduction : {"mean", "sum"}
        Over the batch.

    Raises
    ------
    TypeError, ValueError
        As `numbadrop.ops.cross_entropy`, or if units are missing.

    Examples
    --------
    >>> import numpy as np
    >>> from numbadrop.nn import Linear
    >>> net = Linear(3, 10, gain=0.0)
    >>> loss = cross_entropy(net(np.ones((2, 3), np.float32)), [4, 7])
    >>> round(float(loss), 4)  # log(10)
    2.3026
    """
    whole = _whole("logits", logits)
    value = whole.value if isinstance(whole, Variable) else whole
    return ops.cross_entropy(whole, labels_beside(value, labels), reduction)


def mse(prediction: Input, target: Array, reduction: str = "mean") -> Variable:
    """Return the squared error between a net's output and `target`, of the same shape and dtype.

    Parameters
    ----------
    prediction : ndarray, Variable or Activation
    target : ndarray
    reduction : {"mean", "sum"}
        Over all elements.

    Raises
    ------
    TypeError, ValueError
        As `numbadrop.ops.mse`, or if units are missing.

    Examples
    --------
    >>> import numpy as np
    >>> from numbadrop.nn import Linear
    >>> net = Linear(3, 2, gain=0.0)
    >>> loss = mse(net(np.ones((1, 3), np.float32)), np.array([[1.0, 3.0]], np.float32))
    >>> float(loss)  # (1 + 9) / 2
    5.0
    """
    return ops.mse(_whole("prediction", prediction), target, reduction)


def _whole(name: str, x: Input) -> Array | Variable:
    if not isinstance(x, Activation):
        return x if isinstance(x, Variable) else as_array(x)
    if not x.units.is_all:
        raise ValueError(f"{name} must have all of its {x.units.size} units, got {len(x.units)}")
    return x.values
