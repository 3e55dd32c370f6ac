"""How arrays and submatrices are operands of the product."""

from __future__ import annotations

from typing import Any

from numbadrop.index_set import IndexSet
from numbadrop.kernels.cuda.array import DeviceArray, device_indices
from numbadrop.kernels.cuda.driver import SIMULATED
from numbadrop.kernels.cuda.gather import Layout, Operand
from numbadrop.kernels.cuda.memory import VECTOR_BYTES

__all__ = ["comes_in_vectors", "compact", "indices", "submatrix", "transposed"]


def indices(units: IndexSet | None) -> Any:
    """Return what an operand has for the indices of an axis."""
    found = device_indices(units)
    return 0 if found is None else found.address


def comes_in_vectors(array: DeviceArray, length: int) -> bool:
    """Whether each row of so many elements is a number of vectors, in the right place."""
    if length % (VECTOR_BYTES // array.dtype.itemsize):
        return False
    return SIMULATED or array.address % VECTOR_BYTES == 0


_MOST = 1 << 29
"""Along an axis: the bytes of a row are counted in 32 bits."""


def _lengths(array: DeviceArray) -> tuple[int, int]:
    rows, cols = array.shape
    if rows >= _MOST or cols >= _MOST:
        raise ValueError(
            f"axes of a matrix in a product on a GPU must be below 2**29, got shape {array.shape}"
        )
    return rows, cols


def compact(x: DeviceArray) -> tuple[Operand, Layout]:
    """Describe a matrix whose columns are the depth."""
    rows, cols = _lengths(x)
    return Operand(x.address, 0, cols, rows, 0, 1), Layout(True)


def transposed(x: DeviceArray) -> tuple[Operand, Layout]:
    """Describe a matrix whose rows are the depth."""
    _, cols = _lengths(x)
    return Operand(x.address, 0, 1, cols, 0, cols), Layout(False, comes_in_vectors(x, cols))


def submatrix(
    w: DeviceArray, rows: IndexSet | None, cols: IndexSet | None, transposed: bool
) -> tuple[Operand, Layout]:
    """Describe a submatrix whose rows are the depth, or whose columns are if `transposed`."""
    n_in, n_out = _lengths(w)
    down = indices(rows), n_out
    along = indices(cols), 1
    vector = not transposed and cols is None and comes_in_vectors(w, n_out)
    if transposed:
        count = n_in if rows is None else len(rows)
        operand = Operand(w.address, *down, count, *along)
    else:
        count = n_out if cols is None else len(cols)
        operand = Operand(w.address, *along, count, *down)
    gathered = rows is not None, cols is not None
    return operand, Layout(transposed, vector, *(gathered if transposed else gathered[::-1]))
