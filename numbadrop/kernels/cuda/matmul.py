"""Products with submatrices of the weights: which operands of the product they are."""

from __future__ import annotations

from typing import Any

from numbadrop.index_set import IndexSet
from numbadrop.kernels.cuda.array import DeviceArray, device_indices
from numbadrop.kernels.cuda.driver import SIMULATED
from numbadrop.kernels.cuda.gather import Layout, Operand
from numbadrop.kernels.cuda.memory import VECTOR_BYTES
from numbadrop.kernels.cuda.product import Ending, Target, multiply

__all__ = [
    "comes_in_vectors",
    "gathered_linear",
    "gathered_matmul",
    "gathered_matmul_t",
    "indices",
    "matmul_at",
    "scatter_matmul",
]

_PLAIN = Ending()


def indices(units: IndexSet | None) -> Any:
    """Return what an operand has for the indices of an axis."""
    found = device_indices(units)
    return () if found is None else found.native


def comes_in_vectors(array: DeviceArray, length: int) -> bool:
    """Whether each row of so many elements is a number of vectors, in the right place."""
    if length % (VECTOR_BYTES // array.dtype.itemsize):
        return False
    return SIMULATED or array.native.__cuda_array_interface__["data"][0] % VECTOR_BYTES == 0


def _compact(x: DeviceArray) -> tuple[Operand, Layout]:
    """Describe a matrix whose columns are the depth."""
    rows, cols = x.shape
    return Operand(x.native, (), cols, rows, (), 1), Layout(True, comes_in_vectors(x, cols))


def _transposed(x: DeviceArray) -> tuple[Operand, Layout]:
    """Describe a matrix whose rows are the depth."""
    cols = x.shape[1]
    return Operand(x.native, (), 1, cols, (), cols), Layout(False, comes_in_vectors(x, cols))


def _weights(
    w: DeviceArray, rows: IndexSet | None, cols: IndexSet | None, transposed: bool
) -> tuple[Operand, Layout]:
    """Describe a submatrix whose rows are the depth, or whose columns are if `transposed`."""
    n_in, n_out = w.shape
    down = indices(rows), n_out
    along = indices(cols), 1
    vector = cols is None and comes_in_vectors(w, n_out)
    if transposed:
        count = n_in if rows is None else len(rows)
        operand = Operand(w.native, *down, count, *along)
    else:
        count = n_out if cols is None else len(cols)
        operand = Operand(w.native, *along, count, *down)
    gathered = rows is not None, cols is not None
    return operand, Layout(transposed, vector, *(gathered if transposed else gathered[::-1]))


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
    bias = () if b is None else b.native
    target = Target(out.native, (), out.shape[1], (), bias, slope, scale)
    ending = _PLAIN if b is None else _PLAIN._replace(biased=True)
    multiply(*_compact(x), *_weights(w, rows, cols, False), target, ending, x.shape[1])
    return out


def gathered_matmul_t(
    g: DeviceArray, w: DeviceArray, rows: IndexSet | None, cols: IndexSet | None, *,
    out: DeviceArray,
) -> DeviceArray:  # fmt: skip
    """See `numbadrop.kernels.gathered_matmul_t`."""
    target = Target(out.native, (), out.shape[1], (), (), 1.0, 1.0)
    multiply(*_compact(g), *_weights(w, rows, cols, True), target, _PLAIN, g.shape[1])
    return out


def matmul_at(x: DeviceArray, g: DeviceArray, *, out: DeviceArray) -> DeviceArray:
    """See `numbadrop.kernels.matmul_at`."""
    target = Target(out.native, (), out.shape[1], (), (), 1.0, 1.0)
    multiply(*_transposed(x), *_transposed(g), target, _PLAIN, len(x))
    return out


def scatter_matmul(
    x: DeviceArray, g: DeviceArray, rows: IndexSet | None, cols: IndexSet | None, *,
    out: DeviceArray, alpha: float,
) -> DeviceArray:  # fmt: skip
    """See `numbadrop.kernels.scatter_matmul`."""
    target = Target(out.native, indices(rows), out.shape[1], indices(cols), (), 1.0, alpha)
    ending = Ending(rows is not None, cols is not None, added=True)
    multiply(*_transposed(x), *_transposed(g), target, ending, len(x))
    return out
