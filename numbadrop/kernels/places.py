"""Tables of where rows begin.

Those of a register tile are written anew for each, `PLACES` entries at once, however many rows it
has: a loop over them takes as long as a tenth of the sums of a small tile.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numbadrop.kernels.elements import MACHINE
from numbadrop.kernels.jit import inner
from numbadrop.kernels.memory import pointer, spread, store

__all__ = ["PLACES", "PLACES_BYTES", "list_places", "list_rows", "list_units", "shift_places"]

PLACES = 8
"""How many entries are read or written at once, from any of a table's on."""
assert MACHINE.tile_rows <= PLACES
PLACES_BYTES = 8 * PLACES
_I64 = ir.IntType(64)
_TABLE = ir.VectorType(_I64, PLACES)


@inner
def list_rows(table, address, pitch, rows):
    """Write down where so many rows begin, `pitch` bytes apart, in a table of any length."""
    for i in range(rows):
        store(table + i * 8, address + i * pitch)


@intrinsic
def list_places(typingctx: Any, table: Any, first: Any, pitch: Any) -> Any:
    """Write down rows that begin at `first`, `pitch` bytes apart."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        table, first, pitch = args
        steps = ir.Constant(_TABLE, list(range(PLACES)))
        behind = builder.mul(spread(builder, pitch, PLACES), steps)
        places = builder.add(spread(builder, first, PLACES), behind)
        builder.store(places, pointer(builder, table), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def list_units(typingctx: Any, table: Any, address: Any, stride: Any, indices: Any) -> Any:
    """Write down where units lie that `PLACES` numbers at `indices` say, `stride` bytes apart."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        table, address, stride, indices = args
        numbers = builder.load(pointer(builder, indices), typ=_TABLE, align=8)
        behind = builder.mul(spread(builder, stride, PLACES), numbers)
        places = builder.add(spread(builder, address, PLACES), behind)
        builder.store(places, pointer(builder, table), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), codegen


@intrinsic
def shift_places(typingctx: Any, table: Any, source: Any, offset: Any) -> Any:
    """Write down the rows of another table, `offset` bytes further on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        table, source, offset = args
        places = builder.load(pointer(builder, source), typ=_TABLE, align=8)
        places = builder.add(places, spread(builder, offset, PLACES))
        builder.store(places, pointer(builder, table), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen
