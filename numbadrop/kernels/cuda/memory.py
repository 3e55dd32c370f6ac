"""Elements of arrays on the GPU by their address, and moves of 16 bytes.

Kernels take addresses, of which a kernel is started with one number instead of seven. And what
Numba's own indexing does to an index, wrapping it around and multiplying it by strides that the
compiler does not know, would stand in the middle of the main loop.
"""

from __future__ import annotations

from typing import Any

from numbadrop.kernels.cuda.driver import SIMULATED

__all__ = [
    "VECTOR_BYTES",
    "copy_vector",
    "load",
    "load_vector",
    "store",
    "store_shared",
]

VECTOR_BYTES = 16
"""Of the widest move that a thread can make."""


if SIMULATED:

    def load(address, index, element):
        """Return an element of the type `element`."""
        return address[index]

    def store(address, index, value, element):
        """Set an element of the type `element`."""
        address[index] = value

    def store_shared(target, index, value):
        """Set an element of a shared array."""
        target[index] = value

    def load_vector(target, target_index, address, index):
        """Copy 16 bytes into a local array; indices are multiples of their elements' number."""
        for i in range(VECTOR_BYTES // target.dtype.itemsize):
            target[target_index + i] = address[index + i]

    def copy_vector(target, target_index, source, source_index):
        """Copy 16 bytes between local and shared arrays, in the same way."""
        load_vector(target, target_index, source, source_index)

else:
    from llvmlite import ir
    from numba.cuda import types
    from numba.cuda.extending import intrinsic

    _GLOBAL = 1
    """The address space of a device's memory."""

    def _global(context: Any, builder: Any, element: Any, address: Any, index: Any) -> Any:
        pointer = ir.PointerType(context.get_data_type(element), _GLOBAL)
        return builder.gep(builder.inttoptr(address, pointer), [index])

    def _place(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
        data = context.make_array(array_type)(context, builder, array).data
        return builder.gep(data, [index])

    def _copy(builder: Any, element: Any, target: Any, source: Any) -> None:
        count = VECTOR_BYTES * 8 // element.bitwidth

        def as_vector(pointer: Any) -> Any:
            vector = ir.VectorType(pointer.type.pointee, count)
            return builder.bitcast(pointer, ir.PointerType(vector, pointer.type.addrspace))

        moved = builder.load(as_vector(source), align=VECTOR_BYTES)
        builder.store(moved, as_vector(target), align=VECTOR_BYTES)

    @intrinsic
    def load(typingctx: Any, address: Any, index: Any, element: Any) -> Any:
        """Return an element of the type `element`."""
        kind = element.dtype

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            place = _global(context, builder, kind, args[0], args[1])
            return context.unpack_value(builder, kind, place)

        return kind(types.int64, types.int64, element), codegen

    @intrinsic
    def store(typingctx: Any, address: Any, index: Any, value: Any, element: Any) -> Any:
        """Set an element of the type `element`."""
        kind = element.dtype

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            place = _global(context, builder, kind, args[0], args[1])
            context.pack_value(builder, kind, args[2], place)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, kind, element), codegen

    @intrinsic
    def store_shared(typingctx: Any, target: Any, index: Any, value: Any) -> Any:
        """Set an element of a shared array."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            place = _place(context, builder, target, *args[:2])
            context.pack_value(builder, target.dtype, args[2], place)
            return context.get_dummy_value()

        return types.void(target, types.int64, target.dtype), codegen

    @intrinsic
    def load_vector(
        typingctx: Any, target: Any, target_index: Any, address: Any, index: Any
    ) -> Any:
        """Copy 16 bytes into a local array; indices are multiples of their elements' number."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            to = _place(context, builder, target, *args[:2])
            at = _global(context, builder, target.dtype, *args[2:])
            _copy(builder, target.dtype, to, at)
            return context.get_dummy_value()

        return types.void(target, types.int64, types.int64, types.int64), codegen

    @intrinsic
    def copy_vector(
        typingctx: Any, target: Any, target_index: Any, source: Any, source_index: Any
    ) -> Any:
        """Copy 16 bytes between local and shared arrays, in the same way."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            to = _place(context, builder, target, *args[:2])
            at = _place(context, builder, source, *args[2:])
            _copy(builder, source.dtype, to, at)
            return context.get_dummy_value()

        return types.void(target, types.int64, source, types.int64), codegen
