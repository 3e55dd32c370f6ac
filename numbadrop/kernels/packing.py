"""Packing: the only code that sees how a matrix lies in memory, and where the gather happens.

A panel is a depth block of B, `width` columns wide, one row after the other, so that the register
tile reads it front to back. Element (k, j) comes from ``address + depth[k] + column[j]``: two
vectors of byte offsets say everything about strides, transposition and dropped units.

Where one of the two axes is dense in memory (its stride is one element), kept units are moved a
register at a time: a *window* is one full register of consecutive elements of which some are kept;
a permute brings those to the front and a full store writes them, and the next window overwrites
what is left behind them. Windows are found greedily, so contiguous units move whole registers,
and units far from each other fall back to one unit a window, the price of a scalar copy. Windows
stay inside the axis: weights outside the sets may share a register with kept ones, but nothing
outside the array is touched.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numbadrop.kernels.elements import MACHINE, bytes_of, itemsize, lanes, vector_type
from numbadrop.kernels.jit import inner
from numbadrop.kernels.memory import load, load_index, pointer, store

__all__ = ["Axis", "Matrix", "offset", "pack", "unit", "workspace"]

_WORDS = MACHINE.vector_bytes // 4
"""Registers are permuted by 32-bit words: float64 is a pair of words, not a second kernel."""
_CHUNK = 64
"""Depth that is transposed at a time: the strip of a panel must fit L1."""
_I32 = ir.IntType(32)


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
    """What packing needs beside the panel, private to a thread."""

    starts: Any
    """int64, shape (w,): the byte offset at which window w begins."""
    targets: Any
    """int64, shape (w,): the byte offset that its first kept unit is written to."""
    positions: Any
    """int32, shape (w, words of a register): the order in which its words are written."""
    strip: Any
    """The columns of a panel, for a part of its depth, on their way to being transposed."""


@inner
def unit(axis, position):
    """Return which unit of the full axis the kept unit number `position` is."""
    return position if axis.indices == 0 else load_index(axis.indices, position)


@inner
def offset(axis, position):
    """Return the byte offset of the kept unit number `position`."""
    return unit(axis, position) * axis.stride


@intrinsic
def _move_window(typingctx: Any, alpha: Any, target: Any, source: Any, positions: Any) -> Any:
    """Write to `target` the register at `source`, its words permuted by the int32 `positions`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, target, source, positions = args
        words = ir.VectorType(_I32, _WORDS)
        floats = ir.VectorType(ir.FloatType(), _WORDS)
        wanted = builder.load(pointer(builder, positions), typ=words, align=4)
        if MACHINE.permute is None:
            moved = ir.Constant(words, ir.Undefined)
            for lane in range(_WORDS):
                at = builder.zext(builder.extract_element(wanted, _I32(lane)), ir.IntType(64))
                word = builder.gep(pointer(builder, source), [at], source_etype=_I32)
                value = builder.load(word, typ=_I32, align=4)
                moved = builder.insert_element(moved, value, _I32(lane))
        else:
            permute = builder.module.declare_intrinsic(
                MACHINE.permute, (), ir.FunctionType(floats, [floats, words])
            )
            whole = builder.load(pointer(builder, source), typ=floats, align=4)
            moved = builder.call(permute, [whole, wanted])
        builder.store(moved, pointer(builder, target), align=4)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(alpha, i64, i64, i64), codegen


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
def workspace(alpha, width):
    """Make the workspace for panels of up to `width` columns."""
    most = max(width, _CHUNK)
    return Workspace(
        np.empty(most, np.int64),
        np.empty(most, np.int64),
        np.empty((most, _WORDS), np.int32),
        # Zeros, because what stands behind the last column is multiplied too (and thrown away):
        # arbitrary bytes can be denormal numbers, which some CPUs multiply a hundred times slower.
        np.zeros(width * (_CHUNK + lanes(alpha)) * bytes_of(alpha), np.uint8),
    )


@inner
def _find_windows(alpha, axis, first, last, work):
    """Cover the kept units [first, last) by windows; return how many."""
    wide = lanes(alpha)
    per_unit = _WORDS // wide
    count = 0
    at = first
    while at < last:
        start = min(unit(axis, at), axis.size - wide)
        work.starts[count] = start * axis.stride
        work.targets[count] = (at - first) * axis.stride
        lane = 0
        while at < last and unit(axis, at) < start + wide:
            for word in range(per_unit):
                work.positions[count, lane + word] = (unit(axis, at) - start) * per_unit + word
            lane += per_unit
            at += 1
        work.positions[count, lane:] = 0
        count += 1
    return count


@inner
def _move_units(alpha, target, source, work, count):
    """Move the kept units of one row of memory to where they stand side by side."""
    table = work.positions.ctypes.data
    for w in range(count):
        _move_window(
            alpha,
            target + work.targets[w],
            source + work.starts[w],
            table + w * MACHINE.vector_bytes,
        )


@inner
def _pack_along_columns(alpha, panel, pitch, b, k0, depth, j0, columns, work):
    """Pack row by row, where the columns of B are dense in memory."""
    count = _find_windows(alpha, b.cols, j0, j0 + columns, work)
    for k in range(depth):
        source = b.address + offset(b.rows, k0 + k)
        _move_units(alpha, panel + k * pitch, source, work, count)


@inner
def _pack_along_depth(alpha, panel, pitch, b, k0, depth, j0, columns, work):
    """Pack column by column into a strip, then transpose it, where the depth of B is dense."""
    size = bytes_of(alpha)
    wide = lanes(alpha)
    strip = work.strip.ctypes.data
    strip_row = (_CHUNK + wide) * size
    for k in range(0, depth, _CHUNK):
        deep = min(_CHUNK, depth - k)
        count = _find_windows(alpha, b.rows, k0 + k, k0 + k + deep, work)
        for j in range(columns):
            source = b.address + offset(b.cols, j0 + j)
            _move_units(alpha, strip + j * strip_row, source, work, count)
        for j in range(0, columns, wide):
            for d in range(0, deep, wide):
                _transpose_square(
                    alpha,
                    panel + (k + d) * pitch + j * size,
                    pitch,
                    strip + j * strip_row + d * size,
                    strip_row,
                )


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

    The panel's rows are `pitch` bytes, whole registers. One register and `lanes` rows behind the
    panel may be overwritten.
    """
    size = bytes_of(alpha)
    if b.cols.stride == size and b.cols.size >= lanes(alpha):
        _pack_along_columns(alpha, panel, pitch, b, k0, depth, j0, columns, work)
    elif b.rows.stride == size and b.rows.size >= lanes(alpha):
        _pack_along_depth(alpha, panel, pitch, b, k0, depth, j0, columns, work)
    else:
        _pack_scalar(alpha, panel, pitch, b, k0, depth, j0, columns)
