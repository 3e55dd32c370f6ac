"""Numbers too small for full precision, on which x86 CPUs are slow."""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

__all__ = ["flush_denormals", "restore_denormals"]

_IS_X86 = llvm.get_process_triple().startswith(("x86_64", "i386", "i686"))
_FLUSH = 0x8040
"""In the control word: denormal results become zero, and denormal operands count as zero."""


def _control_word(builder: Any, name: str, where: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [where.type])
    function = builder.module.declare_intrinsic(f"llvm.x86.sse.{name}", (), kind)
    builder.call(function, [where])


@intrinsic
def flush_denormals(typingctx: Any) -> Any:
    """Let this thread's denormal numbers be zero, and return how it was before.

    An x86 CPU takes a hundred times as long for an operation on one of them; others do not.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        if not _IS_X86:
            return word(0)
        where = cgutils.alloca_once(builder, word)
        _control_word(builder, "stmxcsr", where)
        before = builder.load(where)
        builder.store(builder.or_(before, word(_FLUSH)), where)
        _control_word(builder, "ldmxcsr", where)
        return before

    return types.int32(), codegen


@intrinsic
def restore_denormals(typingctx: Any, before: Any) -> Any:
    """Let denormal numbers be what they were before `flush_denormals`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if _IS_X86:
            where = cgutils.alloca_once_value(builder, args[0])
            _control_word(builder, "ldmxcsr", where)
        return context.get_dummy_value()

    return types.void(types.int32), codegen
