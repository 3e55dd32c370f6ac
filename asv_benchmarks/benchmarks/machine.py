"""Control: the machine alone, without a line of numbadrop.

Where these move, the machine has moved, and a step in the other graphs means nothing.
"""

from __future__ import annotations

import time
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .timing import Timed

__all__ = ["fma_peak"]

SUMS = 12
"""Enough to hide the latency of two multiply-add units, few enough for 16 registers."""
LANES = 16 if llvm.get_host_cpu_features().get("avx512f") else 8


@intrinsic
def _multiply_add(typingctx: Any, repeats: Any) -> Any:
    """Return the sum of registers that were multiplied by one half `repeats` times."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector, i64 = ir.VectorType(ir.FloatType(), LANES), ir.IntType(64)
        multiply_add = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{LANES}f32"
        )
        before, loop = builder.block, builder.append_basic_block("loop")
        done = builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        step = builder.phi(i64)
        step.add_incoming(ir.Constant(i64, 0), before)
        half = ir.Constant(vector, [0.5] * LANES)
        olds = [builder.phi(vector) for _ in range(SUMS)]
        sums = [builder.call(multiply_add, (old, half, half)) for old in olds]
        for number, (old, new) in enumerate(zip(olds, sums, strict=True)):
            old.add_incoming(ir.Constant(vector, [1.0 + number] * LANES), before)
            old.add_incoming(new, loop)
        following = builder.add(step, ir.Constant(i64, 1))
        step.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, args[0]), loop, done)
        builder.position_at_end(done)
        total = sums[0]
        for other in sums[1:]:
            total = builder.fadd(total, other)
        return builder.extract_element(total, ir.Constant(ir.IntType(32), 0))

    return types.float32(types.int64), codegen


@numba.njit
def _run_multiply_adds(repeats):
    return _multiply_add(repeats)


def fma_peak(repeats: int = 2_000_000) -> float:
    """Return the FLOP/s of multiply-adds in registers, float32: the roof of one core now."""
    began = time.perf_counter()
    _run_multiply_adds(repeats)
    return repeats * SUMS * LANES * 2 / (time.perf_counter() - began)


class Control(Timed):
    """NumPy alone: a dense product, and a copy of 64 MB."""

    param_names = ("what",)
    params = ("matmul 512", "copy 64 MB")

    def prepare(self, what: str) -> None:
        if what == "copy 64 MB":
            source = np.ones(2**23)
            target = np.empty_like(source)
            self.run = lambda: np.copyto(target, source)
        else:
            a, b = (np.random.default_rng(i).random((512, 512), np.float32) for i in range(2))
            out = np.empty_like(a)
            self.run = lambda: np.matmul(a, b, out=out)

    def time_control(self, _: str) -> None:
        self.run()


class Peak:
    """The multiply-add units alone, on one core."""

    unit = "GFLOP/s"

    def setup(self) -> None:
        fma_peak(1)

    def track_fma_peak(self) -> float:
        return float(np.median([fma_peak() for _ in range(9)])) / 1e9
