"""Memory that is used again, of sizes that come again in every step.

To get memory from the driver takes longer than a small kernel, and to return it waits for all
kernels. Since kernels run in the order in which they were started, memory that nobody holds can be
given to the next, whether what used it has run or not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache

__all__ = ["Pool", "rounded"]

_LEAST = 512
"""Bytes of the smallest block, a multiple of what any access wants to be aligned to."""


@lru_cache(maxsize=1024)
def rounded(nbytes: int) -> int:
    """Return the size of the block for so many bytes: at most an eighth more.

    Examples
    --------
    >>> rounded(1), rounded(5000), rounded(1 << 20)
    (512, 5120, 1048576)
    """
    step = max(1 << max(nbytes - 1, 1).bit_length() >> 4, _LEAST)
    return -(-nbytes // step) * step


class Pool:
    """Blocks of memory that were given back, and where others come from.

    Parameters
    ----------
    allocate : callable
        Returns the address of a new block of a size, or raises an error.
    release : callable
        Frees the block at an address.
    """

    def __init__(self, allocate: Callable[[int], int], release: Callable[[int], None]) -> None:
        self._allocate, self._release = allocate, release
        self._free: defaultdict[int, list[int]] = defaultdict(list)

    def take(self, size: int) -> int:
        """Return the address of a block of a `rounded` size."""
        try:  # Any thread may be between a look and a pop.
            return self._free[size].pop()
        except IndexError:
            pass
        return self._allocate(size)

    def give_back(self, size: int, address: int) -> None:
        """Keep a block that nobody holds any more."""
        self._free[size].append(address)

    def let_go(self) -> bool:
        """Free the blocks that nobody holds, and return whether there were any."""
        found = False
        for blocks in list(self._free.values()):
            with suppress(IndexError):  # Others take some meanwhile.
                while True:
                    self._release(blocks.pop())
                    found = True
        return found
