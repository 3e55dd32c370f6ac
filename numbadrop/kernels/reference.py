"""The kernels' meaning in plain NumPy, under the same names: the oracle of the tests.

Nothing here is fast, checks its input, or imports anything but NumPy, so that it can be read as
the definition.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["gathered_matmul", "gathered_matmul_t", "matmul_at", "scatter_matmul", "update_block"]

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
