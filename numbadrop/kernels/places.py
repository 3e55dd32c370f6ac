"""Tables of where the rows of a register tile begin, which are written anew for each tile.

All of `MACHINE.tile_rows` entries are written at once, however many rows the tile has: a loop over
them takes as long as a tenth of the sums of a small tile.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numbadrop.kernels.elements import MACHINE
from numbadrop.kernels.memory import pointer

__all__ = ["PLACES_BYTES", "list_places", "shift_places"]

PLACES_BYTES = 8 * MACHINE.tile_rows
"""What a table takes, and what is written from any of its entries on."""
_I64 = ir.IntType(64)
_TABLE = ir.VectorType(_I64, MACHINE.tile_rows)


def _spread(builder: Any, number: Any) -> Any:
    """Return a table of one number."""
    single = builder.insert_element(ir.Constant(_TABLE, ir.Undefined), number, ir.IntType(32)(0))
    first = ir.Constant(ir.VectorType(ir.IntType(32), MACHINE.tile_rows), None)
    return builder.shuffle_vector(single, single, first)


@intrinsic
def list_places(typingctx: Any, table: Any, first: Any, pitch: Any) -> Any:
    """Write down rows that begin at `first`, `pitch` bytes apart."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        table, first, pitch = args
        steps = ir.Constant(_TABLE, list(range(MACHINE.tile_rows)))
        behind = builder.mul(_spread(builder, pitch), steps)
        places = builder.add(_spread(builder, first), behind)
        builder.store(places, pointer(builder, table), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def shift_places(typingctx: Any, table: Any, source: Any, offset: Any) -> Any:
    """Write down the rows of another table, `offset` bytes further on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        table, source, offset = args
        places = builder.load(pointer(builder, source), typ=_TABLE, align=8)
        places = builder.add(places, _spread(builder, offset))
        builder.store(places, pointer(builder, table), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen
