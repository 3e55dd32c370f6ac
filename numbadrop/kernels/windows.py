"""Moving units a register at a time: gathering kept units, and spreading them again.

Where units lie side by side in memory, a register of them is put together from *windows*: a window
is one full register of consecutive elements, and a permute under a mask brings those that are
wanted to their lanes. To gather, windows are found greedily among the kept units: contiguous units
move whole registers, half of the units take two or three windows, and units far from each other
one window each, the price of a scalar copy. To spread, one window of the dense units is enough for
a register. What says where words go is found once and used for many rows.

Windows stay inside their axis: elements that are not wanted may share a window with those that
are, but nothing outside the array is touched. An axis that is shorter than a register is one
window, read under a mask or word by word.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numbadrop.kernels.elements import MACHINE, bytes_of, itemsize, lanes, vector_type
from numbadrop.kernels.jit import inlined, inner
from numbadrop.kernels.memory import (
    call_case,
    few_turns,
    first_lanes,
    load_index,
    masked_load,
    masked_store,
    pointer,
    spread,
    store,
)

__all__ = [
    "ROWS", "WORDS", "Axis", "Windows", "add_spread", "find_gather", "find_spread", "move",
    "note_sources", "offset", "unit", "windows", "windows_bytes", "write_spread",
]  # fmt: skip

WORDS = MACHINE.vector_bytes // 4
"""Registers are permuted by 32-bit words: float64 is a pair of words, not a second kernel."""
ROWS = 16
"""Rows that are moved at a time: the cache lines that their windows share must stay in L1, and no
register has more lanes."""
assert max(WORDS, MACHINE.tile_rows) <= ROWS
_GATHERED = 5
"""Words that say which units of an axis were gathered last."""
_MOST_WINDOWS = 4
"""Windows that are read at a time: their orders, and the words, share the register file."""
_FARTHEST = 1 << 29
"""Units that words are picked from at a time, so that their numbers are no longer than 32 bits."""
_I32, _I64 = ir.IntType(32), ir.IntType(64)


class Axis(NamedTuple):
    """Where the units of one axis lie."""

    stride: int
    """Bytes from one unit of the full axis to the next."""
    size: int
    """Units on the full axis."""
    indices: int
    """Address of the kept units, ascending int64, or 0 where all are kept."""


class Windows(NamedTuple):
    """Addresses of what says how registers are put together, private to a thread.

    They are numbers, not arrays: to hand an array to a function that is not inlined costs two
    atomic operations, and five of them cost more than what the function does.
    """

    firsts: int
    """int64, one more than registers: the first window of each register."""
    starts: int
    """int64, one a window: the byte offset at which it begins."""
    before: int
    """int64, one a window: the last 32-bit word of the register that earlier windows fill."""
    kept: int
    """The same memory, for spreading: a bit for each lane that gets a unit."""
    positions: int
    """int32, a register a window: which word of the window goes to each word."""
    sources: int
    """int64, `ROWS` of them: the addresses of the rows to move."""
    gathered: int
    """int64: the axis whose units were gathered last, and which; the last of them is 0 if none."""


@inner
def windows_bytes(most):
    """Return the size of the memory for up to `most` windows."""
    return 8 * (3 * most + 1 + ROWS + _GATHERED) + most * MACHINE.vector_bytes


@inner
def windows(address, most):
    """Lay out the tables for up to `most` windows at `address`."""
    starts = address + 8 * (most + 1)
    before = starts + 8 * most
    sources = before + 8 * most
    gathered = sources + 8 * ROWS
    _forget(gathered)
    return Windows(address, starts, before, before, gathered + 8 * _GATHERED, sources, gathered)


@inner
def _forget(gathered):
    store(gathered + 8 * (_GATHERED - 1), 0)


@inner
def _note(gathered, axis, first, last):
    """Note which units are gathered; return whether they were the last time, too."""
    known = True
    for i, word in enumerate((axis.stride, axis.size, axis.indices, first, last)):
        known &= load_index(gathered, i) == word
        store(gathered + 8 * i, word)
    return known


@inner
def unit(axis, position):
    """Return which unit of the full axis the kept unit number `position` is."""
    return position if axis.indices == 0 else load_index(axis.indices, position)


@inner
def offset(axis, position):
    """Return the byte offset of the kept unit number `position`."""
    return unit(axis, position) * axis.stride


def _element(builder: ir.IRBuilder, array: Any, index: Any, kind: Any, align: int) -> Any:
    """Load one element of the array at a pointer."""
    at = builder.gep(array, [index], source_etype=kind)
    return builder.load(at, typ=kind, align=align)


def _reordered(builder: ir.IRBuilder, register: Any, order: Any) -> Any:
    """Permute the words of a register."""
    floats = ir.VectorType(ir.FloatType(), WORDS)
    permute = builder.module.declare_intrinsic(
        MACHINE.permute, (), ir.FunctionType(floats, [floats, order.type])
    )
    return builder.call(permute, [builder.bitcast(register, floats), order])


def _permuted(builder: ir.IRBuilder, window: Any, order: Any) -> Any:
    """Load the words of a window in another order."""
    floats = ir.VectorType(ir.FloatType(), WORDS)
    if MACHINE.permute is not None:
        return _reordered(builder, builder.load(window, typ=floats, align=4), order)
    moved: Any = ir.Constant(floats, ir.Undefined)
    for lane in range(WORDS):
        position = builder.sext(builder.extract_element(order, _I32(lane)), _I64)
        value = _element(builder, window, position, ir.FloatType(), 4)
        moved = builder.insert_element(moved, value, _I32(lane))
    return moved


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
    words, floats = ir.VectorType(_I32, WORDS), ir.VectorType(ir.FloatType(), WORDS)
    lanes = ir.Constant(words, [_I32(word) for word in range(WORDS)])
    builder = ir.IRBuilder(function.append_basic_block("entry"))

    start, order, mask = [], [], []
    for w in map(_I64, range(windows)):
        start.append(_element(builder, starts, w, _I64, 8))
        order.append(_element(builder, positions, w, words, 4))
        last = builder.trunc(_element(builder, before, w, _I64, 8), _I32)
        mask.append(builder.icmp_signed(">", lanes, spread(builder, last, WORDS)))
    with few_turns(builder, rows) as row:
        source = _element(builder, sources, row, _I64, 8)
        place = builder.gep(target, [builder.mul(row, pitch)], source_etype=ir.IntType(8))
        register = ir.Constant(floats, None) if fresh else builder.load(place, typ=floats, align=4)
        for w in range(windows):
            window = pointer(builder, builder.add(source, start[w]))
            register = builder.select(mask[w], _permuted(builder, window, order[w]), register)
        builder.store(register, place, align=4)
    builder.ret_void()
    return function


@intrinsic
def _move_registers(
    typingctx: Any, windows: Any, fresh: Any, target: Any, pitch: Any, sources: Any, rows: Any,
    starts: Any, before: Any, positions: Any,
) -> Any:  # fmt: skip
    """Write one register a row, `pitch` bytes apart, of words that lie in `windows` windows.

    All but the first two are addresses or numbers as `Windows` and `_mover` have them. There are 1
    to `_MOST_WINDOWS` windows.
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
def _move_narrow(
    typingctx: Any, alpha: Any, target: Any, pitch: Any, sources: Any, rows: Any, length: Any,
    positions: Any,
) -> Any:  # fmt: skip
    """Write one register a row of elements from the first `length`, less than a register."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, target, pitch, sources, rows, length, positions = args
        vector, align = vector_type(alpha), itemsize(alpha)
        order = builder.load(pointer(builder, positions), typ=ir.VectorType(_I32, WORDS), align=4)
        mask = first_lanes(builder, vector.count, length)
        with few_turns(builder, rows) as row:
            source = pointer(builder, _element(builder, pointer(builder, sources), row, _I64, 8))
            if MACHINE.permute is None:
                moved = _permuted(builder, source, order)
            else:
                window = masked_load(builder, source, mask, vector, align)
                moved = _reordered(builder, window, order)
            place = builder.add(target, builder.mul(row, pitch))
            builder.store(moved, pointer(builder, place), align=4)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(alpha, i64, i64, i64, i64, i64, i64), codegen


@inner
def find_gather(alpha, axis, first, last, table):
    """Find windows that bring the kept units [first, last) of an axis side by side.

    Return how many registers they fill. No more windows are needed than there are units. Lanes
    behind the last unit get that unit again. Units that do not ascend are right, too, but share no
    window. Those that were gathered last need not be found again.
    """
    wide = lanes(alpha)
    per_unit = WORDS // wide
    # Where words are picked one by one, it hardly matters how far apart they are.
    reach = min(axis.size, _FARTHEST) if MACHINE.permute is None else wide
    registers = (last - first + wide - 1) // wide
    if _note(table.gathered, axis, first, last):
        return registers
    window = 0
    for register in range(registers):
        store(table.firsts + register * 8, window)
        begin = first + register * wide
        end = min(begin + wide, last)
        at = begin
        while at < end:
            start = max(0, min(unit(axis, at), axis.size - wide))
            word = (at - begin) * per_unit
            store(table.starts + window * 8, start * axis.stride)
            store(table.before + window * 8, word - 1)
            row = table.positions + window * MACHINE.vector_bytes
            for unused in range(word):
                store(row + unused * 4, np.int32(0))
            while at < end and start <= unit(axis, at) < start + reach:
                for half in range(per_unit):
                    position = (unit(axis, at) - start) * per_unit + half
                    store(row + word * 4, np.int32(position))
                    word += 1
                at += 1
            # What is left over gets the last kept unit again: it is multiplied too (and thrown
            # away), and half of some double may be a denormal number, a hundred times slower.
            last_position = (unit(axis, at - 1) - start) * per_unit
            for unused in range(word, WORDS):
                store(row + unused * 4, np.int32(last_position + unused % per_unit))
            window += 1
    store(table.firsts + registers * 8, window)
    return registers


@inner
def find_spread(alpha, axis, first, last, length, lead, table):
    """Find windows that bring the kept units [first, last) of an axis back to where they were.

    They lie side by side in an array of `length` elements, at least a register. Return how many
    registers they fill, with one window each. In the first, `lead` lanes come before the first of
    them.
    """
    _forget(table.gathered)
    wide = lanes(alpha)
    per_unit = WORDS // wide
    base = unit(axis, first) - lead
    registers = (unit(axis, last - 1) - base) // wide + 1
    at = first
    for register in range(registers):
        start = min(at - first, length - wide)
        store(table.starts + register * 8, start * bytes_of(alpha))
        row = table.positions + register * MACHINE.vector_bytes
        for word in range(WORDS):
            store(row + word * 4, np.int32(0))
        kept = 0
        while at < last and unit(axis, at) - base < (register + 1) * wide:
            lane = unit(axis, at) - base - register * wide
            kept |= 1 << lane
            for half in range(per_unit):
                position = (at - first - start) * per_unit + half
                store(row + (lane * per_unit + half) * 4, np.int32(position))
            at += 1
        store(table.kept + register * 8, kept)
    return registers


@intrinsic
def _write_spread(
    typingctx: Any, target: Any, source: Any, registers: Any, starts: Any, positions: Any
) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target, source, registers, starts, positions = args
        words = ir.VectorType(_I32, WORDS)
        with few_turns(builder, registers) as number:
            start = _element(builder, pointer(builder, starts), number, _I64, 8)
            order = _element(builder, pointer(builder, positions), number, words, 4)
            moved = _permuted(builder, pointer(builder, builder.add(source, start)), order)
            place = builder.gep(pointer(builder, target), [number], source_etype=moved.type)
            builder.store(moved, place, align=4)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(i64, i64, i64, i64, i64), codegen


@intrinsic
def _add_spread(
    typingctx: Any, alpha: Any, targets: Any, start: Any, rows: Any, source: Any, pitch: Any,
    order: Any, kept: Any,
) -> Any:  # fmt: skip
    """Add one register a row; `order` is the address of its positions, `kept` its mask."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, targets, start, rows, source, pitch, order, kept = args
        vector, align = vector_type(alpha), itemsize(alpha)
        bits = ir.VectorType(ir.IntType(1), vector.count)
        order = builder.load(pointer(builder, order), typ=ir.VectorType(_I32, WORDS), align=4)
        mask = builder.bitcast(builder.trunc(kept, ir.IntType(vector.count)), bits)
        with few_turns(builder, rows) as row:
            values = pointer(builder, builder.add(source, builder.mul(row, pitch)))
            moved = builder.bitcast(_permuted(builder, values, order), vector)
            target = _element(builder, pointer(builder, targets), row, _I64, 8)
            place = pointer(builder, builder.add(target, start))
            old = masked_load(builder, place, mask, vector, align)
            masked_store(builder, builder.fadd(old, moved), place, mask, align)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(alpha, i64, i64, i64, i64, i64, i64, i64), codegen


@inner
def write_spread(target, source, registers, table):
    """Write the units at `source` to where they were; lanes of other units get anything."""
    _write_spread(target, source, registers, table.starts, table.positions)


@inner
def add_spread(alpha, start, rows, source, pitch, registers, table):
    """Add rows of units to where they were; nothing else is read or written.

    `start` bytes behind each of the rows that `note_sources` has noted the first register begins.
    """
    for register in range(registers):
        _add_spread(
            alpha,
            table.sources,
            start + register * MACHINE.vector_bytes,
            rows,
            source + load_index(table.starts, register),
            pitch,
            table.positions + register * MACHINE.vector_bytes,
            load_index(table.kept, register),
        )


@inner
def note_sources(table, address, axis, first, rows):
    """Note where so many rows of memory begin, which belong to kept units of an axis."""
    for i in range(rows):
        store(table.sources + i * 8, address + offset(axis, first + i))


@inlined
def move(alpha, target, pitch, rows, axis, table, register):
    """Move the kept units of one register of an axis from `rows` sources to where they are dense.

    Rows are written one after another: where they overlap, of up to four windows, the later one
    stays.
    """
    if axis.size < lanes(alpha):
        order = table.positions + register * MACHINE.vector_bytes
        _move_narrow(alpha, target, pitch, table.sources, rows, axis.size, order)
        return
    begin, end = load_index(table.firsts, register), load_index(table.firsts, register + 1)
    for first in range(begin, end, _MOST_WINDOWS):
        _move_registers(
            min(_MOST_WINDOWS, end - first),
            first == begin,
            target,
            pitch,
            table.sources,
            rows,
            table.starts + first * 8,
            table.before + first * 8,
            table.positions + first * MACHINE.vector_bytes,
        )
