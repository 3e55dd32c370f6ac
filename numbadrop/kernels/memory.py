"""Memory as kernels see it: addresses, strides, and what lies there.

Arrays enter a kernel as integers, their own addresses or those of their elements, so that one
compiled kernel serves every memory layout, read-only or not: Numba would compile another for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from numbadrop.address import DATA, SHAPE, STRIDES
from numbadrop.kernels.elements import itemsize, vector_type
from numbadrop.kernels.jit import inner

__all__ = [
    "CACHE_LINE",
    "add_elements",
    "address_in",
    "align",
    "array_data",
    "array_length",
    "array_stride",
    "as_pointer",
    "call_case",
    "clear_bytes",
    "copy_bytes",
    "emit_prefetch",
    "few_turns",
    "first_lanes",
    "first_of",
    "keep_alive",
    "load",
    "load_index",
    "masked_load",
    "masked_store",
    "opaque",
    "pointer",
    "process_registers",
    "spread",
    "stack_memory",
    "store",
    "words_behind",
]


CACHE_LINE = 64
"""Bytes that come from memory together."""


def pointer(builder: Any, address: Any) -> Any:
    """Return the LLVM pointer for an integer address."""
    return builder.inttoptr(address, ir.PointerType())


def call_case(builder: Any, number: Any, cases: dict[int, Any], arguments: list[Any]) -> None:
    """Emit a call of the one of several LLVM functions that `number` says.

    A number that has none ends the process at once: work must never be skipped in silence.
    """
    unknown = builder.append_basic_block("unknown")
    done = builder.append_basic_block("done")
    choice = builder.switch(number, unknown)
    for case, function in cases.items():
        block = builder.append_basic_block("case")
        choice.add_case(ir.Constant(number.type, case), block)
        with builder.goto_block(block):
            builder.call(function, arguments)
            builder.branch(done)
    with builder.goto_block(unknown):
        trap = ir.FunctionType(ir.VoidType(), [])
        builder.call(builder.module.declare_intrinsic("llvm.trap", (), trap), [])
        builder.unreachable()
    builder.position_at_end(done)


def emit_prefetch(builder: Any, where: Any, to_write: bool, nearest: bool = True) -> None:
    """Emit a request for the cache line at a pointer, to be read or written; any will do.

    It goes to the nearest cache, or to the one behind, where it pushes out nothing that is read
    now.
    """
    i32 = ir.IntType(32)
    function = builder.module.declare_intrinsic(
        "llvm.prefetch.p0", (), ir.FunctionType(ir.VoidType(), [where.type, i32, i32, i32])
    )
    # To be read (0) or written (1); in the nearest cache (3) or the next one (2); data (1).
    builder.call(function, [where, i32(int(to_write)), i32(3 if nearest else 2), i32(1)])


def spread(builder: Any, number: Any, lanes: int) -> Any:
    """Return a vector of so many times one number."""
    i32 = ir.IntType(32)
    undefined = ir.Constant(ir.VectorType(number.type, lanes), ir.Undefined)
    single = builder.insert_element(undefined, number, i32(0))
    return builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(i32, lanes), None))


def first_lanes(builder: Any, lanes: int, count: Any) -> Any:
    """Return the mask of a register's first `count` lanes, all of them where it has no more."""
    every = ir.Constant(ir.VectorType(count.type, lanes), list(range(lanes)))
    return builder.icmp_signed("<", every, spread(builder, count, lanes))


def _masked(builder: Any, what: str, vector: Any, result: Any, arguments: list[Any]) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    bits = 32 if vector.element == ir.FloatType() else 64
    name = f"llvm.masked.{what}.v{vector.count}f{bits}.p0"
    return builder.call(builder.module.declare_intrinsic(name, (), kind), arguments)


def masked_load(builder: Any, where: Any, mask: Any, vector: Any, align: int) -> Any:
    """Emit a load of the lanes under a mask; the others become zero, and are not touched."""
    arguments = [where, ir.IntType(32)(align), mask, ir.Constant(vector, None)]
    return _masked(builder, "load", vector, vector, arguments)


def masked_store(builder: Any, value: Any, where: Any, mask: Any, align: int) -> None:
    """Emit a store of the lanes under a mask."""
    arguments = [value, where, ir.IntType(32)(align), mask]
    _masked(builder, "store", value.type, ir.VoidType(), arguments)


@intrinsic
def load(typingctx: Any, alpha: Any, address: Any) -> Any:
    """Return the element at `address`, of the type of `alpha`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        scalar = context.get_value_type(alpha)
        return builder.load(pointer(builder, args[1]), typ=scalar, align=alpha.bitwidth // 8)

    return alpha(alpha, types.int64), codegen


@intrinsic
def store(typingctx: Any, address: Any, value: Any) -> Any:
    """Write `value` to `address`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], pointer(builder, args[0]), align=value.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(types.int64, value), codegen


@intrinsic
def load_index(typingctx: Any, address: Any, position: Any) -> Any:
    """Return the int64 number `position` of the array of indices at `address`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        at = builder.gep(pointer(builder, args[0]), [args[1]], source_etype=word)
        return builder.load(at, typ=word, align=8)

    return types.int64(types.int64, types.int64), codegen


@inner
def array_data(array):
    """Return the address of the elements of the array with this `id`."""
    return load_index(array + DATA, 0)


@inner
def array_length(array, axis):
    """Return the length of an axis of the array with this `id`."""
    return load_index(load_index(array + SHAPE, 0), axis)


@inner
def array_stride(array, axis):
    """Return the bytes from one element to the next along an axis of the array with this `id`."""
    return load_index(load_index(array + STRIDES, 0), axis)


@intrinsic(prefer_literal=True)
def stack_memory(typingctx: Any, count: Any) -> Any:
    """Return the address of so many bytes, on a cache line, that last until the function returns.

    `count` is a constant. What they hold is undefined.
    """
    if not isinstance(count, types.IntegerLiteral):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        memory = cgutils.alloca_once(builder, ir.IntType(8), size=count.literal_value)
        memory.align = CACHE_LINE
        return builder.ptrtoint(memory, ir.IntType(64))

    return types.int64(count), codegen


@intrinsic
def copy_bytes(typingctx: Any, target: Any, source: Any, count: Any) -> Any:
    """Copy so many bytes, which do not overlap: a loop over elements takes ten times as long."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target, source, count = args
        where, flag = ir.PointerType(), ir.IntType(1)
        kind = ir.FunctionType(ir.VoidType(), [where, where, count.type, flag])
        copy = builder.module.declare_intrinsic("llvm.memcpy.p0.p0.i64", (), kind)
        builder.call(copy, [pointer(builder, target), pointer(builder, source), count, flag(0)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


def opaque(builder: Any, number: Any) -> Any:
    """Return a number of which LLVM knows nothing: what comes out of an empty piece of assembly."""
    same = ir.InlineAsm(ir.FunctionType(number.type, [number.type]), "", "=r,0")
    return builder.call(same, [number])


@contextmanager
def few_turns(builder: Any, count: Any) -> Iterator[Any]:
    """Emit a loop over ``[0, count)`` that LLVM cannot unroll; the block under it gets the index.

    For loops that seldom turn often enough to gain: unrolled, they would be four times as much to
    compile.
    """
    head, body, end = (builder.append_basic_block(name) for name in ("head", "body", "end"))
    before = builder.basic_block
    builder.branch(head)
    with builder.goto_block(head):
        index = builder.phi(count.type)
        builder.cbranch(builder.icmp_signed("<", index, count), body, end)
    with builder.goto_block(body):
        yield index
        following = opaque(builder, builder.add(index, count.type(1)))
        index.add_incoming(following, builder.basic_block)
        builder.branch(head)
    index.add_incoming(count.type(0), before)
    builder.position_at_end(end)


def process_registers(
    builder: Any, element: types.Float, target: Any, sources: list[Any], count: Any, emit: Any
) -> None:
    """Emit a loop over `count` elements at pointers, a register at a time, the last under a mask.

    ``emit(builder, *registers)``, of one from each source, returns what goes to the target.
    """
    vector, align = vector_type(element), itemsize(element)
    lanes = count.type(vector.count)
    whole = builder.sdiv(count, lanes)

    def register(base: Any, number: Any) -> Any:
        return builder.gep(base, [number], source_etype=vector)

    with few_turns(builder, whole) as number:
        values = [
            builder.load(register(source, number), typ=vector, align=align) for source in sources
        ]
        builder.store(emit(builder, *values), register(target, number), align=align)
    rest = builder.srem(count, lanes)
    with builder.if_then(builder.icmp_signed(">", rest, rest.type(0))):
        mask = first_lanes(builder, vector.count, rest)
        values = [
            masked_load(builder, register(source, whole), mask, vector, align) for source in sources
        ]
        masked_store(builder, emit(builder, *values), register(target, whole), mask, align)


@intrinsic
def add_elements(typingctx: Any, alpha: Any, target: Any, source: Any, count: Any) -> Any:
    """Add so many elements, which do not overlap, to others, a register at a time."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, target, source, count = args
        target, source = pointer(builder, target), pointer(builder, source)
        process_registers(
            builder, alpha, target, [target, source], count,
            lambda builder, *values: builder.fadd(*values),
        )  # fmt: skip
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(alpha, i64, i64, i64), codegen


@intrinsic
def clear_bytes(typingctx: Any, target: Any, count: Any) -> Any:
    """Set so many bytes to zero."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target, count = args
        byte, flag = ir.IntType(8), ir.IntType(1)
        kind = ir.FunctionType(ir.VoidType(), [ir.PointerType(), byte, count.type, flag])
        clear = builder.module.declare_intrinsic("llvm.memset.p0.i64", (), kind)
        builder.call(clear, [pointer(builder, target), byte(0), count, flag(0)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def as_pointer(typingctx: Any, alpha: Any, address: Any) -> Any:
    """Return `address` as a pointer to the type of `alpha`, for `numba.carray`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[1], context.get_value_type(signature.return_type))

    return types.CPointer(alpha)(alpha, types.int64), codegen


@intrinsic
def first_of(typingctx: Any, task: Any) -> Any:
    """Return what a task begins with: a value, or a tuple laid out as a C struct."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.data_model_manager[task.dtype].load_from_data_pointer(builder, args[0])

    return task.dtype(task), codegen


@intrinsic
def words_behind(typingctx: Any, task: Any) -> Any:
    """Return the address of the int64 words that follow what a task begins with."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        first = context.get_abi_sizeof(context.get_data_type(task.dtype))
        aligned = (first + 7) // 8 * 8
        return builder.add(builder.ptrtoint(args[0], word), word(aligned))

    return types.int64(task), codegen


@inner
def align(address, step):
    """Return the first multiple of `step` that is not below `address`."""
    return (address + step - 1) // step * step


@inner
def address_in(array):
    """Return where an array's first element lies, as a signed number like all other addresses.

    Numba's is unsigned: with one of the others it makes a float, and callees are compiled twice.
    """
    return np.int64(array.ctypes.data)


@inner
def keep_alive(array):
    """Mark the last use of an array whose address is in use: Numba frees it after its last use."""
    return array.size
