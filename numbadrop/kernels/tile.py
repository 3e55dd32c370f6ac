"""The register tile: the innermost product, generated as LLVM IR.

``c[r, :] = (c[r, :] if accumulate else 0) + sum_k a[r, k] b[k, :]`` for a few rows r and a few
vectors of columns, with every partial sum in a register for the whole depth. A is read where it
lies, one broadcast load for each element; B is a packed panel, or rows as far apart as they are in
memory, of whole vectors; C is written once, and of its last vector no more than there are columns.

Rows of A and C may lie anywhere. The depth of A comes in runs, which may lie anywhere too, the same
for all rows: a matrix is one run, the patches of an image have one for each row of the kernel.

Every height from 1 to `MACHINE.tile_rows` and every width from 1 to `MACHINE.tile_vectors` is a
function of its own, so that no product is ever computed for rows that are not there; so are those
that are a register wider and have fewer rows, for columns that would else take two tiles.
Those of the greatest height come twice: the second prefetches memory that is needed soon
(`prefetch`), a request in each step of its loop, which costs a product that needs none a fiftieth
of its time, and with AVX2 a twentieth. Where a register is added to in two turns, there are some of
half a register, too.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numbadrop.kernels.elements import MACHINE, WIDEST, itemsize, vector_type
from numbadrop.kernels.jit import inner
from numbadrop.kernels.memory import (
    CACHE_LINE,
    call_case,
    emit_prefetch,
    first_lanes,
    masked_load,
    masked_store,
    opaque,
    pointer,
    spread,
)

__all__ = ["NEAREST", "WHOLE", "WIDE", "most_rows", "register_tile", "request_bytes"]

_I64 = ir.IntType(64)
_POINTER = ir.PointerType()
_HALVED_BYTES = 64
"""Many CPUs take two turns for a multiply-add of such a register, and one for half of it."""

# What a caller says of all its tiles, so that no others are compiled for it.
NEAREST = 1
"""It is the very next tile that needs what is prefetched. What a tile that prefetches writes should
then be among the requests, its own or those of the tile before; else it asks for that by itself."""
WIDE = 2
"""There are tiles of `WIDEST` registers, too."""
WHOLE = 4
"""Columns fill whole registers, and nothing is prefetched."""


@inner
def most_rows(vectors):
    """Return how many rows a tile of this width has at most."""
    return MACHINE.wide_rows if vectors == WIDEST else MACHINE.tile_rows


@inner
def request_bytes(vectors):
    """Return how many bytes a tile of this width asks for at a time: whole cache lines."""
    return max(vectors * MACHINE.vector_bytes, CACHE_LINE)


def _steps_a_turn(prefetches: bool) -> int:
    """Return how many steps of the depth a turn of the loop does.

    Two where it makes a request, or registers are small, so that what the loop itself takes counts.
    Else two would be no faster, and twice as much to compile.
    """
    return 2 if prefetches or MACHINE.vector_bytes < _HALVED_BYTES else 1


def _tile_function(
    module: ir.Module, element: types.Float, rows: int, vectors: int,
    prefetches: bool = False, half: bool = False, kind: int = 0,
) -> ir.Function:  # fmt: skip
    """Define, once in a module, the tile of `rows` x `vectors`, or of `half` of a single vector.

    In a module, all are of one `kind`.
    """
    nearest, whole = bool(kind & NEAREST), bool(kind & WHOLE)
    name = f"numbadrop_tile_{element}_{rows}x{vectors}"
    name += ("_prefetches" if prefetches else "") + ("_half" if half else "")
    if name in module.globals:
        return module.globals[name]
    numbered = [_I64, _POINTER]
    signature = ir.FunctionType(
        ir.VoidType(), 4 * numbered + [_POINTER, _POINTER, _I64, ir.IntType(1)]
    )
    function = ir.Function(module, signature, name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    (
        runs, run_starts, depth, a_table, a_depth, b, b_row, c_table, requests, requests_end,
        columns, accumulate,
    ) = function.args  # fmt: skip

    size = itemsize(element)
    vector = vector_type(element)
    if half:
        vector = ir.VectorType(vector.element, vector.count // 2)
    if whole:
        columns = ir.Constant(_I64, vectors * vector.count)
    byte = ir.IntType(8)
    fma = module.declare_intrinsic(
        f"llvm.fmuladd.v{vector.count}f{element.bitwidth}",
        (),
        ir.FunctionType(vector, [vector, vector, vector]),
    )
    zero = ir.Constant(vector, None)

    def block(name: str) -> ir.IRBuilder:
        return ir.IRBuilder(function.append_basic_block(name))

    entry, run, begin_run, head, body, end_run = map(
        block, ("entry", "run", "begin_run", "head", "body", "end_run")
    )
    leave, resume, write, write_part, write_whole, end = map(
        block, ("leave", "resume", "write", "write_part", "write_whole", "end")
    )

    def at(builder: ir.IRBuilder, base: ir.Value, offset: ir.Value | int) -> ir.Value:
        if isinstance(offset, int):
            offset = ir.Constant(_I64, offset)
        return builder.gep(base, [offset], source_etype=byte)

    def listed(builder: ir.IRBuilder, table: ir.Value, position: Any, kind: Any) -> ir.Value:
        where = builder.gep(table, [position], source_etype=_I64)
        return builder.load(where, typ=kind, align=8)

    a_rows = [listed(entry, a_table, _I64(r), _POINTER) for r in range(rows)]
    c_rows = [listed(entry, c_table, _I64(r), _POINTER) for r in range(rows)]
    tiles = [(r, v) for r in range(rows) for v in range(vectors)]
    c_at = {(r, v): at(entry, c_rows[r], v * MACHINE.vector_bytes) for r, v in tiles}
    steps = _steps_a_turn(prefetches)
    whole_turns = entry.sub(depth, entry.urem(depth, _I64(steps)))
    last_request = entry.gep(requests_end, [_I64(-1)], source_etype=_POINTER)
    # What will be written comes into the cache while sums are made, and nobody waits for it; also
    # the last line of a row that begins within one.
    last_byte = vectors * MACHINE.vector_bytes - 1
    for r, c_row in enumerate(c_rows) if not nearest else ():
        for place in (*(c_at[r, v] for v in range(vectors)), at(entry, c_row, last_byte)):
            emit_prefetch(entry, place, to_write=True)
    entry.branch(run.block)

    def carried(builder: ir.IRBuilder, kind: Any, *incoming: Any) -> Any:
        phi = builder.phi(kind)
        for value, block in incoming:
            phi.add_incoming(value, block)
        return phi

    def step(builder: ir.IRBuilder, sums: Any, a_offset: Any, b_at: Any, times: int) -> Any:
        """Emit `times` rank-one updates; return the new sums and positions."""
        for _ in range(times):
            row = [
                builder.load(at(builder, b_at, v * MACHINE.vector_bytes), typ=vector, align=size)
                for v in range(vectors)
            ]
            for r in range(rows):
                scalar = builder.load(
                    at(builder, a_rows[r], a_offset), typ=vector.element, align=size
                )
                factors = spread(builder, scalar, vector.count)
                for v in range(vectors):
                    sums[r, v] = builder.call(fma, [factors, row[v], sums[r, v]])
            # Else LLVM would keep one more pointer a row for each of the steps, and run out of
            # registers.
            a_offset = opaque(builder, builder.add(a_offset, a_depth))
            b_at = at(builder, b_at, b_row)
        return sums, a_offset, b_at

    def ask(builder: ir.IRBuilder, request: Any) -> Any:
        """Emit a request for all cache lines of one entry; return the next entry."""
        lines = builder.load(request, typ=_POINTER, align=8)
        for behind in range(0, request_bytes.py_func(vectors), CACHE_LINE):
            emit_prefetch(builder, at(builder, lines, behind), to_write=False, nearest=nearest)
        following = builder.gep(request, [_I64(1)], source_etype=_POINTER)
        inside = builder.icmp_unsigned("<", following, last_request)
        return builder.select(inside, following, last_request)

    def loop(
        head: ir.IRBuilder, body: ir.IRBuilder, after: ir.Block, limit: Any, times: int,
        before: ir.Block, state: Any,
    ) -> Any:  # fmt: skip
        """Run `step` until the depth done reaches `limit`; `state` comes from block `before`."""
        done = carried(head, _I64, (state[0], before))
        a_offset = carried(head, _I64, (state[1], before))
        b_at = carried(head, _POINTER, (state[2], before))
        request = carried(head, _POINTER, (state[3], before))
        sums = {t: carried(head, vector, (state[4][t], before)) for t in tiles}
        head.cbranch(head.icmp_unsigned("<", done, limit), body.block, after)
        new_request = ask(body, request) if prefetches and times == steps else request
        new_sums, new_a, new_b = step(body, dict(sums), a_offset, b_at, times)
        done.add_incoming(body.add(done, ir.Constant(_I64, times)), body.block)
        a_offset.add_incoming(new_a, body.block)
        b_at.add_incoming(new_b, body.block)
        request.add_incoming(new_request, body.block)
        for t in tiles:
            sums[t].add_incoming(new_sums[t], body.block)
        body.branch(head.block)
        return done, a_offset, b_at, request, sums

    number = carried(run, _I64, (_I64(0), entry.block))
    b_run = carried(run, _POINTER, (b, entry.block))
    request_run = carried(run, _POINTER, (requests, entry.block))
    sums = {t: carried(run, vector, (zero, entry.block)) for t in tiles}
    run.cbranch(run.icmp_unsigned("<", number, runs), begin_run.block, leave.block)
    start = listed(begin_run, run_starts, number, _I64)
    begin_run.branch(head.block)
    state = (_I64(0), start, b_run, request_run, sums)
    if steps == 1:
        state = loop(head, body, end_run.block, depth, steps, begin_run.block, state)
    else:
        tail_head, tail = block("tail_head"), block("tail")
        state = loop(head, body, tail_head.block, whole_turns, steps, begin_run.block, state)
        state = loop(tail_head, tail, end_run.block, depth, 1, head.block, state)
    _, _, b_end, request_end, new_sums = state
    number.add_incoming(end_run.add(number, _I64(1)), end_run.block)
    b_run.add_incoming(b_end, end_run.block)
    request_run.add_incoming(request_end, end_run.block)
    for t in tiles:
        sums[t].add_incoming(new_sums[t], end_run.block)
    end_run.branch(run.block)
    last = vectors - 1
    lanes = ir.Constant(_I64, vector.count)
    filled = leave.sub(columns, ir.Constant(_I64, last * vector.count))
    mask = first_lanes(leave, vector.count, filled)
    leave.cbranch(accumulate, resume.block, write.block)
    before = {
        (r, v): masked_load(resume, c_at[r, v], mask, vector, size)
        if v == last
        else resume.load(c_at[r, v], typ=vector, align=size)
        for r, v in tiles
    }
    resumed = {t: resume.fadd(before[t], sums[t]) for t in tiles}
    resume.branch(write.block)
    results = {
        t: carried(write, vector, (sums[t], leave.block), (resumed[t], resume.block)) for t in tiles
    }
    for r, v in tiles:
        if v < last:
            write.store(results[r, v], c_at[r, v], align=size)
    # Some CPUs take ten times as long to store under a mask, which others do lane by lane; to load
    # under one is no slower, or rare: where the depth comes in blocks.
    write.cbranch(write.icmp_signed("<", filled, lanes), write_part.block, write_whole.block)
    for r in range(rows):
        masked_store(write_part, results[r, last], c_at[r, last], mask, size)
        write_whole.store(results[r, last], c_at[r, last], align=size)
    write_part.branch(end.block)
    write_whole.branch(end.block)
    end.ret_void()
    return function


@intrinsic
def register_tile(
    typingctx: Any, alpha: Any, rows: Any, columns: Any, runs: Any, run_starts: Any, depth: Any,
    a_rows: Any, a_depth: Any, b: Any, b_row: Any, c_rows: Any, requests: Any,
    requests_end: Any, accumulate: Any, kind: Any,
) -> Any:  # fmt: skip
    """Multiply `rows` rows of A by `columns` columns of B, read as whole vectors, into C.

    `alpha` gives the element type alone. Element k of run n of row r of A lies at
    ``a_rows[r] + run_starts[n] + k a_depth``, k in ``[0, depth)``, and is multiplied by what begins
    at ``b + (n depth + k) b_row``; row r of C begins at ``c_rows[r]``. `a_rows`, `run_starts` and
    `c_rows` are addresses of arrays of int64; all of this is in bytes. The addresses from
    `requests` to before `requests_end`, of which there may be none, are of memory to prefetch, each
    of `request_bytes`, and any will do. A tile of the greatest height asks for the next ones for
    each two of a run's depth, as far as it comes, and for the last one again from there on; other
    tiles, and those of half a register, do not. `kind`, a constant, is 0 or a sum of `NEAREST`,
    `WIDE` and `WHOLE`. A height or width that was not generated ends the process at once: it must
    never be skipped in silence.
    """
    i64 = types.int64
    if not isinstance(kind, types.IntegerLiteral):
        return None
    wide, whole = bool(kind.literal_value & WIDE), bool(kind.literal_value & WHOLE)
    widest = WIDEST if wide else MACHINE.tile_vectors

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (
            _, rows, columns, runs, run_starts, depth, a_rows, a_depth, b, b_row, c_rows, requests,
            requests_end, accumulate, _,
        ) = args  # fmt: skip
        arguments = [
            runs, pointer(builder, run_starts), depth, pointer(builder, a_rows), a_depth,
            pointer(builder, b), b_row, pointer(builder, c_rows),
            pointer(builder, requests), pointer(builder, requests_end), columns, accumulate,
        ]  # fmt: skip
        count = vector_type(alpha).count
        vectors = builder.sdiv(builder.add(columns, _I64(count - 1)), _I64(count))
        # Each in a half of the word, so that no other height and width give the same number.
        number = builder.xor(builder.shl(rows, _I64(32)), vectors)
        heights = {across: most_rows.py_func(across) for across in range(1, widest + 1)}

        def tile(high: int, across: int, prefetches: bool = False, half: bool = False) -> Any:
            flags = prefetches, half, kind.literal_value
            return _tile_function(builder.module, alpha, high, across, *flags)

        cases = {
            (high << 32) ^ across: tile(high, across)
            for across, most in heights.items()
            for high in range(1, most + 1)
        }
        if not whole:
            tallest = builder.select(
                builder.icmp_signed("==", vectors, _I64(WIDEST)),
                _I64(MACHINE.wide_rows),
                _I64(MACHINE.tile_rows),
            )
            prefetches = builder.and_(
                builder.icmp_signed("<", requests, requests_end),
                builder.icmp_signed("==", rows, tallest),
            )
            number = builder.xor(number, builder.shl(builder.zext(prefetches, _I64), _I64(62)))
            for across, most in heights.items():
                cases[(1 << 62) ^ (most << 32) ^ across] = tile(most, across, prefetches=True)
        if MACHINE.vector_bytes >= _HALVED_BYTES and not whole:
            half = builder.and_(
                builder.icmp_signed(">", columns, _I64(0)),
                builder.icmp_signed("<=", columns, _I64(count // 2)),
            )
            number = builder.select(
                half, builder.xor(builder.shl(rows, _I64(32)), _I64(1 << 61)), number
            )
            for high in range(1, MACHINE.tile_rows + 1):
                cases[(1 << 61) ^ (high << 32)] = tile(high, 1, half=True)
        call_case(builder, number, cases, arguments)
        return context.get_dummy_value()

    return (
        types.void(alpha, *12 * (i64,), types.boolean, kind),
        codegen,
    )
