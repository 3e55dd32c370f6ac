"""Packing: the only code that sees how a matrix lies in memory, and where the gather happens.

A panel is a depth block of B, `width` columns wide, one row after the other, so that the register
tile reads it front to back. Element (k, j) comes from ``address + depth[k] + column[j]``: two
vectors of byte offsets say everything about strides, transposition and dropped units.

Where one of the two axes is dense in memory (its stride is one element), kept units are moved a
register at a time. A register is put together from *windows*: a window is one full register of
consecutive elements of which some are kept, and a permute under a mask brings those to their
lanes. Windows are found greedily, so contiguous units move whole registers, half of the units
take two or three windows, and units far from each other one window each, the price of a scalar
copy. Windows stay inside the axis: weights outside the sets may share a window with kept ones,
but nothing outside the array is touched.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numbadrop.kernels.elements import MACHINE, bytes_of, itemsize, lanes, vector_type
from numbadrop.kernels.jit import inner
from numbadrop.kernels.memory import call_case, load, load_index, pointer, store

__all__ = ["WORKSPACE_BYTES", "Axis", "Matrix", "offset", "pack", "unit", "workspace"]

_WORDS = MACHINE.vector_bytes // 4
"""Registers are permuted by 32-bit words: float64 is a pair of words, not a second kernel."""
_MOST_UNITS = 64
"""Units for which windows are found at a time; no panel is wider."""
_MOST_WINDOWS = 4
"""Windows that are read at a time: their orders, and the words, share the register file."""
_ROWS = 16
"""Rows that are moved at a time: what their windows share of cache lines must stay in L1."""
WORKSPACE_BYTES = 8 * (3 * _MOST_UNITS + 1 + _ROWS) + (_MOST_UNITS + _WORDS) * MACHINE.vector_bytes
_I32, _I64 = ir.IntType(32), ir.IntType(64)


class Axis(NamedTuple):
    """Where the units of one axis lie."""

    stride: int
    """Bytes from one unit of the full axis to the next."""
    size: int
    """Units on the full axis."""
    indices: int
    """Address of the kept units, ascending int64, or 0 where all are kept."""


class Matrix(NamedTuple):
    """An operand of a product: data and two axes."""

    address: int
    rows: Axis
    cols: Axis


class Workspace(NamedTuple):
    """Addresses of what packing needs beside the panel, private to a thread.

    They are numbers, not arrays: to hand an array to a function that is not inlined costs two
    atomic operations, and six of them cost more than what the function does.
    """

    firsts: int
    """int64, one more than registers: the first window of each register."""
    starts: int
    """int64, one a window: the byte offset at which it begins."""
    before: int
    """int64, one a window: the last 32-bit word of the register that earlier windows fill."""
    positions: int
    """int32, a register a window: which word of the window goes to each word."""
    sources: int
    """int64: the addresses of rows of memory."""
    square: int
    """Registers on their way to being transposed."""


@inner
def unit(axis, position):
    """Return which unit of the full axis the kept unit number `position` is."""
    return position if axis.indices == 0 else load_index(axis.indices, position)


@inner
def offset(axis, position):
    """Return the byte offset of the kept unit number `position`."""
    return unit(axis, position) * axis.stride


def _mover(module: ir.Module, windows: int, fresh: bool) -> ir.Function:
    """Define, once in a module, how one register a row is put together from so many windows.

    What says where the words go is loaded once and stays in registers for all rows. A register
    that is not `fresh` keeps what earlier windows have brought.
    """
    name = f"numbadrop_move_{windows}_{'fresh' if fresh else 'more'}"
    if name in module.globals:
        return module.globals[name]
    address = ir.PointerType()
    function = ir.Function(
        module,
        ir.FunctionType(ir.VoidType(), [address, _I64, address, _I64, address, address, address]),
        name,
    )
    function.linkage = "internal"
    function.attributes.add("noinline")
    target, pitch, sources, rows, starts, before, positions = function.args
    words, floats = ir.VectorType(_I32, _WORDS), ir.VectorType(ir.FloatType(), _WORDS)
    lanes = ir.Constant(words, [_I32(word) for word in range(_WORDS)])
    entry = ir.IRBuilder(function.append_basic_block("entry"))
    loop = ir.IRBuilder(function.append_basic_block("row"))
    leave = ir.IRBuilder(function.append_basic_block("leave"))

    def element(builder: ir.IRBuilder, array: Any, index: Any, kind: Any, align: int) -> Any:
        at = builder.gep(array, [index], source_etype=kind)
        return builder.load(at, typ=kind, align=align)

    def permuted(window: Any, order: Any) -> Any:
        if MACHINE.permute is not None:
            permute = module.declare_intrinsic(
                MACHINE.permute, (), ir.FunctionType(floats, [floats, words])
            )
            return loop.call(permute, [loop.load(window, typ=floats, align=4), order])
        moved: Any = ir.Constant(floats, ir.Undefined)
        for lane in range(_WORDS):
            position = loop.sext(loop.extract_element(order, _I32(lane)), _I64)
            value = element(loop, window, position, ir.FloatType(), 4)
            moved = loop.insert_element(moved, value, _I32(lane))
        return moved

    start, order, mask = [], [], []
    for w in map(_I64, range(windows)):
        start.append(element(entry, starts, w, _I64, 8))
        order.append(element(entry, positions, w, words, 4))
        last = entry.trunc(element(entry, before, w, _I64, 8), _I32)
        single = entry.insert_element(ir.Constant(words, ir.Undefined), last, _I32(0))
        spread = entry.shuffle_vector(single, single, ir.Constant(words, None))
        mask.append(entry.icmp_signed(">", lanes, spread))
    entry.branch(loop.block)

    row = loop.phi(_I64)
    row.add_incoming(_I64(0), entry.block)
    source = element(loop, sources, row, _I64, 8)
    place = loop.gep(target, [loop.mul(row, pitch)], source_etype=ir.IntType(8))
    register = ir.Constant(floats, None) if fresh else loop.load(place, typ=floats, align=4)
    for w in range(windows):
        window = pointer(loop, loop.add(source, start[w]))
        register = loop.select(mask[w], permuted(window, order[w]), register)
    loop.store(register, place, align=4)
    following = loop.add(row, _I64(1))
    row.add_incoming(following, loop.block)
    loop.cbranch(loop.icmp_signed("<", following, rows), loop.block, leave.block)
    leave.ret_void()
    return function


@intrinsic
def _move_registers(
    typingctx: Any, windows: Any, fresh: Any, target: Any, pitch: Any, sources: Any, rows: Any,
    starts: Any, before: Any, positions: Any,
) -> Any:  # fmt: skip
    """Write one register a row, `pitch` bytes apart, of words that lie in `windows` windows.

    All but the first two are addresses or numbers as `Workspace` and `_mover` have them. There is
    at least one row, and there are 1 to `_MOST_WINDOWS` windows.
    """
    i64 = types.int64

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        windows, fresh, target, pitch, sources, rows, *tables = args
        arguments = [pointer(builder, target), pitch, pointer(builder, sources), rows]
        arguments += [pointer(builder, table) for table in tables]
        cases = {
            2 * number + begins: _mover(builder.module, number, bool(begins))
            for number in range(1, _MOST_WINDOWS + 1)
            for begins in (0, 1)
        }
        number = builder.add(builder.mul(windows, _I64(2)), builder.zext(fresh, _I64))
        call_case(builder, number, cases, arguments)
        return context.get_dummy_value()

    return types.void(i64, types.boolean, i64, i64, i64, i64, i64, i64, i64), codegen


@intrinsic
def _transpose_square(
    typingctx: Any, alpha: Any, target: Any, target_row: Any, source: Any, source_row: Any
) -> Any:
    """Transpose a square of as many rows as a register has lanes, in registers."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, target, target_row, source, source_row = args
        vector, align = vector_type(alpha), itemsize(alpha)
        count = vector.count

        def row(base: Any, stride: Any, number: int) -> Any:
            return pointer(builder, builder.add(base, builder.mul(stride, stride.type(number))))

        rows = [
            builder.load(row(source, source_row, r), typ=vector, align=align) for r in range(count)
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
            builder.store(rows[r], row(target, target_row, r), align=align)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(alpha, i64, i64, i64, i64), codegen


@inner
def workspace(address):
    """Lay out the workspace in `WORKSPACE_BYTES` at `address`, which are zero."""
    starts = address + (_MOST_UNITS + 1) * 8
    before = starts + _MOST_UNITS * 8
    sources = before + _MOST_UNITS * 8
    positions = sources + _ROWS * 8
    square = positions + _MOST_UNITS * MACHINE.vector_bytes
    return Workspace(address, starts, before, positions, sources, square)


@inner
def _find_windows(alpha, axis, first, last, work):
    """Cover the kept units [first, last) by windows; return how many registers they fill."""
    wide = lanes(alpha)
    per_unit = _WORDS // wide
    # Where words are picked one by one, it does not matter how far apart they are.
    reach = axis.size if MACHINE.permute is None else wide
    registers = (last - first + wide - 1) // wide
    window = 0
    for register in range(registers):
        store(work.firsts + register * 8, window)
        begin = first + register * wide
        end = min(begin + wide, last)
        at = begin
        while at < end:
            start = min(unit(axis, at), axis.size - wide)
            word = (at - begin) * per_unit
            store(work.starts + window * 8, start * axis.stride)
            store(work.before + window * 8, word - 1)
            row = work.positions + window * MACHINE.vector_bytes
            for unused in range(word):
                store(row + unused * 4, np.int32(0))
            while at < end and unit(axis, at) < start + reach:
                for half in range(per_unit):
                    position = (unit(axis, at) - start) * per_unit + half
                    store(row + word * 4, np.int32(position))
                    word += 1
                at += 1
            for unused in range(word, _WORDS):
                store(row + unused * 4, np.int32(0))
            window += 1
    store(work.firsts + registers * 8, window)
    return registers


@inner
def _find_sources(address, axis, first, rows, work):
    """Note where so many rows of memory begin, which belong to kept units of an axis."""
    for i in range(rows):
        store(work.sources + i * 8, address + offset(axis, first + i))


@inner
def _move(target, pitch, rows, work, register):
    """Move the kept units of one register from `rows` sources to where they are dense."""
    begin, end = load_index(work.firsts, register), load_index(work.firsts, register + 1)
    for first in range(begin, end, _MOST_WINDOWS):
        _move_registers(
            min(_MOST_WINDOWS, end - first),
            first == begin,
            target,
            pitch,
            work.sources,
            rows,
            work.starts + first * 8,
            work.before + first * 8,
            work.positions + first * MACHINE.vector_bytes,
        )


@inner
def _pack_along_columns(alpha, panel, pitch, b, k0, depth, j0, columns, work):
    """Pack rows, where the columns of B are dense in memory."""
    registers = _find_windows(alpha, b.cols, j0, j0 + columns, work)
    for k in range(0, depth, _ROWS):
        rows = min(_ROWS, depth - k)
        _find_sources(b.address, b.rows, k0 + k, rows, work)
        for register in range(registers):
            at = panel + k * pitch + register * MACHINE.vector_bytes
            _move(at, pitch, rows, work, register)


@inner
def _pack_along_depth(alpha, panel, pitch, b, k0, depth, j0, columns, work):
    """Pack squares, each transposed in registers, where the depth of B is dense in memory."""
    size = bytes_of(alpha)
    wide = lanes(alpha)
    for k in range(0, depth, _MOST_UNITS):
        deep = min(_MOST_UNITS, depth - k)
        registers = _find_windows(alpha, b.rows, k0 + k, k0 + k + deep, work)
        for j in range(0, columns, wide):
            rows = min(wide, columns - j)
            _find_sources(b.address, b.cols, j0 + j, rows, work)
            for register in range(registers):
                _move(work.square, MACHINE.vector_bytes, rows, work, register)
                at = panel + (k + register * wide) * pitch + j * size
                _transpose_square(alpha, at, pitch, work.square, MACHINE.vector_bytes)


@inner
def _pack_scalar(alpha, panel, pitch, b, k0, depth, j0, columns):
    """Pack element by element: any strides, any size."""
    size = bytes_of(alpha)
    for k in range(depth):
        source = b.address + offset(b.rows, k0 + k)
        for j in range(columns):
            store(panel + k * pitch + j * size, load(alpha, source + offset(b.cols, j0 + j)))
        for behind in range(columns * size, pitch, size):
            store(panel + k * pitch + behind, alpha * 0)


@inner
def pack(alpha, panel, pitch, b, k0, depth, j0, columns, work):
    """Pack depth [k0, k0 + depth) and columns [j0, j0 + columns) of `b`.

    The panel's rows are `pitch` bytes, whole registers. `lanes` rows behind the panel may be
    overwritten.
    """
    size = bytes_of(alpha)
    if b.cols.stride == size and b.cols.size >= lanes(alpha):
        _pack_along_columns(alpha, panel, pitch, b, k0, depth, j0, columns, work)
    elif b.rows.stride == size and b.rows.size >= lanes(alpha):
        _pack_along_depth(alpha, panel, pitch, b, k0, depth, j0, columns, work)
    else:
        _pack_scalar(alpha, panel, pitch, b, k0, depth, j0, columns)
