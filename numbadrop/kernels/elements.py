"""What the compiler's target offers: vector width, register tile, and the permute instruction.

The compiler is asked, not the CPU: a probe is compiled for the very target that Numba compiles
for, so that `NUMBA_CPU_NAME` and `NUMBA_CPU_FEATURES` are obeyed.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

__all__ = ["CPU", "MACHINE", "WIDEST", "Machine", "bytes_of", "itemsize", "lanes", "vector_type"]


class Machine(NamedTuple):
    """A register file and the tiles of C that fit in it.

    The tile of `tile_rows` x `tile_vectors` accumulators, one row of B and one broadcast element
    of A must fit the registers together: 8 x 3 + 3 + 1 = 28 of 32, 6 x 2 + 2 + 1 = 15 of 16. Where
    an element of A takes a register to be broadcast, several of them must: 7 x 3 + 3 + 7 = 31. So
    must the tile of `wide_rows` and a register more: 6 x 4 + 4 + 1 = 29, 4 x 3 + 3 + 1 = 16. A CPU
    without multiply-adds needs a register for the product: 3 x 3 + 3 + 1 + 1 = 14.
    """

    name: str
    registers: int
    vector_bytes: int
    tile_rows: int
    tile_vectors: int
    wide_rows: int
    permute: str | None
    """LLVM intrinsic that permutes the 32-bit words of a vector by a vector of positions."""
    masked_stores: bool
    """Whether to store under a mask takes about as long as to store. AMD's CPUs without AVX-512
    take a dozen cycles; NEON and plain x86 have no such store, and do it lane by lane."""


_AVX512 = Machine("AVX-512", 32, 64, 8, 3, 6, "llvm.x86.avx512.permvar.sf.512", True)
_AVX2 = Machine("AVX2", 16, 32, 6, 2, 4, "llvm.x86.avx2.permps", True)
_NEON = Machine("NEON", 32, 16, 7, 3, 5, None, False)
_PLAIN = Machine("plain", 16, 16, 6, 2, 3, None, False)

_PROBE = """
target triple = "{triple}"
define <16 x float> @probe(<16 x float> %a, <16 x float> %b, <16 x float> %c) {{
  %r = call <16 x float> @llvm.fmuladd.v16f32(<16 x float> %a, <16 x float> %b, <16 x float> %c)
  ret <16 x float> %r
}}
define <8 x i32> @probe_integers(<8 x i32> %a, <8 x i32> %b) {{
  %r = add <8 x i32> %a, %b
  ret <8 x i32> %r
}}
declare <16 x float> @llvm.fmuladd.v16f32(<16 x float>, <16 x float>, <16 x float>)
"""


def _probe() -> Machine:
    codegen = cpu_target.target_context.codegen()
    triple, cpu = llvm.get_process_triple(), codegen._get_host_cpu_name()
    machine = llvm.Target.from_triple(triple).create_target_machine(
        cpu=cpu, features=codegen._get_host_cpu_features(), opt=2
    )
    assembly = machine.emit_assembly(llvm.parse_assembly(_PROBE.format(triple=triple)))
    if "vfmadd" in assembly:
        if "zmm" in assembly:
            return _AVX512
        # Some CPUs have FMA without the integer half of AVX2, to which the permute belongs.
        if not re.search("vpaddd.*ymm", assembly):
            return _PLAIN
        return _AVX2._replace(masked_stores=not re.match("znver|bdver", cpu))
    return _NEON if "fmla" in assembly else _PLAIN


CPU = llvm.get_host_cpu_name()
MACHINE = _probe()
WIDEST = MACHINE.tile_vectors + 1
"""Registers of the tile that has `wide_rows`."""


def itemsize(element: types.Float) -> int:
    """Return the bytes of an element of this Numba type."""
    return int(element.bitwidth) // 8


def vector_type(element: types.Float) -> ir.VectorType:
    """Return the LLVM type of a full register of elements of this Numba type."""
    scalar = ir.FloatType() if element == types.float32 else ir.DoubleType()
    return ir.VectorType(scalar, MACHINE.vector_bytes // itemsize(element))


@intrinsic
def bytes_of(typingctx: Any, alpha: Any) -> Any:
    """Return the size of an element of the type of `alpha`, as a constant."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(ir.IntType(64), itemsize(alpha))

    return types.int64(alpha), codegen


@intrinsic
def lanes(typingctx: Any, alpha: Any) -> Any:
    """Return how many elements of the type of `alpha` fill a register, as a constant."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(ir.IntType(64), vector_type(alpha).count)

    return types.int64(alpha), codegen
