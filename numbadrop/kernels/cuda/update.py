"""Optimizer rules on a block of the weights, in place: the rules are those of the CPU."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from numbadrop.index_set import IndexSet
from numbadrop.kernels.cuda.array import DeviceArray
from numbadrop.kernels.cuda.columns import for_each
from numbadrop.kernels.cuda.driver import SIMULATED
from numbadrop.kernels.cuda.gather import place
from numbadrop.kernels.cuda.jit import device_function
from numbadrop.kernels.cuda.memory import load
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
def _body(hyper: type, rows_gathered: bool, cols_gathered: bool) -> Any:
    update_element = device_function(rule_of(hyper).function)
    row_place, col_place = place(rows_gathered), place(cols_gathered)

    @device_function
    def body(operands, at, row, col):
        rule, value, slots, grad, rows, width, cols = operands
        j = row_place(rows, width, row) + col_place(cols, 1, col)
        update_element(rule, value, slots, j, load(grad, at))

    return body


def update_block(
    rule: Any, value: DeviceArray, slots: DeviceArray, grad: DeviceArray,
    rows: IndexSet | None, cols: IndexSet | None,
) -> None:  # fmt: skip
    """See `numbadrop.kernels.update_block`."""
    # In float64 the rule's numbers would double the width of all sums.
    hyper: Any = type(rule)
    rule = hyper(*map(value.dtype.type, rule))
    size, width = value.size, value.shape[-1]
    block = (1, *grad.shape)[-2:]
    for_each(
        _body(hyper, rows is not None, cols is not None), *block,
        rule, value.native.reshape(size), slots.native.reshape(len(slots), size), grad.native,
        indices(rows), width, indices(cols),
    )  # fmt: skip
