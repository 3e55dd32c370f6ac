"""The tile of few columns, which a register of columns would leave mostly empty.

``c[r, j] = (c[r, j] if accumulate else 0) + sum_k a[r, k] b[j, k]`` for a few rows r and columns j,
with a register of partial sums for each of them, whose lanes are elements of the depth. A is read
where it lies, dense along its depth, and B is packed a column after the other. Rows of A and C may
lie anywhere, and so may runs of the depth of A, as for the `register_tile`.

Every number of columns, from 1 to `most_columns`, is a function of its own, of the height that
fills the registers: what has fewer rows computes its last one again, and does not write it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from numbadrop.kernels.elements import MACHINE, bytes_of, itemsize, lanes, vector_type
from numbadrop.kernels.jit import inlined
from numbadrop.kernels.memory import align, call_case, few_turns, first_lanes, masked_load, pointer

__all__ = ["dot_bytes", "dot_pitch", "dot_rows", "dot_tile", "dots_pay", "most_columns"]

_MOST_COLUMNS = 4
"""Of the tile, where registers are short."""
_LEAST_REGISTERS = 2
"""Of depth: to add up the lanes of sums, at the end, takes as long as some of them. Each column
beyond four wants as many more."""
_I64 = ir.IntType(64)
_POINTER = ir.PointerType()


@inlined
def most_columns(wide):
    """Return how many columns the tile has at most, of registers of so many lanes.

    More of them fill a register of columns better.
    """
    return max(_MOST_COLUMNS, wide // 2)


@inlined
def dots_pay(alpha, depth, columns):
    """Whether so few columns are computed in less time than by the register tile."""
    wide = lanes(alpha)
    registers = _LEAST_REGISTERS * max(1, columns - 3)
    return columns <= most_columns(wide) and depth >= registers * wide


@inlined
def dot_rows(columns):
    """Return the height of the tile of so many columns.

    All sums, and a register of each row and column, fit the register file together.
    """
    return min(MACHINE.tile_rows, (MACHINE.registers - 1 - columns) // (columns + 1))


@inlined
def dot_pitch(alpha, depth):
    """Return the bytes from one packed column to the next."""
    return align(depth * bytes_of(alpha), MACHINE.vector_bytes)


@inlined
def dot_bytes(alpha, pitch):
    """Return the size of the memory for packed columns, and what packing may overwrite."""
    wide = lanes(alpha)
    return (most_columns(wide) + wide) * pitch + MACHINE.vector_bytes


def _dots_function(module: ir.Module, element: types.Float, columns: int) -> ir.Function:
    """Define, once in a module, the tile of so many columns."""
    name = f"numbadrop_dots_{element}_{columns}"
    if name in module.globals:
        return module.globals[name]
    signature = ir.FunctionType(
        ir.VoidType(),
        [_I64, _I64, _POINTER, _I64, _POINTER, _POINTER, _I64, _POINTER, ir.IntType(1)],
    )
    function = ir.Function(module, signature, name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    rows, runs, run_starts, depth, a_table, b, b_column, c_table, accumulate = function.args
    size, vector = itemsize(element), vector_type(element)
    high = dot_rows.py_func(columns)
    byte, scalar = ir.IntType(8), vector.element
    kind = f"v{vector.count}f{element.bitwidth}"
    fma = module.declare_intrinsic(
        f"llvm.fmuladd.{kind}", (), ir.FunctionType(vector, [vector, vector, vector])
    )
    add_up = module.declare_intrinsic(
        f"llvm.vector.reduce.fadd.{kind}", (), ir.FunctionType(scalar, [scalar, vector])
    )
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    sums = {
        (r, j): cgutils.alloca_once_value(builder, ir.Constant(vector, None))
        for r in range(high)
        for j in range(columns)
    }

    def listed(table: Any, position: Any, kind: Any) -> Any:
        return builder.load(builder.gep(table, [position], source_etype=_I64), typ=kind, align=8)

    def at(base: Any, behind: Any) -> Any:
        return builder.gep(base, [behind], source_etype=byte)

    last_row = builder.sub(rows, _I64(1))
    a_rows, c_rows = [], []
    for r in range(high):
        row = builder.select(builder.icmp_signed("<", _I64(r), rows), _I64(r), last_row)
        a_rows.append(listed(a_table, row, _POINTER))
        c_rows.append(listed(c_table, row, _POINTER))
    b_columns = [at(b, builder.mul(b_column, _I64(j))) for j in range(columns)]
    whole = builder.sdiv(depth, _I64(vector.count))
    rest = builder.srem(depth, _I64(vector.count))
    mask = first_lanes(builder, vector.count, rest)

    def step(behind: Any, b_behind: Any, read: Any) -> None:
        """Emit the products of a register of the depth."""
        factors = [read(at(column, b_behind)) for column in b_columns]
        for r in range(high):
            register = read(at(a_rows[r], behind))
            for j in range(columns):
                total = builder.call(fma, [register, factors[j], builder.load(sums[r, j])])
                builder.store(total, sums[r, j])

    def read_whole(where: Any) -> Any:
        return builder.load(where, typ=vector, align=size)

    def read_rest(where: Any) -> Any:
        return masked_load(builder, where, mask, vector, size)

    def run_begin(run: Any) -> tuple[Any, Any]:
        """Return where a run begins in A and B."""
        return listed(run_starts, run, _I64), builder.mul(builder.mul(run, depth), _I64(size))

    vector_bytes = _I64(MACHINE.vector_bytes)
    with few_turns(builder, runs) as run:
        start, b_start = run_begin(run)
        with few_turns(builder, whole) as register:
            behind = builder.mul(register, vector_bytes)
            step(builder.add(start, behind), builder.add(b_start, behind), read_whole)
    # The rests of all runs come last, so that the loop above stays a small one.
    with builder.if_then(builder.icmp_signed(">", rest, _I64(0))):
        behind = builder.mul(whole, vector_bytes)
        with few_turns(builder, runs) as run:
            start, b_start = run_begin(run)
            step(builder.add(start, behind), builder.add(b_start, behind), read_rest)
    for r in range(high):
        with builder.if_then(builder.icmp_signed("<", _I64(r), rows)):
            for j in range(columns):
                place = at(c_rows[r], _I64(j * size))
                register = builder.load(sums[r, j])
                # In any order: one after the other would take a sum's time for each lane.
                total = builder.call(
                    add_up, [ir.Constant(scalar, -0.0), register], fastmath=("reassoc",)
                )
                # Also where it is not added: whatever lies there does no harm.
                before = builder.load(place, typ=scalar, align=size)
                more = builder.fadd(before, total)
                builder.store(builder.select(accumulate, more, total), place, align=size)
    builder.ret_void()
    return function


@intrinsic
def dot_tile(
    typingctx: Any, alpha: Any, rows: Any, columns: Any, runs: Any, run_starts: Any, depth: Any,
    a_rows: Any, b: Any, b_column: Any, c_rows: Any, accumulate: Any,
) -> Any:  # fmt: skip
    """Multiply up to `dot_rows` rows of A by `columns` packed columns of B into C.

    `alpha` gives the element type alone. Element k of run n of row r of A lies at
    ``a_rows[r] + run_starts[n]`` and k elements, k in ``[0, depth)``, and is multiplied by element
    ``n depth + k`` of what begins at ``b + j b_column``; row r of C begins at ``c_rows[r]``.
    `a_rows`, `run_starts` and `c_rows` are addresses of arrays of int64; all of this is in bytes. A
    number of columns that was not generated ends the process at once.
    """
    i64 = types.int64

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, rows, columns, runs, run_starts, depth, a_rows, b, b_column, c_rows, accumulate = args
        arguments = [
            rows, runs, pointer(builder, run_starts), depth, pointer(builder, a_rows),
            pointer(builder, b), b_column, pointer(builder, c_rows), accumulate,
        ]  # fmt: skip
        cases = {
            number: _dots_function(builder.module, alpha, number)
            for number in range(1, most_columns.py_func(vector_type(alpha).count) + 1)
        }
        call_case(builder, columns, cases, arguments)
        return context.get_dummy_value()

    return (
        types.void(alpha, i64, i64, i64, i64, i64, i64, i64, i64, i64, types.boolean),
        codegen,
    )
