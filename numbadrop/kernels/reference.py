"""The kernels' meaning in plain NumPy, under the same names: the oracle of the tests.

Nothing here is fast, checks its input, or imports anything but NumPy, so that it can be read as
the definition.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "avg_pool2d",
    "avg_pool2d_gradient",
    "batch_moments",
    "batch_norm",
    "batch_norm_gradient",
    "conv2d_at",
    "cross_entropy",
    "cross_entropy_gradient",
    "dropout_mask",
    "gathered_conv2d",
    "gathered_conv2d_t",
    "gathered_linear",
    "gathered_matmul",
    "gathered_matmul_t",
    "matmul_at",
    "max_pool2d",
    "max_pool2d_gradient",
    "rectifier_gradient",
    "scatter_conv2d",
    "scatter_matmul",
    "take_columns",
    "track_moments",
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


def dropout_mask(shape: tuple[int, ...], p: float, rng: np.random.Generator, like: Array) -> Array:
    """mask[i] = 1 / (1 - p) if draw[i] >= p else 0, where `rng` gives the key of the draws."""
    key = [int(rng.integers(2**63)) for _ in range(2)]
    draws = np.random.Generator(np.random.Philox(key=key)).random(shape, np.float32)
    return np.multiply(draws >= p, 1 / (1 - p), dtype=like.dtype)


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


def _windows(shape: Any, size: Any, stride: Any, padding: Any) -> tuple[list[slice], list[slice]]:
    """Return the rows and the columns of each place of a window, those of the padding left out."""
    pairs = [n if isinstance(n, tuple) else (n, n) for n in (size, stride or size, padding)]
    rows, columns = (
        [slice(max(at, 0), at + size) for at in range(-padding, end + padding - size + 1, stride)]
        for end, size, stride, padding in zip(shape[1:3], *pairs, strict=True)
    )
    return rows, columns


def max_pool2d(x: Array, size: Any, stride: Any = None, padding: Any = 0) -> Array:
    """y[b, i, j, k] = the largest x[b, r, c, k] of the window at (i, j); NaN if one is NaN."""
    rows, columns = _windows(x.shape, size, stride, padding)
    y = np.empty((len(x), len(rows), len(columns), x.shape[3]), x.dtype)
    for i, j in np.ndindex(y.shape[1:3]):
        y[:, i, j] = x[:, rows[i], columns[j]].max(axis=(1, 2))
    return y


def max_pool2d_gradient(
    g: Array, x: Array, y: Array, size: Any, stride: Any = None, padding: Any = 0
) -> Array:
    """dx[b, r, c, k] = sum of g[b, i, j, k] of the windows whose first largest pixel is (r, c)."""
    rows, columns = _windows(x.shape, size, stride, padding)
    dx = np.zeros_like(x)
    for i, j in np.ndindex(g.shape[1:3]):
        for b, k in np.ndindex(len(x), x.shape[3]):
            window = x[b, rows[i], columns[j], k]
            first = np.unravel_index(window.argmax(), window.shape)
            dx[b, rows[i], columns[j], k][first] += g[b, i, j, k]
    return dx


def avg_pool2d(x: Array, size: Any, stride: Any = None, padding: Any = 0) -> Array:
    """y[b, i, j, k] = sum of x[b, r, c, k] of the window at (i, j) / its pixels, padding's too."""
    rows, columns = _windows(x.shape, size, stride, padding)
    y = np.empty((len(x), len(rows), len(columns), x.shape[3]), x.dtype)
    for i, j in np.ndindex(y.shape[1:3]):
        y[:, i, j] = x[:, rows[i], columns[j]].sum(axis=(1, 2))
    return y / (size**2 if isinstance(size, int) else size[0] * size[1])


def avg_pool2d_gradient(
    g: Array, shape: Any, size: Any, stride: Any = None, padding: Any = 0
) -> Array:
    """dx[b, r, c, k] = sum of g[b, i, j, k] / pixels of the windows that hold (r, c)."""
    rows, columns = _windows(shape, size, stride, padding)
    dx = np.zeros(shape, g.dtype)
    for i, j in np.ndindex(g.shape[1:3]):
        dx[:, rows[i], columns[j]] += g[:, i : i + 1, j : j + 1]
    return dx / (size**2 if isinstance(size, int) else size[0] * size[1])


def batch_moments(x: Array) -> tuple[Array, Array]:
    """mean[k] = mean_b x[b, k], variance[k] = mean_b (x[b, k] - mean[k])^2."""
    return x.mean(axis=0), x.var(axis=0)


def track_moments(
    running_mean: Array,
    running_var: Array,
    mean: Array,
    variance: Array,
    units: Any,
    *,
    count: int,
    momentum: float,
) -> None:
    """running[k] = (1 - momentum) running[k] + momentum observed[k], for the units alone."""
    for running, observed in ((running_mean, mean), (running_var, variance * count / (count - 1))):
        running[units] = (1 - momentum) * running[units] + momentum * observed


def batch_norm(
    x: Array, mean: Array, variance: Array, weight: Any = 1, bias: Any = 0, *, eps: float
) -> Array:
    """y[b, k] = (x[b, k] - mean[k]) / sqrt(variance[k] + eps) weight[k] + bias[k]."""
    y: Array = (x - mean) / np.sqrt(variance + eps) * weight + bias
    return y


def batch_norm_gradient(
    g: Array,
    x: Array,
    mean: Array,
    variance: Array,
    weight: Any = 1,
    *,
    eps: float,
    training: bool,
) -> tuple[Array, Array, Array]:
    """dx, sum_b g[b, k] z[b, k] and sum_b g[b, k], with z the normalized x.

    In training, mean and variance follow x.
    """
    deviation = np.sqrt(variance + eps)
    z = (x - mean) / deviation
    d_weight, d_bias = (g * z).sum(axis=0), g.sum(axis=0)
    if training:
        g = g - g.mean(axis=0) - z * (g * z).mean(axis=0)
    return g * weight / deviation, d_weight, d_bias


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


def _taps(
    size: tuple[int, ...], kernel: tuple[int, ...], stride: Any, padding: Any, dilation: Any
) -> Any:
    """Yield each tap of a kernel, the outputs that it takes part in, and their pixels."""
    axes = []
    for n, k, s, p, d in zip(
        size, kernel, *(np.broadcast_to(v, 2) for v in (stride, padding, dilation)), strict=True
    ):
        outputs = np.arange((n + 2 * p - d * (k - 1) - 1) // s + 1)
        axes.append([(outputs, outputs * s + tap * d - p) for tap in range(k)])
    for i, (out_y, y) in enumerate(axes[0]):
        for j, (out_x, x) in enumerate(axes[1]):
            in_y, in_x = (y >= 0) & (y < size[0]), (x >= 0) & (x < size[1])
            yield (i, j), np.ix_(out_y[in_y], out_x[in_x]), np.ix_(y[in_y], x[in_x])


def gathered_conv2d(
    x: Array,
    w: Array,
    in_channels: Any = None,
    out_channels: Any = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    bias: Any = None,
    slope: float = 1.0,
    scale: float = 1.0,
) -> Array:
    """y[b, p, o] = scale rectify(bias[o] + sum_tc x[b, p + t, c] w[t, c, o]), with zeros around."""
    ins, outs = _block(w.shape[2:], in_channels, out_channels)
    kept = w[:, :, ins, outs]
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(
            x.shape[1:3],
            w.shape[:2],
            *(np.broadcast_to(v, 2) for v in (stride, padding, dilation)),
            strict=True,
        )
    ]
    v = np.zeros((len(x), *size, kept.shape[3]), w.dtype)
    for tap, outputs, pixels in _taps(x.shape[1:3], w.shape[:2], stride, padding, dilation):
        v[:, *outputs] += x[:, *pixels] @ kept[tap]
    if bias is not None:
        v += bias[_block(bias.shape, out_channels)]
    low = np.where(v < 0, 0, v) if slope == 0 else slope * v
    return scale * np.where(v > 0, v, low)


def gathered_conv2d_t(
    g: Array,
    w: Array,
    in_channels: Any = None,
    out_channels: Any = None,
    *,
    input_size: tuple[int, int],
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
) -> Array:
    """dx[b, p + t, c] = sum_to g[b, p, o] w[t, c, o]."""
    ins, outs = _block(w.shape[2:], in_channels, out_channels)
    kept = w[:, :, ins, outs]
    dx = np.zeros((len(g), *input_size, kept.shape[2]), w.dtype)
    for tap, outputs, pixels in _taps(input_size, w.shape[:2], stride, padding, dilation):
        dx[:, *pixels] += g[:, *outputs] @ kept[tap].T
    return dx


def conv2d_at(
    x: Array,
    g: Array,
    *,
    kernel_size: tuple[int, int],
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
) -> Array:
    """dw[t, c, o] = sum_bp x[b, p + t, c] g[b, p, o]."""
    dw = np.zeros((*kernel_size, x.shape[3], g.shape[3]), x.dtype)
    for tap, outputs, pixels in _taps(x.shape[1:3], kernel_size, stride, padding, dilation):
        dw[tap] = np.tensordot(x[:, *pixels], g[:, *outputs], ((0, 1, 2), (0, 1, 2)))
    return dw


def scatter_conv2d(
    x: Array,
    g: Array,
    in_channels: Any = None,
    out_channels: Any = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    out: Array,
    alpha: float = 1.0,
) -> Array:
    """out[t, c, o] += alpha sum_bp x[b, p + t, c] g[b, p, o]."""
    ins, outs = _block(out.shape[2:], in_channels, out_channels)
    out[:, :, ins, outs] += alpha * conv2d_at(
        x, g, kernel_size=out.shape[:2], stride=stride, padding=padding, dilation=dilation
    )
    return out
