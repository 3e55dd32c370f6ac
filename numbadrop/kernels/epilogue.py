"""What a tile of results passes through while it is still in the nearest cache.

``f(v) = scale rectify(v + bias)``, where ``rectify(v) = v if v > 0 else slope v``: a whole layer
with ReLU and dropout. Where C is added to, block after block of the depth, it is a factor alone:
``f(v) = scale v``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numbadrop.kernels.elements import bytes_of, vector_type
from numbadrop.kernels.jit import inner
from numbadrop.kernels.memory import load, load_index, pointer, process_registers, spread, store
from numbadrop.kernels.windows import unit

__all__ = ["PLAIN", "Epilogue", "finish_tile", "is_plain", "list_bias"]


class Epilogue(NamedTuple):
    """The factors of ``f(v) = scale (v + bias if v + bias > 0 else slope (v + bias))``."""

    slope: float
    scale: float
    """Its type is the element type of the operands."""


PLAIN = Epilogue(slope=1.0, scale=1.0)


@inner
def is_plain(epilogue, bias):
    """Whether ``f(v) = v``; `bias` is an address, or 0 where there is none."""
    return bias == 0 and epilogue.slope == 1 and epilogue.scale == 1


@inner
def list_bias(alpha, listed, bias, cols, first, count):
    """Bring the biases of `count` kept columns side by side."""
    size = bytes_of(alpha)
    for j in range(count):
        store(listed + j * size, load(alpha, bias + unit(cols, first + j) * size))


@intrinsic
def _finish_row(
    typingctx: Any, slope: Any, scale: Any, target: Any, source: Any, columns: Any, bias: Any
) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        slope, scale, target, source, columns, bias = args
        element = signature.args[1]
        vector = vector_type(element)
        zero = ir.Constant(vector, None)
        slopes, scales = (spread(builder, factor, vector.count) for factor in (slope, scale))
        flat = builder.fcmp_ordered("==", slopes, zero)

        def finished(builder: Any, sums: Any, biases: Any) -> Any:
            value = builder.fadd(sums, biases)
            # 0 times minus infinity would be NaN.
            dead = builder.and_(flat, builder.fcmp_ordered("<", value, zero))
            low = builder.select(dead, slopes, builder.fmul(slopes, value))
            positive = builder.fcmp_ordered(">", value, zero)
            return builder.fmul(scales, builder.select(positive, value, low))

        sources = [pointer(builder, source), pointer(builder, bias)]
        process_registers(builder, element, pointer(builder, target), sources, columns, finished)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(slope, scale, i64, i64, i64, i64), codegen


@inner
def finish_tile(epilogue, targets, sources, rows, columns, bias):
    """Apply the epilogue to the rows of a tile, `bias` to its columns.

    Places are listed of where the rows are and of where they go, which may be the same.
    """
    for i in range(rows):
        target, source = load_index(targets, i), load_index(sources, i)
        _finish_row(epilogue.slope, epilogue.scale, target, source, columns, bias)
