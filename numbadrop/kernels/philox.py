"""Philox4x64-10, a generator whose every draw is a function of its number and a key alone.

So any thread draws any part, on either side, and all sides have the same bits: those of
`numpy.random.Philox`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["philox"]

_ALL = (1 << 64) - 1
_MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_INCREMENTS = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
"""What is added to the two halves of the key after each round."""
_ROUNDS = 10


def philox(word: Callable[[Any], Any], product: Callable[[Any, Any], Any]) -> Any:
    """Return ``block(number, first, second)``, for the caller to compile.

    It returns the four 64-bit words of block `number`, from 0, under a key of two words.

    Parameters
    ----------
    word : callable
        Makes an unsigned number of 64 bits, or under a simulator an int.
    product : callable
        Returns the upper and the lower 64 bits of the product of two words.

    References
    ----------
    J. K. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    zero, one, every = word(0), word(1), word(_ALL)
    multiply_a, multiply_c = map(word, _MULTIPLIERS)
    add_first, add_second = map(word, _INCREMENTS)

    def block(number, first, second):
        # NumPy counts up before it draws: its first block has the number 1.
        a, b, c, d = number + one, zero, zero, zero
        for _ in range(_ROUNDS):
            high_a, low_a = product(multiply_a, a)
            high_c, low_c = product(multiply_c, c)
            a, b, c, d = high_c ^ b ^ first, low_c, high_a ^ d ^ second, low_a
            # A number of Python is cut to 64 bits; all others are.
            first, second = (first + add_first) & every, (second + add_second) & every
        return a, b, c, d

    return block
