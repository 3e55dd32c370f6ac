"""No byte outside an operand is read or written.

Operands lie right before or right behind memory that may not be touched, so that any overrun,
however small, ends the process, which is not this one. `test_targets.py` does the same for other
instruction sets.
"""

from __future__ import annotations

import os
import signal

import pytest
from kernel_checks import answer, python

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs mprotect")

UPDATES = """
from kernel_checks import *
from numbadrop.kernels import update_block
from numbadrop.optim.rules import AdamRule, SGDRule

kinds = itertools.cycle(itertools.product(SETS, SETS))
for dtype, shape, at_end in itertools.product(
    DTYPES, [(1, 1), (3, 5), (1, 17), (16, 16), (9, 33), (65, 130)], (True, False)
):
    for rule, slots in ((SGDRule(0.1, 0.0), 0), (AdamRule(*[0.5] * 9), 2)):
        rng = np.random.default_rng(0)
        rows, cols = map(make_set, next(kinds), shape, (rng, rng))
        grad = np.ones((count(rows, shape[0]), count(cols, shape[1])), dtype)
        value, memory = np.ones(shape, dtype), np.ones((slots, *shape), dtype)
        value, memory, grad = (guarded(array, at_end) for array in (value, memory, grad))
        update_block(rule, value, memory, grad, rows, cols)
        update_block(rule, value[0], memory[:, 0].copy(), grad[0], cols=cols)
"""

UNPACKED = """
from kernel_checks import *

from numbadrop.kernels import gathered_matmul, scatter_matmul

for dtype, batch, depth, cols, at_end, step in itertools.product(
    DTYPES, (1, 2, 7, 8, 9), (1, 3, 600), (16, 17, 48, 63, 96, 112), (True, False), (1, -1)
):
    rng = np.random.default_rng(0)
    x = guarded(rng.integers(-9, 10, (batch, depth)).astype(dtype), at_end)
    w = guarded(rng.integers(-9, 10, (depth, cols)).astype(dtype), at_end)[::step]
    out = guarded(np.full((batch, cols), np.nan, dtype), at_end)
    gathered_matmul(x, w, out=out)
    np.testing.assert_array_equal(out, x @ w)
    scatter_matmul(np.ascontiguousarray(x.T), w, out=out)
    np.testing.assert_array_equal(out, 2 * (x @ w))
"""


BACKWARDS = """
from kernel_checks import *

from numbadrop.kernels import gathered_matmul, gathered_matmul_t, scatter_matmul, set_num_threads

rng = np.random.default_rng(0)
memory = rng.integers(-9, 10, (2200, 2000)).astype(np.float32)
for threads, batch, place in itertools.product(
    (1, 2), (8, 24, 64), (np.s_[:1100, 1000:], np.s_[::2, ::2], np.s_[:1099:-1, 1000:])
):
    set_num_threads(threads)
    for w in (memory[place], memory[place][:, ::-1], memory[place][::-1, ::-1]):
        for matrix in (w, w.T):
            x = rng.integers(-9, 10, (batch, matrix.shape[0])).astype(np.float32)
            y = gathered_matmul(x, matrix)
            np.testing.assert_array_equal(y, x.astype(float) @ matrix)
            g = np.sign(y)
            np.testing.assert_array_equal(gathered_matmul_t(g, matrix), g.astype(float) @ matrix.T)
            out = np.zeros((batch, matrix.shape[1]), np.float32)
            scatter_matmul(np.ascontiguousarray(x.T), matrix, out=out)
            np.testing.assert_array_equal(out, y)
"""


def test_products():
    answer("-c", "from kernel_checks import *; check_many()")


@pytest.mark.parametrize("shape", ["(48, 1100, 1000)", "(48, 1000, 1100)"])
def test_products_whose_weights_are_prefetched(shape):
    """They do not fit in a core's cache: what the next panel is packed from is listed."""
    sets = ("half", "most")
    answer("-c", f"from kernel_checks import *; check_many([{shape}], ('C',), sets={sets})")


def test_gradients_of_which_the_left_operand_is_packed():
    """Many panels would walk far along its depth."""
    answer(
        "-c", "from kernel_checks import *; check_many([(300, 1100, 200)], ('C',), sets=('half',))"
    )


def test_large_weights_whose_rows_or_columns_run_backwards():
    answer("-c", BACKWARDS)


def test_products_of_few_rows_that_read_dense_weights_where_they_lie():
    answer("-c", UNPACKED)


def test_updates():
    answer("-c", UPDATES)


def test_the_guard_itself():
    """An overrun by one byte does end a process: without this the tests above say nothing."""
    program = """
import sys
from kernel_checks import *

offset, what = map(int, sys.argv[1:])
array = guarded(np.ones(5), at_end=offset > 0)
address = array.ctypes.data + offset
ctypes.memset(address, 0, 1) if what else ctypes.string_at(address, 1)
"""
    for offset, what, survives in [(-1, 0, False), (40, 0, False), (40, 1, False), (39, 1, True)]:
        done = python("-c", program, str(offset), str(what), env={"PYTHONFAULTHANDLER": None})
        if survives:
            assert done.returncode == 0, done.stderr
        else:
            assert -done.returncode in (signal.SIGSEGV, signal.SIGBUS), done.stderr
