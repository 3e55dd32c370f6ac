"""The register tile: every height and width that was generated is run, and no other is skipped."""

from __future__ import annotations

import itertools
import os
import re

import llvmlite.binding as llvm
import numba
import numpy as np
import pytest
from kernel_checks import DTYPES, answer
from llvmlite import ir
from numba.core import types

from numbadrop.kernels import elements, tile
from numbadrop.kernels.elements import MACHINE, WIDEST
from numbadrop.kernels.tile import NEAREST, WHOLE, WIDE, most_rows, register_tile


def tile_of(kind):
    """Return a function for Python of the tiles of a kind."""

    @numba.njit
    def run_tile(
        alpha, rows, columns, runs, run_starts, depth, a, a_depth, b, b_row, c, accumulate,
        requests=0, requests_end=0,
    ):  # fmt: skip
        register_tile(
            alpha, rows, columns, runs, run_starts, depth, a, a_depth, b, b_row, c, requests,
            requests_end, accumulate, kind,
        )  # fmt: skip

    return run_tile


run_tile = tile_of(WIDE)


def table(*numbers):
    """Return int64 numbers whose address a kernel gets."""
    return np.array(numbers, np.int64)


@pytest.mark.parametrize("kind", [0, WIDE, NEAREST | WIDE, WIDE | WHOLE])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_variant(dtype, kind):
    run_tile = tile_of(kind)
    rng = np.random.default_rng(0)
    lanes = MACHINE.vector_bytes // np.dtype(dtype).itemsize
    # A last register that is full, lacks a lane, is half full, or has no more than one.
    sizes = sorted(
        {
            (height, vectors * lanes - missing)
            for vectors in range(1, WIDEST + bool(kind & WIDE))
            for height in range(1, most_rows.py_func(vectors) + 1)
            for missing in ((0,) if kind & WHOLE else (0, 1, lanes // 2, lanes - 1))
        }
    )
    # Addresses of nothing: to ask for them is no error.
    requests = table(0, 1, -1, 2**46)
    for (height, columns), depth, accumulate, transposed, number in itertools.product(
        sizes, (0, 1, 2, 3, 5), (False, True), (False, True), (0, 1, 4)
    ):
        vectors = -(-columns // lanes)
        a = rng.integers(-9, 10, (height, depth)).astype(dtype)
        if transposed:
            a = np.asfortranarray(a)
        # So is B, in every other case.
        b = rng.integers(-9, 10, (depth, vectors * lanes + transposed)).astype(dtype)
        b = b[:, : vectors * lanes]
        # C is a part of a larger array: what stands around it must not change.
        around = rng.integers(-9, 10, (height + 2, columns + 2)).astype(dtype)
        expected = around.copy()
        inside = expected[1:-1, 1:-1]
        inside[...] = (inside if accumulate else 0) + (a @ b)[:, :columns]
        c = around[1:-1, 1:-1]
        if not accumulate:
            c[...] = np.nan
        a_rows = table(*(row.ctypes.data for row in a))
        c_rows = table(*(row.ctypes.data for row in c))
        starts = table(0)
        run_tile(
            dtype(0), height, columns, 1, starts.ctypes.data, depth,
            a_rows.ctypes.data, a.strides[1], b.ctypes.data, b.strides[0],
            c_rows.ctypes.data, accumulate, requests.ctypes.data, requests.ctypes.data + 8 * number,
        )  # fmt: skip
        np.testing.assert_array_equal(
            around,
            expected,
            f"{height} x {columns}, depth {depth}, {accumulate=}, {number} requests",
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("runs", [0, 1, 2, 3])
@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_runs_and_rows_that_lie_anywhere(dtype, runs, depth):
    rng = np.random.default_rng(0)
    lanes = MACHINE.vector_bytes // np.dtype(dtype).itemsize
    height, vectors = MACHINE.tile_rows, MACHINE.tile_vectors
    image = rng.integers(-9, 10, 500).astype(dtype)
    rows, starts = rng.permutation(100)[:height] * 3, rng.permutation(30)[:runs] * 5
    a = image[rows[:, None, None] + starts[:, None] + np.arange(depth)].reshape(height, -1)
    b = rng.integers(-9, 10, (runs * depth, vectors * lanes)).astype(dtype)
    c = np.full((2 * height, vectors * lanes), np.nan, dtype)
    places = rng.permutation(2 * height)[:height]
    a_rows = image.ctypes.data + rows * image.itemsize
    c_rows = c.ctypes.data + places * c.strides[0]
    starts = starts * image.itemsize
    run_tile(
        dtype(0), height, vectors * lanes, runs, starts.ctypes.data, depth,
        a_rows.ctypes.data, image.itemsize, b.ctypes.data, b.strides[0], c_rows.ctypes.data, False,
    )  # fmt: skip
    np.testing.assert_array_equal(c[places], a @ b)
    assert np.isnan(np.delete(c, places, axis=0)).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_variant_that_does_not_exist_ends_the_process():
    program = """
import os, resource
import numpy as np
from numbadrop.kernels.elements import MACHINE
from test_tile import tile_of
from numbadrop.kernels.tile import WIDE

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
memory = np.zeros(100_000, np.float32)
a, b, c = (memory[start:].ctypes.data for start in (0, 20_000, 60_000))
a_rows, c_rows = a + 64 * np.arange(9), c + 1024 * np.arange(9)
starts = np.zeros(1, np.int64)

def run(run_tile, rows, vectors):
    places = [array.ctypes.data for array in (starts, a_rows, c_rows)]
    columns = vectors * (MACHINE.vector_bytes // 4)
    run_tile(np.float32(0), rows, columns, 1, places[0], 1, places[1], 4, b, 0, places[2], False)

high, wide = MACHINE.tile_rows, MACHINE.tile_vectors
sizes = [
    (0, 1), (1, 0), (0, 0), (high + 1, 1), (high + 1, wide), (MACHINE.wide_rows + 1, wide + 1),
    (high, wide + 1), (high + 1, wide + 1), (0, wide + 1), (0, wide + 2), (1, wide + 2), (2, -1),
    (-1, 1), (-1, 2 * wide + 3),
]
for kind, missing in [(WIDE, sizes), (0, [*sizes, (1, wide + 1), (MACHINE.wide_rows, wide + 1)])]:
    run_tile = tile_of(kind)
    run(run_tile, 1, 1)
    for rows, vectors in missing:
        child = os.fork()
        if child == 0:
            os.close(2)  # no trace of the expected end
            run(run_tile, rows, vectors)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            print(f"{rows} x {vectors} of kind {kind} returned")
"""
    assert answer("-c", program, env={"PYTHONFAULTHANDLER": None}) == ""


def blocks_for(source, cpu):
    """Return the blocks of a module's assembly, optimized for a CPU of its triple."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(source.triple).create_target_machine(cpu=cpu, opt=3)
    optimized = llvm.parse_assembly(str(source))
    passes = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(optimized, passes)
    return re.split(r"\n(?=\.LBB)", target.emit_assembly(optimized))


@pytest.mark.parametrize("is_wide", [False, True])
@pytest.mark.parametrize("prefetches", [False, True])
@pytest.mark.parametrize("element", [types.float32, types.float64], ids=str)
@pytest.mark.parametrize(
    ("machine", "triple", "cpu", "multiply_add", "memory"),
    [
        *[
            (elements._NEON, "aarch64-unknown-linux-gnu", cpu, "fmla", r"\[sp")
            for cpu in ("generic", "apple-m1", "cortex-a76", "neoverse-n1")
        ],
        (elements._AVX2, "x86_64-unknown-linux-gnu", "haswell", "vfmadd", r"\(%rsp"),
        (elements._AVX2, "x86_64-unknown-linux-gnu", "znver3", "vfmadd", r"\(%rsp"),
        (elements._AVX512, "x86_64-unknown-linux-gnu", "skylake-avx512", "vfmadd", r"\(%rsp"),
        (elements._PLAIN, "x86_64-unknown-linux-gnu", "sandybridge", "vmulp", r"\(%rsp"),
    ],
)  # fmt: skip
def test_the_inner_loop_of_other_machines(
    machine, triple, cpu, multiply_add, memory, element, prefetches, is_wide, monkeypatch
):
    """Cross-compiled: one multiplication for each vector of sums, all sums in registers."""
    for module in (elements, tile):
        monkeypatch.setattr(module, "MACHINE", machine)
    source = ir.Module()
    source.triple = triple
    sizes = machine.tile_rows, machine.tile_vectors
    if is_wide:
        sizes = machine.wide_rows, machine.tile_vectors + 1
    tile._tile_function(source, element, *sizes, prefetches).linkage = ""
    block = max(blocks_for(source, cpu), key=lambda block: block.count(multiply_add))
    label = block[: block.index(":")]
    loop = block[: block.rindex(label)]  # up to the jump back
    assert loop.count(multiply_add) == tile._steps_a_turn(prefetches) * np.prod(sizes)
    register = r"(?:v|q|%[xyz]mm)\d"
    on_stack = [line for line in loop.split("\n") if re.search(memory, line)]
    if prefetches:  # where the list ends may be read from there
        assert re.search("prefetch|prfm", loop), loop
        read = re.compile(rf"\t(?:(?:cmp|cmov|ldr)\w*\t(?!{register})|movq\t-?\d*\()")
        on_stack = [line for line in on_stack if not read.match(line)]
    assert not on_stack, loop
    assert not re.search(rf"\tv?mov\w*\t{register}\S*, {register}", loop), loop
