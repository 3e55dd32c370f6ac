"""``M X M'`` for many small X at a time: the transforms of Winograd's convolution, as LLVM IR.

X is a square of places in memory, each the beginning of equally many elements, and element n of
all places makes one X. M is a constant of the generated code: a register of each place is read,
zeros of M cost nothing and ones no multiplication.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numbadrop.kernels.elements import itemsize, vector_type
from numbadrop.kernels.memory import first_lanes, masked_load, masked_store, pointer

__all__ = ["sandwich"]

Matrix = Sequence[Sequence[float]]
_I64 = ir.IntType(64)
_POINTER = ir.PointerType()


def _combine(builder: ir.IRBuilder, factors: Sequence[float], registers: list[Any]) -> Any:
    """Emit the sum of the registers, each times its factor."""
    total: Any = None
    for factor, register in zip(factors, registers, strict=True):
        if factor == 0:
            continue
        if abs(factor) != 1:
            scale = ir.Constant(register.type, [abs(factor)] * register.type.count)
            register = builder.fmul(register, scale)
        if total is None:
            total = builder.fneg(register) if factor < 0 else register
        else:
            total = (builder.fsub if factor < 0 else builder.fadd)(total, register)
    return total


def _define(module: ir.Module, element: types.Float, name: str, matrix: Matrix) -> ir.Function:
    """Define, once in a module, the function that goes through all elements of the places."""
    name = f"numbadrop_sandwich_{name}_{element}"
    if name in module.globals:
        return module.globals[name]
    kind = ir.FunctionType(ir.VoidType(), [_POINTER, _I64, _POINTER, _I64, _I64])
    function = ir.Function(module, kind, name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    sources, source_offset, targets, target_offset, count = function.args

    high, wide = len(matrix), len(matrix[0])
    vector, size = vector_type(element), itemsize(element)
    lanes = vector.count

    def place(builder: ir.IRBuilder, table: Any, number: int, offset: Any, done: Any) -> Any:
        """Return the pointer to element `done` of a listed place."""
        at = builder.gep(table, [_I64(number)], source_etype=_I64)
        start = builder.gep(
            builder.load(at, typ=_POINTER, align=8), [offset], source_etype=ir.IntType(8)
        )
        return builder.gep(start, [done], source_etype=vector.element)

    def compute(builder: ir.IRBuilder, done: Any, mask: Any) -> None:
        """Emit the sandwich of one register of each place, of its lanes under `mask` if given."""
        x = []
        for number in range(wide * wide):
            at = place(builder, sources, number, source_offset, done)
            if mask is None:
                x.append(builder.load(at, typ=vector, align=size))
            else:
                x.append(masked_load(builder, at, mask, vector, size))
        # M X, a column of X at a time, and then its rows by the rows of M.
        columns = [[_combine(builder, row, x[j::wide]) for row in matrix] for j in range(wide)]
        for i in range(high):
            across = [column[i] for column in columns]
            for j, row in enumerate(matrix):
                at = place(builder, targets, i * high + j, target_offset, done)
                result = _combine(builder, row, across)
                if mask is None:
                    builder.store(result, at, align=size)
                else:
                    masked_store(builder, result, at, mask, size)

    entry, body, few, leave = (
        ir.IRBuilder(function.append_basic_block(part))
        for part in ("entry", "body", "few", "leave")
    )
    # The last register ends with the last element, and has some in common with the one before: on
    # some CPUs a store under a mask takes longer than all else here.
    last = entry.sub(count, _I64(lanes))
    entry.cbranch(entry.icmp_signed(">=", last, _I64(0)), body.block, few.block)
    done = body.phi(_I64)
    done.add_incoming(_I64(0), entry.block)
    compute(body, done, None)
    after = body.add(done, _I64(lanes))
    done.add_incoming(body.select(body.icmp_signed("<", after, last), after, last), body.block)
    body.cbranch(body.icmp_signed("<", after, count), body.block, leave.block)
    compute(few, _I64(0), first_lanes(few, lanes, count))
    few.branch(leave.block)
    leave.ret_void()
    return function


def sandwich(name: str, matrix: Matrix) -> Any:
    """Return a function for kernels that computes ``M X M'``, for a constant matrix M.

    Parameters
    ----------
    name : str
        Of the generated code, which no other matrix may have.
    matrix : sequence of sequences of float, shape (m, n)

    Returns
    -------
    intrinsic
        ``(alpha, sources, source_offset, targets, target_offset, count)``: `alpha` gives the
        element type alone, `sources` and `targets` are addresses of n² and m² int64, the addresses
        of the places row by row, each to be moved by an offset in bytes, and `count` is the number
        of elements of a place. Places are aligned to elements; nothing behind them is touched.
        No source is a target.
    """

    @intrinsic
    def transform(
        typingctx: Any, alpha: Any, sources: Any, source_offset: Any, targets: Any,
        target_offset: Any, count: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _, sources, source_offset, targets, target_offset, count = args
            function = _define(builder.module, alpha, name, matrix)
            builder.call(
                function,
                [pointer(builder, sources), source_offset, pointer(builder, targets),
                 target_offset, count],
            )  # fmt: skip
            return context.get_dummy_value()

        i64 = types.int64
        return types.void(alpha, i64, i64, i64, i64, i64), codegen

    return transform
