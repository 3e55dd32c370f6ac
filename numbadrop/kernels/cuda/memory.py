"""Elements of arrays on the GPU by their address, moves of 16 bytes, and copies in the background.

Kernels take addresses, of which a kernel is started with one number instead of seven. And what
Numba's own indexing does to an index, wrapping it around and multiplying it by strides that the
compiler does not know, would stand in the middle of the main loop.
"""

from __future__ import annotations

from typing import Any

from numbadrop.kernels.cuda.driver import SIMULATED

__all__ = [
    "VECTOR_BYTES",
    "commit",
    "copier",
    "copy_vector",
    "load",
    "store",
    "waiter",
    "wide_product",
]

VECTOR_BYTES = 16
"""Of the widest move that a thread can make."""


if SIMULATED:

    def _check_element(address, element):
        # On a device another type would be other bytes.
        if address.dtype != element:
            raise TypeError(f"a kernel takes memory of {address.dtype} for {element}")

    def load(address, index, element):
        """Return an element of the type `element`."""
        _check_element(address, element)
        return address[index]

    def store(address, index, value, element):
        """Set an element of the type `element`."""
        _check_element(address, element)
        address[index] = value

    def copy_vector(target, target_index, source, source_index):
        """Copy 16 bytes between local and shared arrays; indices are multiples of their number."""
        for i in range(VECTOR_BYTES // target.dtype.itemsize):
            target[target_index + i] = source[source_index + i]

    def wide_product(i, j):
        """Return the product of two int32, an int64."""
        return int(i) * int(j)

    def copier(count: int) -> Any:
        """Return ``copy(shared, at, address, far, near, inside)``, which copies at once."""

        def copy(shared, at, address, far, near, inside):
            for i in range(count):
                shared[at + i] = address[far + near + i] if inside else 0

        return copy

    def commit():
        """Close a group of copies."""

    def waiter(groups: int) -> Any:
        """Return ``wait()``, which has nothing to wait for."""
        return lambda: None

else:
    from llvmlite import ir
    from numba.cuda import types
    from numba.cuda.core.targetconfig import ConfigStack
    from numba.cuda.extending import intrinsic

    _GLOBAL, _SHARED = 1, 3
    """The address spaces of a device's memory, and of what the threads of a block share."""
    _I32 = ir.IntType(32)

    def _global(context: Any, builder: Any, element: Any, address: Any, index: Any) -> Any:
        pointer = ir.PointerType(context.get_data_type(element), _GLOBAL)
        return builder.gep(builder.inttoptr(address, pointer), [index])

    def _place(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
        data = context.make_array(array_type)(context, builder, array).data
        return builder.gep(data, [index])

    def _as_vector(builder: Any, pointer: Any, count: int) -> Any:
        vector = ir.VectorType(pointer.type.pointee, count)
        return builder.bitcast(pointer, ir.PointerType(vector, pointer.type.addrspace))

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
    def copy_vector(
        typingctx: Any, target: Any, target_index: Any, source: Any, source_index: Any
    ) -> Any:
        """Copy 16 bytes between local and shared arrays; indices are multiples of their number."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            count = VECTOR_BYTES * 8 // source.dtype.bitwidth
            to = _place(context, builder, target, *args[:2])
            at = _place(context, builder, source, *args[2:])
            moved = builder.load(_as_vector(builder, at, count), align=VECTOR_BYTES)
            builder.store(moved, _as_vector(builder, to, count), align=VECTOR_BYTES)
            return context.get_dummy_value()

        return types.void(target, types.int64, source, types.int64), codegen

    @intrinsic
    def wide_product(typingctx: Any, i: Any, j: Any) -> Any:
        """Return the product of two int32, an int64."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            # LLVM widens what does not change before the loop, and would multiply 64 bits there.
            kind = ir.FunctionType(ir.IntType(64), [_I32, _I32])
            return builder.asm(kind, "mul.wide.s32 $0, $1, $2;", "=l,r,r", args, False)

        return types.int64(types.int32, types.int32), codegen

    def _copies_by_itself() -> bool:
        """Whether the GPU that is compiled for copies in the background."""
        return bool(ConfigStack().top().compute_capability >= (8, 0))

    def _insert(builder: Any, text: str, constraints: str = "", *args: Any) -> None:
        """Insert an instruction across which nothing moves that reads or writes memory."""
        kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in args])
        builder.asm(kind, text, constraints + "~{memory}", args, side_effect=True)

    def _start_copy(builder: Any, to: Any, at: Any, near: Any, nbytes: int, inside: Any) -> None:
        shared = builder.addrspacecast(to, ir.PointerType(to.type.pointee, _SHARED))
        size = builder.select(inside, _I32(nbytes), _I32(0))
        # Those of 16 bytes pass by the L1 cache, which others have no way around. The place nearby
        # is added here, where LLVM cannot, to what it has found outside of the loop.
        text = (
            "{ .reg .b64 at; cvt.u64.u32 at, $2; add.s64 at, at, $1; "
            f"cp.async.{'cg' if nbytes == VECTOR_BYTES else 'ca'}.shared.global "
            f"[$0], [at], {nbytes}, $3; }}"
        )
        _insert(builder, text, "r,l,r,r,", builder.ptrtoint(shared, _I32), at, near, size)

    def _copy_now(builder: Any, to: Any, at: Any, anywhere: Any, nbytes: int, inside: Any) -> None:
        value = builder.load(builder.select(inside, at, anywhere), align=nbytes)
        value = builder.select(inside, value, ir.Constant(value.type, None))
        builder.store(value, to, align=nbytes)

    def copier(count: int) -> Any:
        """Return ``copy(shared, at, address, far, near, inside)``, of so many elements at once.

        It copies those from ``far + near`` on in the background, or zeros if not `inside`, for
        which nothing is read. They are there after the wait for their group. `near` is an int32
        and at least 0, and as a number of bytes it has 32 bits.
        """

        @intrinsic
        def copy(
            typingctx: Any, shared: Any, at: Any, address: Any, far: Any, near: Any, inside: Any
        ) -> Any:
            kind = shared.dtype

            def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                to = _place(context, builder, shared, *args[:2])
                at = _global(context, builder, kind, args[2], args[3])
                itemsize, inside = kind.bitwidth // 8, args[5]
                if _copies_by_itself():
                    near = builder.mul(args[4], _I32(itemsize))
                    _start_copy(builder, to, at, near, count * itemsize, inside)
                else:
                    at = builder.gep(at, [builder.zext(args[4], args[3].type)])
                    anywhere = builder.inttoptr(args[2], at.type)
                    to, at, anywhere = (_as_vector(builder, p, count) for p in (to, at, anywhere))
                    _copy_now(builder, to, at, anywhere, count * itemsize, inside)
                return context.get_dummy_value()

            kinds = types.int64, types.int64, types.int64, types.int32, types.boolean
            return types.void(shared, *kinds), codegen

        return copy

    @intrinsic
    def commit(typingctx: Any) -> Any:
        """Close a group of copies."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            if _copies_by_itself():
                _insert(builder, "cp.async.commit_group;")
            return context.get_dummy_value()

        return types.void(), codegen

    def waiter(groups: int) -> Any:
        """Return ``wait()``, until at most so many of the last groups are under way."""

        @intrinsic
        def wait(typingctx: Any) -> Any:
            def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                if _copies_by_itself():
                    _insert(builder, f"cp.async.wait_group {groups};")
                return context.get_dummy_value()

            return types.void(), codegen

        return wait
