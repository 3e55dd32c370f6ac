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

_BUFFERS = 16
"""Transfers that may be under way: more than the patterns of a step and two minibatches."""
_LARGEST = 1 << 24
"""Bytes that are worth a copy on the host. Larger arrays, such as weights, are sent as they are."""


@dataclass
class _Buffer:
    """Pinned memory, and the event of the driver that the transfer that reads it is over."""

    memory: Array
    sent: Any


class _Staging(threading.local):
    """Of each thread, so that none waits for another."""

    def __init__(self) -> None:
        cuda.current_context()  # The driver asks for one of each thread.
        self.buffers: list[_Buffer] = []
        self.next = 0

    def take(self, nbytes: int) -> _Buffer:
        """Return a buffer that nothing reads any more."""
        if len(self.buffers) < _BUFFERS:
            event = call("cuEventCreate", 0)
            self.buffers.append(_Buffer(cuda.pinned_array(nbytes, np.uint8), event))
        buffer = self.buffers[self.next]
        self.next = (self.next + 1) % _BUFFERS
        call("cuEventSynchronize", buffer.sent)
        if buffer.memory.size < nbytes:
            buffer.memory = cuda.pinned_array(nbytes, np.uint8)
        return buffer


@cache
def _staging() -> _Staging:
    return _Staging()


def send(host: Array, address: Any) -> None:
    """Copy a C-contiguous host array to the GPU; the host array may be changed at once."""
    if SIMULATED or host.size == 0 or host.nbytes > _LARGEST:
        write(address, host)
        return
    buffer = _staging().take(host.nbytes)
    pinned = address_of(buffer.memory)
    ctypes.memmove(pinned, address_of(host), host.nbytes)
    call("cuMemcpyHtoDAsync", address, pinned, host.nbytes, 0)
    call("cuEventRecord", buffer.sent, 0)
