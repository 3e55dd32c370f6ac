"""Transfers to the GPU that do not wait: through pinned memory, in the order of the kernels."""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbadrop.address import address_of
from numbadrop.kernels.cuda.driver import SIMULATED, call, cuda, write

__all__ = ["send"]

Array = NDArray[Any]

_PAGES, _PAGE = 4, 1 << 20
"""Pinned memory: the patterns of a hundred steps, or a few minibatches, are under way at most."""
_LARGEST = 1 << 24
"""Bytes that are worth a copy on the host. Larger arrays, such as weights, are sent as they are."""


@dataclass
class _Page:
    """Pinned memory, and the event of the driver that the transfers that read it are over."""

    memory: Array
    sent: Any


class _Staging(threading.local):
    """Of each thread, so that none waits for another."""

    def __init__(self) -> None:
        cuda.current_context()  # The driver asks for one of each thread.
        self.pages = [
            _Page(cuda.pinned_array(_PAGE, np.uint8), call("cuEventCreate", 0))
            for _ in range(_PAGES)
        ]
        self.page, self.used = self.pages[0], 0

    def take(self, nbytes: int) -> int:
        """Return the address of pinned memory that nothing reads any more."""
        if self.used + nbytes > self.page.memory.size:
            call("cuEventRecord", self.page.sent, 0)
            self.pages.append(self.pages.pop(0))
            self.page, self.used = self.pages[0], 0
            call("cuEventSynchronize", self.page.sent)
            if nbytes > self.page.memory.size:
                self.page.memory = cuda.pinned_array(nbytes, np.uint8)
        address = address_of(self.page.memory) + self.used
        self.used += nbytes
        return address


@cache
def _staging() -> _Staging:
    return _Staging()


def send(host: Array, address: Any) -> None:
    """Copy a C-contiguous host array to the GPU; the host array may be changed at once."""
    if SIMULATED or host.size == 0 or host.nbytes > _LARGEST:
        write(address, host)
        return
    pinned = _staging().take(host.nbytes)
    ctypes.memmove(pinned, address_of(host), host.nbytes)
    call("cuMemcpyHtoDAsync", address, pinned, host.nbytes, 0)
