"""Packing: the only code that sees how a matrix lies in memory, and where the gather happens.

A panel is a depth block of B, `width` columns wide, one row after the other, so that the register
tile reads it front to back. Element (k, j) comes from ``address + depth[k] + column[j]``: two axes
of byte offsets say everything about strides, transposition and dropped units.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numbadrop.kernels.elements import MACHINE, WIDEST, bytes_of, itemsize, lanes, vector_type
from numbadrop.kernels.jit import inlined, inner
from numbadrop.kernels.memory import align, clear_bytes, load, pointer, store
from numbadrop.kernels.windows import (
    ROWS,
    WORDS,
    Axis,
    Windows,
    find_gather,
    move,
    note_sources,
    offset,
    windows,
    windows_bytes,
)

__all__ = ["MOST_UNITS", "WORKSPACE_BYTES", "Matrix", "pack", "pack_piece", "workspace"]

MOST_UNITS = 64
"""Units, or registers, for which windows are found at a time; no panel is wider."""
assert WIDEST * WORDS <= MOST_UNITS
_SQUARE_BYTES = WORDS * MACHINE.vector_bytes
WORKSPACE_BYTES = windows_bytes.py_func(MOST_UNITS) + _SQUARE_BYTES
"""What packing needs beside the panel."""
_I32 = ir.IntType(32)


class Matrix(NamedTuple):
    """An operand of a product: data and two axes."""

    address: int
    rows: Axis
    cols: Axis


class Workspace(NamedTuple):
    """What packing needs beside the panel, private to a thread."""

    table: Windows
    square: int
    """Address of registers on their way to being transposed."""


@intrinsic
def _transpose_square(
    typingctx: Any, alpha: Any, target: Any, target_row: Any, source: Any, source_row: Any
) -> Any:
    """Transpose a square of as many rows as a register has lanes, in registers."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, target, target_row, source, source_row = args
        vector, aligned = vector_type(alpha), itemsize(alpha)
        count = vector.count

        def row(base: Any, stride: Any, number: int) -> Any:
            return pointer(builder, builder.add(base, builder.mul(stride, stride.type(number))))

        rows = [
            builder.load(row(source, source_row, r), typ=vector, align=aligned)
            for r in range(count)
        ]
        # Swap ever larger blocks: after the step of size s, bit s of row and column are exchanged.
        step = 1
        while step < count:
            lower = [j if not j & step else j - step + count for j in range(count)]
            upper = [j + step if not j & step else j + count for j in range(count)]
            swapped = list(rows)
            for r in range(count):
                if not r & step:
                    pair = rows[r], rows[r + step]
                    for at, mask in ((r, lower), (r + step, upper)):
                        order = ir.Constant(ir.VectorType(_I32, count), [_I32(m) for m in mask])
                        swapped[at] = builder.shuffle_vector(*pair, order)
            rows = swapped
            step *= 2
        for r in range(count):
            builder.store(rows[r], row(target, target_row, r), align=aligned)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(alpha, i64, i64, i64, i64), codegen


@intrinsic
def _copy_register(typingctx: Any, target: Any, source: Any) -> Any:
    """Copy one register as it is."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target, source = (pointer(builder, address) for address in args)
        register = ir.VectorType(_I32, WORDS)
        builder.store(builder.load(source, typ=register, align=4), target, align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@inner
def workspace(address):
    """Lay out the workspace in `WORKSPACE_BYTES` at `address`.

    Zeros in the square, because what stands behind the last column is multiplied too (and thrown
    away): arbitrary bytes can be denormal numbers, which some CPUs multiply a hundred times slower.
    """
    square = address + windows_bytes(MOST_UNITS)
    clear_bytes(square, _SQUARE_BYTES)
    return Workspace(windows(address, MOST_UNITS), square)


@inlined
def _pack_dense(panel, pitch, b, k0, depth, j0, registers):
    """Pack rows of whole registers, all columns of which are kept."""
    for k in range(depth):
        source = b.address + offset(b.rows, k0 + k) + offset(b.cols, j0)
        for register in range(registers):
            at = register * MACHINE.vector_bytes
            _copy_register(panel + k * pitch + at, source + at)


@inlined
def _pack_along_columns(alpha, panel, pitch, b, k0, depth, j0, columns, work):
    """Pack rows, where the columns of B are dense in memory."""
    table = work.table
    registers = find_gather(alpha, b.cols, j0, j0 + columns, table)
    for k in range(0, depth, ROWS):
        rows = min(ROWS, depth - k)
        note_sources(table, b.address, b.rows, k0 + k, rows)
        for register in range(registers):
            at = panel + k * pitch + register * MACHINE.vector_bytes
            move(alpha, at, pitch, rows, b.cols, table, register)


@inlined
def _pack_along_depth(alpha, panel, pitch, b, k0, depth, j0, columns, work):
    """Pack squares, each transposed in registers, where the depth of B is dense in memory."""
    size = bytes_of(alpha)
    wide = lanes(alpha)
    table = work.table
    for k in range(0, depth, MOST_UNITS):
        deep = min(MOST_UNITS, depth - k)
        registers = find_gather(alpha, b.rows, k0 + k, k0 + k + deep, table)
        for j in range(0, columns, wide):
            rows = min(wide, columns - j)
            note_sources(table, b.address, b.cols, j0 + j, rows)
            for register in range(registers):
                move(alpha, work.square, MACHINE.vector_bytes, rows, b.rows, table, register)
                at = panel + (k + register * wide) * pitch + j * size
                _transpose_square(alpha, at, pitch, work.square, MACHINE.vector_bytes)


@inlined
def _pack_scalar(alpha, panel, pitch, b, k0, depth, j0, columns):
    """Pack element by element: any strides, any size."""
    size = bytes_of(alpha)
    end = align(columns * size, MACHINE.vector_bytes)
    for k in range(depth):
        source = b.address + offset(b.rows, k0 + k)
        for j in range(columns):
            store(panel + k * pitch + j * size, load(alpha, source + offset(b.cols, j0 + j)))
        clear_bytes(panel + k * pitch + columns * size, end - columns * size)


@inner
def pack(alpha, panel, pitch, b, k0, depth, j0, columns, work):
    """Pack depth [k0, k0 + depth) and columns [j0, j0 + columns) of `b`.

    The panel's rows are `pitch` bytes: whole registers, or less than one, of which each row then
    overwrites what the one before it held too much. `lanes` rows behind the panel, and a register,
    may be overwritten.
    """
    size = bytes_of(alpha)
    wide = lanes(alpha)
    if b.cols.stride == size and b.cols.indices == 0 and columns % wide == 0:
        _pack_dense(panel, pitch, b, k0, depth, j0, columns // wide)
    elif b.cols.stride == size:
        _pack_along_columns(alpha, panel, pitch, b, k0, depth, j0, columns, work)
    elif b.rows.stride == size:
        _pack_along_depth(alpha, panel, pitch, b, k0, depth, j0, columns, work)
    else:
        _pack_scalar(alpha, panel, pitch, b, k0, depth, j0, columns)


@inlined
def pack_piece(alpha, panel, pitch, b, k0, depth, j0, columns, by_columns, work):
    """Pack what `pack` does, or the same column by column, of any depth, for `dot_tile`."""
    if by_columns:
        b = Matrix(b.address, b.cols, b.rows)
        k0, depth, j0, columns = j0, columns, k0, depth
    most = WIDEST * lanes(alpha)
    for j in range(0, columns, most):
        pack(
            alpha, panel + j * bytes_of(alpha), pitch, b, k0, depth, j0 + j,
            min(most, columns - j), work,
        )  # fmt: skip
