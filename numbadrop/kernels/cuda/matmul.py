"""Products with submatrices of the weights: which operands of the product they are."""

from __future__ import annotations

from numbadrop.index_set import IndexSet
from numbadrop.kernels.cuda.array import DeviceArray
from numbadrop.kernels.cuda.operands import compact, indices, submatrix, transposed
from numbadrop.kernels.cuda.product import Ending, Target, multiply

__all__ = [
    "gathered_linear",
    "gathered_matmul",
    "gathered_matmul_t",
    "matmul_at",
    "scatter_matmul",
]

_PLAIN, _BIASED = Ending(), Ending(biased=True)


def gathered_matmul(
    x: DeviceArray, w: DeviceArray, rows: IndexSet | None, cols: IndexSet | None, *,
    out: DeviceArray,
) -> DeviceArray:  # fmt: skip
    """See `numbadrop.kernels.gathered_matmul`."""
    return gathered_linear(x, w, None, rows, cols, slope=1.0, scale=1.0, out=out)


def gathered_linear(
    x: DeviceArray, w: DeviceArray, b: DeviceArray | None, rows: IndexSet | None,
    cols: IndexSet | None, *, slope: float, scale: float, out: DeviceArray,
) -> DeviceArray:  # fmt: skip
    """See `numbadrop.kernels.gathered_linear`."""
    bias = 0 if b is None else b.address
    target = Target(out.address, 0, out.shape[1], 0, bias, slope, scale)
    ending = _PLAIN if b is None else _BIASED
    multiply(out.dtype, *compact(x), *submatrix(w, rows, cols, False), target, ending, x.shape[1])
    return out


def gathered_matmul_t(
    g: DeviceArray, w: DeviceArray, rows: IndexSet | None, cols: IndexSet | None, *,
    out: DeviceArray,
) -> DeviceArray:  # fmt: skip
    """See `numbadrop.kernels.gathered_matmul_t`."""
    target = Target(out.address, 0, out.shape[1], 0, 0, 1.0, 1.0)
    multiply(out.dtype, *compact(g), *submatrix(w, rows, cols, True), target, _PLAIN, g.shape[1])
    return out


def matmul_at(x: DeviceArray, g: DeviceArray, *, out: DeviceArray) -> DeviceArray:
    """See `numbadrop.kernels.matmul_at`."""
    target = Target(out.address, 0, out.shape[1], 0, 0, 1.0, 1.0)
    multiply(out.dtype, *transposed(x), *transposed(g), target, _PLAIN, len(x))
    return out


def scatter_matmul(
    x: DeviceArray, g: DeviceArray, rows: IndexSet | None, cols: IndexSet | None, *,
    out: DeviceArray, alpha: float,
) -> DeviceArray:  # fmt: skip
    """See `numbadrop.kernels.scatter_matmul`."""
    target = Target(out.address, indices(rows), out.shape[1], indices(cols), 0, 1.0, alpha)
    ending = Ending(rows is not None, cols is not None, added=True)
    multiply(out.dtype, *transposed(x), *transposed(g), target, ending, len(x))
    return out
