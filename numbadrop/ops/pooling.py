"""Operations that make one pixel of a window of pixels, for each unit alone."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from numbadrop import kernels
from numbadrop.autograd import primitive
from numbadrop.kernels.arrays import Pair

__all__ = ["avg_pool2d", "max_pool2d"]

Array = NDArray[Any]


@primitive
def max_pool2d(x: Array, size: Pair, stride: Pair | None = None, padding: Pair = 0) -> Array:
    """Return the largest of the pixels in each window, see `numbadrop.kernels.max_pool2d`.

    Of equal ones, the first gets all of the gradient.

    Examples
    --------
    >>> import numpy as np
    >>> from numbadrop.autograd import Variable
    >>> x = Variable(np.array([3.0, 1.0, 2.0, 5.0]).reshape(1, 1, 4, 1), requires_grad=True)
    >>> y = max_pool2d(x, size=(1, 2))
    >>> y.backward(np.ones((1, 1, 2, 1)))
    >>> y.value.ravel(), x.grad.ravel()
    (array([3., 5.]), array([1., 0., 0., 1.]))
    """
    return kernels.max_pool2d(x, size, stride, padding)


@max_pool2d.gradient("x")
def _(g: Array, out: Array, x: Array, size: Pair, stride: Pair | None, padding: Pair) -> Array:
    return kernels.max_pool2d_gradient(g, x, out, size, stride, padding)


@primitive
def avg_pool2d(x: Array, size: Pair, stride: Pair | None = None, padding: Pair = 0) -> Array:
    """Return the mean of the pixels in each window, see `numbadrop.kernels.avg_pool2d`.

    Padding counts as pixels that are zero.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([2.0, 4.0, 6.0, 8.0]).reshape(1, 1, 4, 1)
    >>> avg_pool2d(x, size=(1, 2), padding=(0, 1)).value.ravel()
    array([1., 5., 4.])
    """
    return kernels.avg_pool2d(x, size, stride, padding)


@avg_pool2d.gradient("x")
def _(g: Array, out: Array, x: Array, size: Pair, stride: Pair | None, padding: Pair) -> Array:
    return kernels.avg_pool2d_gradient(g, x.shape, size, stride, padding)
