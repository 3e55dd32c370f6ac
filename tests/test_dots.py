"""The tile of few columns: all variants, inner loops of other machines, products with it."""

from __future__ import annotations

import itertools
import re

import numba
import numpy as np
import pytest
from kernel_checks import DTYPES, laid_out, make_set, operands
from llvmlite import ir
from numba.core import types
from test_tile import blocks_for, table

from numbadrop import kernels
from numbadrop.kernels import dots, elements, reference
from numbadrop.kernels.dots import dot_rows, dot_tile, most_columns
from numbadrop.kernels.elements import MACHINE


def numbers(machine, itemsize):
    """Return all numbers of columns for which a machine has a tile."""
    return range(1, most_columns.py_func(machine.vector_bytes // itemsize) + 1)


VARIANTS = [
    (dtype, columns) for dtype in DTYPES for columns in numbers(MACHINE, np.dtype(dtype).itemsize)
]
OTHERS = [
    (elements._NEON, "aarch64-unknown-linux-gnu", "apple-m1", "fmla", r"\[sp"),
    (elements._AVX2, "x86_64-unknown-linux-gnu", "haswell", "vfmadd", r"\(%rsp"),
    (elements._AVX512, "x86_64-unknown-linux-gnu", "skylake-avx512", "vfmadd", r"\(%rsp"),
]


@numba.njit
def run_tile(
    alpha, rows, columns, runs, run_starts, depth, a, b, b_column, c, accumulate
):  # fmt: skip
    dot_tile(alpha, rows, columns, runs, run_starts, depth, a, b, b_column, c, accumulate)


@pytest.mark.parametrize(("dtype", "columns"), VARIANTS)
def test_every_variant(dtype, columns):
    rng = np.random.default_rng(0)
    lanes = MACHINE.vector_bytes // np.dtype(dtype).itemsize
    high = dot_rows.py_func(columns)
    depths = (0, 1, lanes - 1, lanes, 3 * lanes + 1)
    for rows, depth, runs, accumulate in itertools.product(
        range(1, high + 1), depths, (0, 1, 3), (False, True)
    ):
        image = rng.integers(-9, 10, (100 + 4 * lanes)).astype(dtype)
        places, starts = rng.permutation(60)[:rows], rng.permutation(40)[:runs]
        a = image[places[:, None, None] + starts[:, None] + np.arange(depth)].reshape(rows, -1)
        b = rng.integers(-9, 10, (columns, runs * depth + lanes)).astype(dtype)
        b[:, runs * depth :] = np.nan
        around = rng.integers(-9, 10, (rows + 2, columns + 2)).astype(dtype)
        expected = around.copy()
        inside = expected[1:-1, 1:-1]
        inside[...] = (inside if accumulate else 0) + a @ b[:, : runs * depth].T
        if not accumulate:
            around[1:-1, 1:-1] = np.nan
        a_rows = table(*(image.ctypes.data + places * image.itemsize))
        c_rows = table(*(row.ctypes.data for row in around[1:-1, 1:-1]))
        run_starts = table(*(starts * image.itemsize), 0)
        run_tile(
            dtype(0), rows, columns, runs, run_starts.ctypes.data, depth, a_rows.ctypes.data,
            b.ctypes.data, b.strides[0], c_rows.ctypes.data, accumulate,
        )  # fmt: skip
        np.testing.assert_array_equal(around, expected, f"{rows=}, {depth=}, {runs=}")


@pytest.mark.parametrize(
    ("machine", "triple", "cpu", "multiply_add", "memory", "element", "columns"),
    [
        (*other, element, columns)
        for other in OTHERS
        for element in (types.float32, types.float64)
        for columns in numbers(other[0], element.bitwidth // 8)
    ],
)
def test_the_inner_loop_of_other_machines(
    machine, triple, cpu, multiply_add, memory, element, columns, monkeypatch
):
    """Cross-compiled: one fused instruction for each register of sums, none on the stack."""
    for module in (elements, dots):
        monkeypatch.setattr(module, "MACHINE", machine)
    source = ir.Module()
    source.triple = triple
    dots._dots_function(source, element, columns).linkage = ""
    blocks = blocks_for(source, cpu)
    sums = columns * dot_rows.py_func(columns)
    loops = [
        block
        for block in blocks
        if block.count(multiply_add) == sums and block.count(block[: block.index(":")]) > 1
    ]
    assert loops, blocks
    for loop in loops:
        vectors = [line for line in loop.split("\n") if re.search(r"(?:v|q|%[xyz]mm)\d", line)]
        assert not [line for line in vectors if re.search(memory, line)], loop


# Few and many rows, one and several blocks of the depth, and a tail of each.
@pytest.mark.parametrize("columns", numbers(MACHINE, 4))
@pytest.mark.parametrize(("rows", "depth"), [(5, 600), (64, 33), (71, 530)])
@pytest.mark.parametrize("layout", ["C", "F", "padded", "reversed", "spread"])
def test_products(rows, depth, columns, layout):
    rng = np.random.default_rng(0)
    for kind in ("none", "half"):
        more = 1 if kind == "none" else 2
        sizes = rows, more * depth, more * columns
        ins, outs = (make_set(kind, size, rng) for size in sizes[1:])
        x, w = operands("gathered_matmul", np.float32, sizes, ins, outs, rng, whole_numbers=True)
        bias = np.arange(sizes[2]).astype(np.float32)
        options = dict(slope=0.5, scale=2.0)
        result = kernels.gathered_linear(x, laid_out(w, layout)[0], bias, ins, outs, **options)
        expected = reference.gathered_linear(x, w, bias, ins, outs, **options)
        np.testing.assert_array_equal(result, expected)
    # The gradient of a wide layer with few inputs.
    w = rng.integers(-9, 10, (columns, depth)).astype(np.float32)
    g = rng.integers(-9, 10, (rows, depth)).astype(np.float32)
    np.testing.assert_array_equal(kernels.gathered_matmul_t(g, laid_out(w, layout)[0]), g @ w.T)


def test_any_number_of_threads_gives_the_same_bits():
    """A thread's share may be a few columns of many."""
    rng = np.random.default_rng(0)
    lanes = MACHINE.vector_bytes // 4
    x = rng.standard_normal((300, 700), np.float32)
    weights = [rng.standard_normal((700, n), np.float32) for n in (2, 4, lanes + 2, 7)]
    # So few rows that columns are cut, and rows of which a share is too few to transpose columns.
    products = [(x, w) for w in weights]
    products += [(x[:16], np.asfortranarray(weights[2])), (x[:100], weights[1])]
    before = kernels.get_num_threads()
    results = set()
    try:
        for threads in (1, 2, 3):
            kernels.set_num_threads(threads)
            results.add(b"".join(kernels.gathered_matmul(*pair).tobytes() for pair in products))
    finally:
        kernels.set_num_threads(before)
    assert len(results) == 1
