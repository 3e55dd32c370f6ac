"""Batch normalization: the moments of each unit over the batch, and what is done with them.

Sums are made in float64 over chunks of rows, which depend on the shape alone, and the chunks are
added in order: any number of threads gives the same bits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import carray
from numpy.typing import ArrayLike, NDArray

from numbadrop.address import address_of
from numbadrop.index_set import IndexSet
from numbadrop.kernels.arrays import (
    Array,
    as_dense,
    check_alike,
    check_dtype,
    check_is_array,
    check_matrices,
    check_matrix,
    check_real,
    check_same_memory,
)
from numbadrop.kernels.device import as_array, cuda, empty, is_host
from numbadrop.kernels.elements import bytes_of
from numbadrop.kernels.jit import DONE
from numbadrop.kernels.memory import as_pointer, first_of, load_index, words_behind
from numbadrop.kernels.shares import share
from numbadrop.kernels.task import run_task

__all__ = ["batch_moments", "batch_norm", "batch_norm_gradient", "track_moments"]

_SERIAL_BELOW = 50_000
"""Elements that one thread passes about as fast as several."""
_CHUNK = 32_768
_LEAST_CHUNK_ROWS = 64
"""Elements of a chunk of rows, and the fewest rows, beside which its own two are nothing."""


class _Element(NamedTuple):
    zero: float
    """Of the type of the elements; statistics are float64."""


def _sums_part(task, part, parts):
    (zero,) = first_of(task)
    words = words_behind(task)
    rows, units, chunk_rows, chunks = (
        load_index(words, 0), load_index(words, 1), load_index(words, 2), load_index(words, 3)
    )  # fmt: skip
    x, g, center_at, sums = (
        load_index(words, 4), load_index(words, 5), load_index(words, 6), load_index(words, 7)
    )  # fmt: skip
    pitch = units * bytes_of(zero)
    center = carray(as_pointer(0.0, center_at), units)
    # Of its own memory: threads that add next to each other's sums would share cache lines.
    total, moment = np.empty(units), np.empty(units)
    for chunk in range(share(chunks, parts, part), share(chunks, parts, part + 1)):
        total[:] = 0
        moment[:] = 0
        for i in range(chunk * chunk_rows, min((chunk + 1) * chunk_rows, rows)):
            x_row = carray(as_pointer(zero, x + i * pitch), units)
            if g == 0:
                for k in range(units):
                    distance = x_row[k] - center[k]
                    total[k] += distance
                    moment[k] += distance * distance
            else:
                g_row = carray(as_pointer(zero, g + i * pitch), units)
                for k in range(units):
                    total[k] += g_row[k]
                    moment[k] += g_row[k] * (x_row[k] - center[k])
        out = carray(as_pointer(0.0, sums + chunk * units * 16), (2, units))
        for k in range(units):
            out[0, k] = total[k]
            out[1, k] = moment[k]
    return DONE


def _apply_part(task, part, parts):
    (zero,) = first_of(task)
    words = words_behind(task)
    rows, units = load_index(words, 0), load_index(words, 1)
    x, g, y = load_index(words, 2), load_index(words, 3), load_index(words, 4)
    pitch = units * bytes_of(zero)
    coefficients = carray(as_pointer(0.0, load_index(words, 5)), (4, units))
    center, slope, offset, gain = (
        coefficients[0], coefficients[1], coefficients[2], coefficients[3]
    )  # fmt: skip
    for i in range(share(rows, parts, part), share(rows, parts, part + 1)):
        x_row = carray(as_pointer(zero, x + i * pitch), units)
        y_row = carray(as_pointer(zero, y + i * pitch), units)
        if g == 0:
            for k in range(units):
                y_row[k] = (x_row[k] - center[k]) * slope[k] + offset[k]
        else:
            g_row = carray(as_pointer(zero, g + i * pitch), units)
            for k in range(units):
                y_row[k] = (x_row[k] - center[k]) * slope[k] + offset[k] + g_row[k] * gain[k]
    return DONE


def _sums(x: Array, center: NDArray[np.float64], g: Array | None = None) -> NDArray[np.float64]:
    """Return the sums over rows of g and ``g (x - center)``; without g, of ``g = x - center``."""
    rows, units = x.shape
    chunk_rows = max(_LEAST_CHUNK_ROWS, _CHUNK // max(units, 1))
    chunks = -(-rows // chunk_rows)
    sums = np.empty((chunks, 2, units))
    run_task(
        _sums_part, x.dtype, _Element(0.0),
        rows, units, chunk_rows, chunks,
        address_of(x), 0 if g is None else address_of(g), address_of(center), address_of(sums),
        parallel=x.size >= _SERIAL_BELOW,
    )  # fmt: skip
    with np.errstate(all="ignore"):  # as silent as a kernel
        total: NDArray[np.float64] = sums.sum(axis=0)
    return total


def _apply(
    x: Array,
    center: NDArray[np.float64],
    slope: NDArray[np.float64],
    offset: NDArray[np.float64],
    g: Array | None = None,
    gain: NDArray[np.float64] | None = None,
) -> Array:
    """Return ``(x - center) slope + offset + g gain``, rounded once."""
    coefficients = np.stack([center, slope, offset, slope if gain is None else gain])
    y = empty(x.shape, x)
    run_task(
        _apply_part, x.dtype, _Element(0.0),
        *x.shape, address_of(x), 0 if g is None else address_of(g), address_of(y),
        address_of(coefficients), parallel=x.size >= _SERIAL_BELOW,
    )  # fmt: skip
    return y


def _check_moments(
    x: Array, mean: ArrayLike, variance: ArrayLike, eps: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the means and the variances as float64."""
    eps = check_real("eps", eps)
    if not 0 < eps < np.inf:
        raise ValueError(f"eps must be positive and finite, got {eps}")
    checked = []
    for name, given in (("mean", mean), ("variance", variance)):
        array = as_array(given)
        check_same_memory(name, array, "x", x)
        _check_length(name, array, x)
        checked.append(as_dense(array if array.dtype == np.float64 else array.astype(np.float64)))
    return checked[0], checked[1]


def _check_length(name: str, array: Array, x: Array) -> None:
    if array.shape != x.shape[1:]:
        raise ValueError(f"{name} must have shape {x.shape[1:]}, got {array.shape}")


def _check_factors(name: str, given: ArrayLike | None, x: Array) -> Array | None:
    """Return a weight or a bias, which has one number for each unit."""
    if given is None:
        return None
    array = as_array(given)
    _check_length(name, array, x)
    check_alike(name, array, "x", x)
    return array


def batch_moments(x: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean and the biased variance of each unit over the batch.

    Both are summed in one pass, as distances from the first row. That is one of the data, so that
    a large mean costs the variance no precision (Chan, Golub and LeVeque, "Algorithms for
    computing the sample variance", The American Statistician 37 (1983) 242-247, section 3).

    Parameters
    ----------
    x : array_like of float32 or float64, shape (batch, units)
        At least one row.

    Returns
    -------
    mean, variance : ndarray of float64, shape (units,)
        The same bits whatever the number of threads.

    Raises
    ------
    TypeError, ValueError
        If the dtype or shape is another, or there is no row.

    Examples
    --------
    >>> batch_moments([[1e9, 0.0], [1e9 + 2, 3.0]])
    (array([1.0e+09, 1.5e+00]), array([1.  , 2.25]))
    """
    x = check_matrix("x", x)
    if len(x) == 0:
        raise ValueError(f"x must have at least one row to have a mean, got shape {x.shape}")
    if not is_host(x):
        return cuda().batch_moments(x)
    x = np.ascontiguousarray(x)
    center = x[0].astype(np.float64)
    first, second = _sums(x, center) / len(x)
    with np.errstate(all="ignore"):  # as silent as a kernel
        return center + first, np.maximum(second - first * first, 0)


def track_moments(
    running_mean: Array,
    running_var: Array,
    mean: Array,
    variance: Array,
    units: IndexSet,
    *,
    count: int,
    momentum: float,
) -> None:
    """Let the running statistics of some units follow the moments of a batch, in place.

    ``running[units] = (1 - momentum) running[units] + momentum moments``. The variance becomes the
    unbiased one first. Other units keep their bits.

    Parameters
    ----------
    running_mean, running_var : ndarray of float32 or float64, shape (units.size,)
    mean, variance : ndarray of float64, shape (len(units),)
        As from `batch_moments`.
    units : IndexSet
    count : int
        Of the values of each unit in the batch, at least 2.
    momentum : float

    Raises
    ------
    TypeError, ValueError
        If arrays lie in two memories, or a dtype, shape or number does not fit.

    Examples
    --------
    >>> means, variances = np.zeros(3), np.ones(3)
    >>> moments = np.array([2.0, 4.0]), np.array([1.5, 0.0])
    >>> track_moments(means, variances, *moments, IndexSet([0, 2], 3), count=4, momentum=0.5)
    >>> means, variances
    (array([1., 0., 2.]), array([1.5, 1. , 0.5]))
    """
    for name, array, shape in (
        ("running_mean", running_mean, (units.size,)), ("mean", mean, (len(units),)),
        ("running_var", running_var, (units.size,)), ("variance", variance, (len(units),)),
    ):  # fmt: skip
        check_is_array(name, array)
        check_same_memory(name, array, "running_mean", running_mean)
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    check_dtype("running_mean", running_mean)
    check_alike("running_var", running_var, "running_mean", running_mean)
    for name, array in (("mean", mean), ("variance", variance)):
        if array.dtype != np.float64:
            raise TypeError(f"{name} must be float64, got {array.dtype}")
    if count < 2:
        raise ValueError(f"count must be at least 2, got {count}")
    momentum = check_real("momentum", momentum)
    unbiased = count / (count - 1)
    if not is_host(running_mean):
        cuda().track_moments(
            running_mean, running_var, mean, variance, units, unbiased=unbiased, momentum=momentum
        )
        return
    for name, running in (("running_mean", running_mean), ("running_var", running_var)):
        if not running.flags.writeable:
            raise ValueError(f"{name} is read-only")
    with np.errstate(all="ignore"):  # as silent as a kernel
        for running, observed in ((running_mean, mean), (running_var, variance * unbiased)):
            running[units] = (1 - momentum) * running[units] + momentum * observed


def batch_norm(
    x: ArrayLike,
    mean: ArrayLike,
    variance: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
) -> Array:
    """Return ``(x - mean) / sqrt(variance + eps) * weight + bias``, rounded once.

    Parameters
    ----------
    x : array_like of float32 or float64, shape (batch, units)
    mean, variance : array_like, shape (units,)
        Best as float64, in which all is computed.
    weight, bias : array_like of the dtype of x, shape (units,), optional
        1 and 0 if they are left out.
    eps : float, default 1e-5
        Positive.

    Returns
    -------
    ndarray, shape (batch, units)

    Raises
    ------
    TypeError, ValueError
        If a dtype or shape does not fit the others, or `eps` is out of range.

    Examples
    --------
    >>> batch_norm([[0.0], [4.0]], [2.0], [4.0], [10.0], [1.0], eps=1e-12).round(6)
    array([[-9.],
           [11.]])
    """
    x = check_matrix("x", x)
    center, squares = _check_moments(x, mean, variance, eps)
    factor, offset = _check_factors("weight", weight, x), _check_factors("bias", bias, x)
    if not is_host(x):
        return cuda().batch_norm(x, center, squares, factor, offset, eps=float(eps))
    x, slope = np.ascontiguousarray(x), 1 / np.sqrt(squares + eps)
    if factor is not None:
        slope = slope * factor
    return _apply(x, center, slope, np.zeros_like(center) if offset is None else offset)


def batch_norm_gradient(
    g: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    variance: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    training: bool = True,
) -> tuple[Array, Array, Array]:
    """Return the gradients of x, weight and bias, of ``y = batch_norm(x, ...)``.

    One pass sums, another makes the gradient of x.

    Parameters
    ----------
    g : array_like of float32 or float64, shape (batch, units)
        The gradient of y.
    x, mean, variance, weight, eps
        As for `batch_norm`.
    training : bool, default True
        Whether the moments are those of x, which then acts through them too, or constants.

    Returns
    -------
    dx : ndarray, shape (batch, units)
    d_weight, d_bias : ndarray, shape (units,)
        Of the dtype of x; the same bits whatever the number of threads.

    Raises
    ------
    TypeError, ValueError
        If a dtype or shape does not fit the others, or `eps` is out of range.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch normalization: accelerating deep network training by reducing
    internal covariate shift", ICML 2015, section 3.

    Examples
    --------
    >>> dx, d_weight, d_bias = batch_norm_gradient([[1.0], [3.0]], [[0.0], [2.0]], [1.0], [1.0])
    >>> d_weight.round(3), d_bias
    (array([2.]), array([4.]))
    """
    g, x = check_matrices("g", g, "x", x)
    if g.shape != x.shape:
        raise ValueError(f"g must have the shape of x, {x.shape}, got {g.shape}")
    center, squares = _check_moments(x, mean, variance, eps)
    factor = _check_factors("weight", weight, x)
    if not is_host(x):
        # A kernel is compiled once for the types of these numbers.
        return cuda().batch_norm_gradient(
            g, x, center, squares, factor, eps=float(eps), training=bool(training)
        )
    g, x, scale = np.ascontiguousarray(g), np.ascontiguousarray(x), 1 / np.sqrt(squares + eps)
    total, moment = _sums(x, center, g)
    gain = scale if factor is None else scale * factor
    slope, offset = np.zeros_like(gain), np.zeros_like(gain)
    if training and len(x) > 0:
        slope, offset = -gain * scale * scale * moment / len(x), -gain * total / len(x)
    dx = _apply(x, center, slope, offset, g, gain)
    return dx, (moment * scale).astype(x.dtype), total.astype(x.dtype)
