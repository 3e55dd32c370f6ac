"""The kernels' meaning in plain NumPy, under the same names: the oracle of the tests.

Nothing here is fast, checks its input, or imports anything but NumPy, so that it can be read as
the definition.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "cross_entropy",
    "cross_entropy_gradient",
    "gathered_linear",
    "gathered_matmul",
    "gathered_matmul_t",
    "matmul_at",
    "rectifier_gradient",
    "scatter_matmul",
    "take_columns",
    "update_block",
]

Array = NDArray[Any]


def _block(shape: tuple[int, ...], *index_sets: Any) -> tuple[Array, ...]:
    return np.ix_(
        *(
            np.arange(size) if indices is None else np.asarray(getattr(indices, "indices", indices))
            for size, indices in zip(shape, index_sets, strict=True)
        )
    )


def gathered_matmul(x: Array, w: Array, rows: Any = None, cols: Any = None) -> Array:
    """y[b, j] = sum_i x[b, i] w[rows[i], cols[j]]."""
    return x @ w[_block(w.shape, rows, cols)]


def gathered_matmul_t(g: Array, w: Array, rows: Any = None, cols: Any = None) -> Array:
    """dx[b, i] = sum_j g[b, j] w[rows[i], cols[j]]."""
    return g @ w[_block(w.shape, rows, cols)].T


def matmul_at(x: Array, g: Array) -> Array:
    """dw[i, j] = sum_b x[b, i] g[b, j]."""
    return x.T @ g


def scatter_matmul(
    x: Array, g: Array, rows: Any = None, cols: Any = None, *, out: Array, alpha: float = 1.0
) -> Array:
    """out[rows[i], cols[j]] += alpha sum_b x[b, i] g[b, j]."""
    out[_block(out.shape, rows, cols)] += alpha * (x.T @ g)
    return out


def gathered_linear(
    x: Array,
    w: Array,
    b: Array,
    rows: Any = None,
    cols: Any = None,
    *,
    slope: float = 1.0,
    scale: float = 1.0,
) -> Array:
    """y[b, j] = scale rectify(x w[rows, cols] + b[cols]), rectify(v) = v if v > 0 else slope v."""
    v = gathered_matmul(x, w, rows, cols) + b[_block(b.shape, cols)]
    low = np.where(v < 0, 0, v) if slope == 0 else slope * v
    return scale * np.where(v > 0, v, low)


def rectifier_gradient(
    g: Array, y: Array, *, slope: float = 1.0, scale: float = 1.0
) -> tuple[Array, Array]:
    """h[b, j] = g scale (1 if y > 0 else slope), and sum_b h[b, j]."""
    h = g * scale * np.where(y > 0, 1, slope)
    return h, h.sum(axis=0)


def take_columns(x: Array, cols: Any, factor: float = 1.0) -> Array:
    """y[b, j] = factor x[b, cols[j]]."""
    return factor * x[:, _block(x.shape[1:], cols)[0]]


def cross_entropy(logits: Array, labels: Array) -> Array:
    """loss[b] = -log(softmax(logits)[b, labels[b]])."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_sums = np.log(np.exp(shifted).sum(axis=1))
    losses: Array = log_sums - shifted[np.arange(len(labels)), labels]
    return losses


def cross_entropy_gradient(logits: Array, labels: Array, factor: float = 1.0) -> Array:
    """d[b, j] = factor (softmax(logits)[b, j] - (1 if j == labels[b] else 0))."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    gradient: Array = powers / powers.sum(axis=1, keepdims=True)
    gradient[np.arange(len(labels)), labels] -= 1
    gradient *= factor
    return gradient


def update_block(
    element_rule: Any,
    rule: Any,
    value: Array,
    slots: Array,
    grad: Array,
    rows: Any = None,
    cols: Any = None,
) -> None:
    """Apply `element_rule(rule, w, slots, j, g)` to the block, in place."""
    row_index, col_index = _block(value.shape, rows, cols)
    for i, row in enumerate(row_index.ravel()):
        element_rule(rule, value[row], slots[:, row], col_index.ravel(), grad[i])
