"""Flat access to the elements of an array in a kernel, and moves of 16 bytes.

What Numba's own indexing does to an index, wrapping it around and multiplying it by strides that
the compiler does not know, would stand in the middle of the main loop.
"""

from __future__ import annotations

from typing import Any

from numbadrop.kernels.cuda.driver import SIMULATED

__all__ = ["VECTOR_BYTES", "copy_vector", "load", "store"]

VECTOR_BYTES = 16
"""Of the widest move that a thread can make."""


if SIMULATED:

    def load(array, index):
        """Return the element at a flat index."""
        return array.reshape(-1)[index]

    def store(array, index, value):
        """Set the element at a flat index."""
        array.reshape(-1)[index] = value

    def copy_vector(target, target_index, source, source_index):
        """Copy 16 bytes; both flat indices must be multiples of their elements' number."""
        count = VECTOR_BYTES // source.dtype.itemsize
        for i in range(count):
            store(target, target_index + i, load(source, source_index + i))

else:
    from llvmlite import ir
    from numba.cuda import types
    from numba.cuda.extending import intrinsic

    _INDEX = types.int64

    def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
        data = context.make_array(array_type)(context, builder, array).data
        return builder.gep(data, [index])

    @intrinsic
    def load(typingctx: Any, array: Any, index: Any) -> Any:
        """Return the element at a flat index."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            address = _address(context, builder, signature.args[0], *args)
            return context.unpack_value(builder, array.dtype, address)

        return array.dtype(array, _INDEX), codegen

    @intrinsic
    def store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
        """Set the element at a flat index."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            address = _address(context, builder, signature.args[0], *args[:2])
            context.pack_value(builder, array.dtype, args[2], address)
            return context.get_dummy_value()

        return types.void(array, _INDEX, array.dtype), codegen

    @intrinsic
    def copy_vector(
        typingctx: Any, target: Any, target_index: Any, source: Any, source_index: Any
    ) -> Any:
        """Copy 16 bytes; both flat indices must be multiples of their elements' number."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            to = _address(context, builder, signature.args[0], *args[:2])
            at = _address(context, builder, signature.args[2], *args[2:])
            element = context.get_data_type(source.dtype)
            count = VECTOR_BYTES * 8 // source.dtype.bitwidth
            vector = ir.VectorType(element, count).as_pointer()
            moved = builder.load(builder.bitcast(at, vector), align=VECTOR_BYTES)
            builder.store(moved, builder.bitcast(to, vector), align=VECTOR_BYTES)
            return context.get_dummy_value()

        return types.void(target, _INDEX, source, _INDEX), codegen
