"""Transfers to the GPU through pinned memory: in the order of the kernels, or beside them."""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbadrop.address import address_of
from numbadrop.kernels.cuda.driver import SIMULATED, STREAM, bindings, call, cuda, enter, write

__all__ = ["send"]

Array = NDArray[Any]

_PAGES, _PAGE = 4, 1 << 20
"""Pinned memory: the patterns of a hundred steps, or a few minibatches, are under way at most."""
_LARGEST = 1 << 24
"""Bytes that are worth a copy on the host. Larger arrays, such as weights, are sent as they are."""


@dataclass(eq=False)
class _Page:
    """Pinned memory, and the event of the driver that the transfers that read it are over."""

    memory: Array
    sent: Any


class _Staging:
    """The pages of a thread: each has its own, so that none waits for another."""

    def __init__(self) -> None:
        self.pages: list[_Page] = []
        self.before = call("cuEventCreate", 0)
        """That what was started before is over."""
        self.beside = call("cuStreamCreate", bindings.CUstream_flags.CU_STREAM_NON_BLOCKING)
        """Where transfers do not take their turn between kernels."""
        for _ in range(_PAGES):
            memory = cuda.pinned_array(_PAGE, np.uint8)
            self.pages.append(_Page(memory, call("cuEventCreate", 0)))
        self.page, self.used = self.pages[0], 0

    def take(self, nbytes: int) -> int:
        """Return the address of pinned memory that nothing reads any more."""
        if self.used + nbytes > self.page.memory.size:
            call("cuEventRecord", self.page.sent, STREAM)
            following = (self.pages.index(self.page) + 1) % _PAGES
            call("cuEventSynchronize", self.pages[following].sent)
            if nbytes > self.pages[following].memory.size:
                self.pages[following].memory = cuda.pinned_array(nbytes, np.uint8)
            self.page, self.used = self.pages[following], 0
        address = address_of(self.page.memory) + self.used
        self.used += nbytes
        return address


_own = threading.local()
_idle: list[_Staging] = []
"""Those of threads that have ended, for new ones: `fit` has one in each epoch."""


class _Loan:
    """What a thread holds as long as it lives."""

    def __init__(self) -> None:
        enter()
        self.idle = _idle
        try:  # Another thread may be between a look and a pop.
            self.staging = _idle.pop()
        except IndexError:
            self.staging = _Staging()

    def __del__(self) -> None:
        # Transfers of the thread may be under way: the events of the pages know.
        if hasattr(self, "staging"):
            self.idle.append(self.staging)


def _staging() -> _Staging:
    if not hasattr(_own, "loan"):
        _own.loan = _Loan()
    staging: _Staging = _own.loan.staging
    return staging


def send(host: Array, address: Any, beside: bool = False) -> None:
    """Copy a C-contiguous host array to the GPU; the host array may be changed at once.

    Either the copy takes its turn between kernels, and nobody waits, or it runs beside those that
    are started from now on, and is over on return.
    """
    if SIMULATED or host.size == 0 or host.nbytes > _LARGEST:
        write(address, host)
        return
    staging = _staging()
    pinned = staging.take(host.nbytes)
    ctypes.memmove(pinned, address_of(host), host.nbytes)
    if not beside:
        call("cuMemcpyHtoDAsync", address, pinned, host.nbytes, STREAM)
        return
    # The memory may be in use by kernels that have not run yet.
    call("cuEventRecord", staging.before, STREAM)
    call("cuStreamWaitEvent", staging.beside, staging.before, 0)
    try:
        call("cuMemcpyHtoDAsync", address, pinned, host.nbytes, staging.beside)
    finally:  # Whatever comes between: nobody may get this memory before.
        call("cuStreamSynchronize", staging.beside)
