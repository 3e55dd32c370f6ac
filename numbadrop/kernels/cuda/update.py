"""Optimizer rules on a block of the weights, in place: the rules are those of the CPU."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from numbadrop.index_set import IndexSet
from numbadrop.kernels.cuda.array import DeviceArray
from numbadrop.kernels.cuda.columns import ALONG, DOWN, grid_of
from numbadrop.kernels.cuda.driver import SIMULATED, cuda
from numbadrop.kernels.cuda.gather import place
from numbadrop.kernels.cuda.jit import device_function, kernel
from numbadrop.kernels.cuda.memory import load, store
from numbadrop.kernels.cuda.operands import indices
from numbadrop.kernels.update import rule_of

__all__ = ["update_block"]

if not SIMULATED:
    from numba.cuda import types
    from numba.cuda.extending import overload

    # For arrays and for the CPU, rules are written with NumPy's, which numba-cuda lacks.
    @overload(np.sqrt)
    def _(x):
        return (lambda x: math.sqrt(x)) if isinstance(x, types.Float) else None


@cache
def _update_kernel(
    hyper: Any, dtype: np.dtype[Any], rows_gathered: bool, cols_gathered: bool
) -> Any:
    function, count = rule_of(hyper)
    update_element, element = device_function(function), dtype.type
    row_place, col_place = place(rows_gathered), place(cols_gathered)
    along, down, shape = ALONG, DOWN, (max(count, 1), 1)

    @kernel(along, down, real=element)
    def update(rule, rows, cols, chunk, value, slots, size, grad, row_units, width, col_units):
        # The rule sees arrays of one weight, which become registers.
        w, own = cuda.local.array(1, element), cuda.local.array(shape, element)
        col = cuda.blockIdx.x * along + cuda.threadIdx.x
        first = cuda.blockIdx.y * chunk
        if col < cols:
            for row in range(first + cuda.threadIdx.y, min(first + chunk, rows), down):
                at = row_place(row_units, width, row) + col_place(col_units, 1, col)
                w[0] = load(value, at, element)
                for s in range(count):
                    own[s, 0] = load(slots, s * size + at, element)
                update_element(rule, w, own, 0, load(grad, row * cols + col, element))
                store(value, at, w[0], element)
                for s in range(count):
                    store(slots, s * size + at, own[s, 0], element)

    return update


def update_block(
    rule: Any, value: DeviceArray, slots: DeviceArray, grad: DeviceArray,
    rows: IndexSet | None, cols: IndexSet | None,
) -> None:  # fmt: skip
    """See `numbadrop.kernels.update_block`."""
    hyper: Any = type(rule)
    dtype = value.dtype
    if grad.size == 0:
        return
    row_count, col_count = (1, *grad.shape)[-2:]
    chunk, grid = grid_of(row_count, col_count)
    _update_kernel(hyper, dtype, rows is not None, cols is not None)(
        grid, rule, row_count, col_count, chunk,
        value.address, slots.address, value.size, grad.address,
        indices(rows), value.shape[-1], indices(cols),
    )  # fmt: skip
