"""Optimizer rules on a block of the weights, in place: the rules are those of the CPU."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, cast

import numpy as np

from numbadrop.kernels.cuda.array import DeviceArray
from numbadrop.kernels.cuda.columns import ALONG, DOWN, grid_of
from numbadrop.kernels.cuda.driver import SIMULATED, cuda
from numbadrop.kernels.cuda.jit import device_function
from numbadrop.kernels.cuda.launch import kernel
from numbadrop.kernels.cuda.memory import load, store
from numbadrop.kernels.cuda.operands import indices
from numbadrop.kernels.update import Update, rule_of

__all__ = ["update_blocks"]

if not SIMULATED:
    from numba.cuda import types
    from numba.cuda.extending import overload

    # For arrays and for the CPU, rules are written with NumPy's, which numba-cuda lacks.
    @overload(np.sqrt)
    def _(x):
        return (lambda x: math.sqrt(x)) if isinstance(x, types.Float) else None


_MOST = 16
"""Blocks that one kernel updates: their numbers must fit into what a kernel is started with."""


class _Block(NamedTuple):
    """A block of a parameter, and which blocks of threads it takes."""

    start: int
    """Number of the first."""
    across: int
    """How many lie side by side, along the columns."""
    chunk: int
    """Rows of one."""
    row_count: int
    col_count: int
    value: Any
    slots: Any
    size: int
    grad: Any
    rows_gathered: bool
    row_units: Any
    width: int
    cols_gathered: bool
    col_units: Any


@cache
def _chooser(count: int) -> Any:
    """Return the device function that finds the block of a parameter for a block of threads.

    Behind one another, these choices need no memory for the blocks: they stay among the parameters.
    """
    last = count - 1
    if last == 0:
        return device_function(lambda blocks, number: blocks[0])
    others = _chooser(last)

    @device_function
    def choose(blocks, number):
        return blocks[last] if number >= blocks[last][0] else others(blocks, number)

    return choose


@cache
def _update_kernel(hyper: Any, dtype: np.dtype[Any], blocks: int) -> Any:
    function, slot_count = rule_of(hyper)
    update_element, element = device_function(function), dtype.type
    choose = _chooser(blocks)
    along, down, shape = ALONG, DOWN, (max(slot_count, 1), 1)

    @kernel(along, down, real=element)
    def update(rule, blocks):
        # The rule sees arrays of one weight, which become registers.
        w, own = cuda.local.array(1, element), cuda.local.array(shape, element)
        number = cuda.blockIdx.x
        (
            start, across, chunk, rows, cols, value, slots, size, grad,
            rows_gathered, row_units, width, cols_gathered, col_units,
        ) = choose(blocks, number)  # fmt: skip
        number -= start
        col = number % across * along + cuda.threadIdx.x
        first = number // across * chunk
        if col < cols:
            own_col = load(col_units, col, np.int32) if cols_gathered else col
            for row in range(first + cuda.threadIdx.y, min(first + chunk, rows), down):
                own_row = load(row_units, row, np.int32) if rows_gathered else row
                at = own_row * width + own_col
                w[0] = load(value, at, element)
                for s in range(slot_count):
                    own[s, 0] = load(slots, s * size + at, element)
                update_element(rule, w, own, 0, load(grad, row * cols + col, element))
                store(value, at, w[0], element)
                for s in range(slot_count):
                    store(slots, s * size + at, own[s, 0], element)

    return update


def update_blocks(updates: Sequence[Update]) -> None:
    """See `numbadrop.kernels.update_blocks`; one kernel does all that have one rule."""
    together: defaultdict[Any, list[Update]] = defaultdict(list)
    for one in updates:
        if one.grad.size:
            # All as floats: a kernel is compiled once for the types of these numbers.
            rule = type(one.rule)(*map(float, one.rule))
            together[type(rule), rule, one.value.dtype].append(one)
    # Index sets are sent first, for which there may be no memory: then no parameter has changed.
    starts = []
    for (hyper, rule, dtype), chosen in together.items():
        for first in range(0, len(chosen), _MOST):
            blocks, start = [], 0
            for _, *arrays, rows, cols, _ in chosen[first : first + _MOST]:
                value, slots, grad = cast(list[DeviceArray], arrays)
                row_count, col_count = (1, *grad.shape)[-2:]
                chunk, (across, down, _) = grid_of(row_count, col_count)
                blocks.append(_Block(
                    start, across, chunk, row_count, col_count, value.address, slots.address,
                    value.size, grad.address, rows is not None, indices(rows), value.shape[-1],
                    cols is not None, indices(cols),
                ))  # fmt: skip
                start += across * down
            run = _update_kernel(hyper, dtype, len(blocks))
            starts.append((run, (start, 1, 1), rule, tuple(blocks)))
    for run, *arguments in starts:
        run(*arguments)
