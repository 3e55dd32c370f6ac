"""Masks of independent dropout, the same bits on the host and on a GPU."""

from __future__ import annotations

import math
import operator
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numbadrop.address import address_of
from numbadrop.kernels.arrays import Array, check_dtype, check_is_array, check_real
from numbadrop.kernels.device import cuda, empty, is_host
from numbadrop.kernels.elements import bytes_of
from numbadrop.kernels.jit import DONE, inlined, inner
from numbadrop.kernels.memory import first_of, load_index, store, words_behind
from numbadrop.kernels.philox import philox
from numbadrop.kernels.shares import share
from numbadrop.kernels.task import run_task

__all__ = ["dropout_mask"]

_SERIAL_BELOW = 20_000
"""Elements that one thread draws about as fast as several."""


class _Values(NamedTuple):
    kept: float
    dropped: float


@intrinsic
def _product(typingctx: Any, a: Any, b: Any) -> Any:
    """Return the upper and the lower 64 bits of a product of two uint64: one instruction."""
    result = types.UniTuple(types.uint64, 2)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word, double = ir.IntType(64), ir.IntType(128)
        whole = builder.mul(*(builder.zext(one, double) for one in args))
        halves = builder.trunc(builder.lshr(whole, double(64)), word), builder.trunc(whole, word)
        return context.make_tuple(builder, result, halves)

    return result(types.uint64, types.uint64), codegen


_block = inlined(philox(np.uint64, _product))
_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)


@inner
def _store_pair(at, left, word, bound, kept, dropped):
    """Store the values of the two halves of a word, or of as many as are left."""
    if left > 0:
        store(at, kept if (word & _LOW) >= bound else dropped)
    if left > 1:
        store(at + bytes_of(kept), kept if (word >> _HALF) >= bound else dropped)


def _mask_part(task, part, parts):
    kept, dropped = first_of(task)
    words = words_behind(task)
    size, out, bound = load_index(words, 0), load_index(words, 1), np.uint64(load_index(words, 2))
    first, second = np.uint64(load_index(words, 3)), np.uint64(load_index(words, 4))
    pair = 2 * bytes_of(kept)
    blocks = (size + 7) // 8
    for i in range(share(blocks, parts, part), share(blocks, parts, part + 1)):
        a, b, c, d = _block(np.uint64(i), first, second)
        at, left = out + i * 4 * pair, size - i * 8
        _store_pair(at, left, a, bound, kept, dropped)
        _store_pair(at + pair, left - 2, b, bound, kept, dropped)
        _store_pair(at + 2 * pair, left - 4, c, bound, kept, dropped)
        _store_pair(at + 3 * pair, left - 6, d, bound, kept, dropped)
    return DONE


def _check_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    try:
        checked = tuple(map(operator.index, shape))
    except TypeError:
        raise TypeError(f"shape must be a tuple of ints, got {shape!r}") from None
    if min(checked, default=0) < 0:
        raise ValueError(f"shape must have no negative length, got {checked}")
    return checked


def dropout_mask(shape: tuple[int, ...], p: float, rng: np.random.Generator, like: Array) -> Array:
    """Return an array that is 0 with probability p, on its own for each element, else 1 / (1 - p).

    Two numbers of `rng` are the key of a generator of its own, Philox4x64-10. A GPU draws the mask
    by itself, and it has the bits that it would have on the host.

    Parameters
    ----------
    shape : tuple of int
    p : float
        In [0, 1).
    rng : numpy.random.Generator
    like : ndarray or DeviceArray of float32 or float64
        The mask has its dtype and lies in its memory.

    Returns
    -------
    ndarray, of the given shape

    Raises
    ------
    TypeError
        If `shape` holds something else than ints, `p` is no number, or `like` no such array.
    ValueError
        If a length is negative, or `p` out of range.

    References
    ----------
    J. K. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

    Examples
    --------
    >>> dropout_mask((2, 4), 0.5, np.random.default_rng(1), np.empty(0, np.float32))
    array([[2., 0., 2., 0.],
           [2., 2., 0., 2.]], dtype=float32)
    """
    shape, p = _check_shape(shape), check_real("p", p)
    if not 0 <= p < 1:
        raise ValueError(f"p, the fraction dropped, must be in [0, 1), got {p}")
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng must be a numpy.random.Generator, got {type(rng).__name__}")
    check_is_array("like", like)
    check_dtype("like", like)
    # Of 63 bits, as which a kernel takes them without a sign.
    first, second = int(rng.integers(2**63)), int(rng.integers(2**63))
    kept = 1 / (1 - p)
    # In NumPy a draw is compared with p as float32. The upper 24 of its 32 bits are the draw.
    bound = math.ceil(float(np.float32(p)) * 2**24) << 8
    if not is_host(like):
        return cuda().dropout_mask(shape, like.dtype, kept, bound, first, second)
    mask = empty(shape, like)
    run_task(
        _mask_part, mask.dtype, _Values(kept, 0.0),
        mask.size, address_of(mask), bound, first, second,
        parallel=mask.size >= _SERIAL_BELOW,
    )  # fmt: skip
    return mask
