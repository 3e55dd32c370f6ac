"""The register tile: every height and width that was generated is run, and no other is skipped."""

from __future__ import annotations

import itertools
import os

import numba
import numpy as np
import pytest
from kernel_checks import DTYPES, answer

from numbadrop.kernels.elements import MACHINE
from numbadrop.kernels.tile import register_tile


@numba.njit
def run_tile(alpha, rows, vectors, depth, a, a_row, a_depth, b, c, c_row, accumulate):
    register_tile(alpha, rows, vectors, depth, a, a_row, a_depth, b, c, c_row, accumulate)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_variant(dtype):
    rng = np.random.default_rng(0)
    lanes = MACHINE.vector_bytes // np.dtype(dtype).itemsize
    heights, widths = range(1, MACHINE.tile_rows + 1), range(1, MACHINE.tile_vectors + 1)
    for height, vectors, depth, accumulate, transposed in itertools.product(
        heights, widths, (0, 1, 2, 3, 5), (False, True), (False, True)
    ):
        a = rng.integers(-9, 10, (height, depth)).astype(dtype)
        if transposed:
            a = np.asfortranarray(a)
        b = rng.integers(-9, 10, (depth, vectors * lanes)).astype(dtype)
        # C is a part of a larger array: what stands around it must not change.
        around = rng.integers(-9, 10, (height + 2, vectors * lanes + 2)).astype(dtype)
        expected = around.copy()
        inside = expected[1:-1, 1:-1]
        inside[...] = (inside if accumulate else 0) + a @ b
        c = around[1:-1, 1:-1]
        if not accumulate:
            c[...] = np.nan
        run_tile(
            dtype(0), height, vectors, depth,
            a.ctypes.data, a.strides[0], a.strides[1], b.ctypes.data,
            c.ctypes.data, c.strides[0], accumulate,
        )  # fmt: skip
        np.testing.assert_array_equal(
            around, expected, f"{height} x {vectors} vectors, depth {depth}, {accumulate=}"
        )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_variant_that_does_not_exist_ends_the_process():
    program = """
import os, resource
import numpy as np
from numbadrop.kernels.elements import MACHINE
from test_tile import run_tile

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
memory = np.zeros(100_000, np.float32)
a, b, c = (memory[start:].ctypes.data for start in (0, 20_000, 60_000))

def run(rows, vectors):
    run_tile(np.float32(0), rows, vectors, 1, a, 64, 4, b, c, 1024, False)

run(1, 1)
high, wide = MACHINE.tile_rows, MACHINE.tile_vectors
for rows, vectors in [
    (0, 1), (1, 0), (0, 0), (high + 1, 1), (1, wide + 1), (high + 1, wide + 1),
    (high, wide + 1), (0, wide + 2), (1, wide + 2), (2, -1), (-1, 1), (-1, 2 * wide + 3),
]:
    child = os.fork()
    if child == 0:
        os.close(2)  # no trace of the expected end
        run(rows, vectors)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        print(f"{rows} x {vectors} returned")
"""
    assert answer("-c", program, env={"PYTHONFAULTHANDLER": None}) == ""
