"""Tables of where rows begin.

Those of a register tile are written anew for each, all `MACHINE.tile_rows` entries at once, however
many rows it has: a loop over them takes as long as a tenth of the sums of a small tile.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numbadrop.kernels.elements import MACHINE
from numbadrop.kernels.jit import inner
from numbadrop.kernels.memory import pointer, spread, store

__all__ = ["PLACES_BYTES", "list_places", "list_rows", "shift_places"]

PLACES_BYTES = 8 * MACHINE.tile_rows
"""What a table takes, and what is written from any of its entries on."""
_I64 = ir.IntType(64)
_TABLE = ir.VectorType(_I64, MACHINE.tile_rows)


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
        steps = ir.Constant(_TABLE, list(range(MACHINE.tile_rows)))
        behind = builder.mul(spread(builder, pitch, MACHINE.tile_rows), steps)
        places = builder.add(spread(builder, first, MACHINE.tile_rows), behind)
        builder.store(places, pointer(builder, table), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def shift_places(typingctx: Any, table: Any, source: Any, offset: Any) -> Any:
    """Write down the rows of another table, `offset` bytes further on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        table, source, offset = args
        places = builder.load(pointer(builder, source), typ=_TABLE, align=8)
        places = builder.add(places, spread(builder, offset, MACHINE.tile_rows))
        builder.store(places, pointer(builder, table), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen
