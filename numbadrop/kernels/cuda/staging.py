"""Transfers to the GPU that do not wait: through pinned memory, in the order of the kernels."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbadrop.kernels.cuda.driver import cuda

__all__ = ["send"]

Array = NDArray[Any]

_BUFFERS = 16
"""Transfers that may be under way: more than the patterns of a step and two minibatches."""
_LARGEST = 1 << 24
"""Bytes that are worth a copy on the host. Larger arrays, such as weights, are sent as they are."""


@dataclass
class _Buffer:
    """Pinned memory, and the transfer that reads it."""

    memory: Array
    sent: Any


class _Staging(threading.local):
    """Of each thread, so that none waits for another."""

    def __init__(self) -> None:
        self.buffers: list[_Buffer] = []
        self.next = 0

    def take(self, nbytes: int) -> _Buffer:
        """Return a buffer that nothing reads any more."""
        if len(self.buffers) < _BUFFERS:
            self.buffers.append(_Buffer(cuda.pinned_array(nbytes, np.uint8), cuda.event()))
        buffer = self.buffers[self.next]
        self.next = (self.next + 1) % _BUFFERS
        buffer.sent.synchronize()
        if buffer.memory.size < nbytes:
            buffer.memory = cuda.pinned_array(nbytes, np.uint8)
        return buffer


_staging = _Staging()


def send(host: Array, native: Any) -> None:
    """Copy a C-contiguous host array to the GPU; the host array may be changed at once."""
    if host.size == 0:
        return
    if host.nbytes > _LARGEST:
        native.copy_to_device(host)
        return
    buffer = _staging.take(host.nbytes)
    pinned = buffer.memory[: host.nbytes].view(host.dtype).reshape(host.shape)
    pinned[...] = host
    stream = cuda.default_stream()
    native.copy_to_device(pinned, stream=stream)
    buffer.sent.record(stream)
