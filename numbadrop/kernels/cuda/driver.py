"""The one import of Numba's CUDA, and plain words where it, a GPU or its memory is missing.

Numba finds the GPU and compiles kernels. What happens in every step, kernels started, memory used
again and copied, goes straight to the driver: Numba's ways take several times as long as a kernel.
"""

from __future__ import annotations

import math
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np

from numbadrop.address import address_of
from numbadrop.errors import DeviceError, DeviceMemoryError, needs_extra
from numbadrop.kernels.cuda.pool import Pool, rounded

with needs_extra("cuda", "a GPU"):
    # Some releases of Numba have a `numba.cuda` of their own, which is no longer maintained.
    import numba_cuda  # noqa: F401
    from cuda.bindings import driver as bindings
    from numba import config, cuda
    from numba.cuda.cudadrv.error import CudaSupportError

__all__ = [
    "SIMULATED", "STREAM", "allocate", "bindings", "call", "check", "cuda", "enter", "read",
    "write",
]  # fmt: skip

SIMULATED = bool(config.ENABLE_CUDASIM)
"""Whether Python threads of the host stand in for a GPU: ``NUMBA_ENABLE_CUDASIM=1``."""

STREAM = bindings.CUstream(bindings.CU_STREAM_LEGACY)
"""Where all kernels and transfers take their turn, those of other libraries by default too."""

_NO_MEMORY = "OUT_OF_MEMORY"
"""What the code of such an error ends with."""

config.CUDA_LOW_OCCUPANCY_WARNINGS = 0
"""A net is allowed to be small."""


@cache
def _device() -> int:
    """Return the number of the GPU where everything lies: the one that is current at first use."""
    device = cuda.get_current_device()
    served, installed = call("cuDriverGetVersion") // 1000, version("cuda-bindings")
    # It would load nothing that the packages have compiled, and say no more than a number.
    if served < int(installed.partition(".")[0]):
        raise DeviceError(
            f"the GPU's driver is for CUDA {served}, but cuda-bindings {installed} is installed: "
            'update the driver, or for one of CUDA 12 pip install "numba-cuda[cu12]"'
        )
    return int(device.id)


def enter() -> None:
    """Make that GPU the current one of a thread that has none: the driver asks for one of each.

    Numba would take the first GPU, whichever the other threads work on.
    """
    device = _device()
    if cuda.gpus.current is None:
        cuda.select_device(device)


def call(name: str, *arguments: Any) -> Any:
    """Call a function of the driver, on the current context, and return what it gives.

    Where memory is missing, for arrays or for machine code, what the pool has is let go first.

    Raises
    ------
    DeviceError
        If it fails, or a kernel before it has.
    DeviceMemoryError
        If there is not enough memory.
    """
    function = getattr(bindings, name)
    status, *given = function(*arguments)
    if status != 0 and status.name.endswith(_NO_MEMORY) and _pool.let_go():
        status, *given = function(*arguments)
    check(name, status)
    return given[0] if given else None


def check(name: str, status: Any) -> None:
    """Raise an error unless the driver's function of this name has succeeded."""
    if status == 0:
        return
    if status.name.endswith(_NO_MEMORY):
        raise DeviceMemoryError(f"the GPU has no memory left: {name} failed with {status.name}")
    hint = ""
    if status.name.endswith(("NOT_INITIALIZED", "INVALID_CONTEXT", "INVALID_HANDLE")):
        hint = ": arrays and kernels stay in the process and on the GPU in which they were made"
    raise DeviceError(f"{name} of the GPU's driver failed with {status.name}{hint}")


def _new_block(size: int) -> int:
    enter()
    return int(call("cuMemAlloc", size))


def _free_block(address: int) -> None:
    call("cuMemFree", address)


_pool = Pool(_new_block, _free_block)


class _Memory:
    """Memory of the GPU that goes back to the pool when nobody holds it any more."""

    __slots__ = ("_size", "address")

    def __init__(self, size: int, address: int) -> None:
        self._size, self.address = size, address

    def __del__(self, pool: Pool = _pool) -> None:  # A module's own names may be gone at the end.
        pool.give_back(self._size, self.address)


def _take(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Any, Any]:
    if SIMULATED:
        flat = cuda.device_array(math.prod(shape), dtype)
        return flat, flat
    size = rounded(max(math.prod(shape), 1) * dtype.itemsize)
    memory = _Memory(size, _pool.take(size))
    return memory.address, memory


def allocate(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """Return the address of new memory, and what holds it; the simulator has flat arrays for both.

    Raises
    ------
    DeviceError
        If there is no GPU, or no driver for it.
    DeviceMemoryError
        If there is not enough memory. Nothing else is lost: arrays stay as they are.
    """
    try:
        return _take(shape, dtype)
    except CudaSupportError as error:
        reason = " ".join(str(error).split())
        raise DeviceError(
            f"no GPU can be used: {reason} Numba needs an NVIDIA GPU with its driver, "
            'pip install "numbadrop[cuda]" brings the rest'
        ) from error
    except Exception as error:
        # The class depends on the release of numba-cuda, the name of the code does not.
        if _NO_MEMORY not in str(error):
            raise
        wanted = math.prod(shape) * dtype.itemsize
        raise DeviceMemoryError(
            f"the GPU has no memory left for an array of shape {shape} and {dtype}, "
            f"{wanted} bytes: take smaller batches, or go on with model.to('cpu')"
        ) from error


def read(address: Any, host: np.ndarray[Any, Any]) -> None:
    """Fill a C-contiguous host array from the GPU, once all kernels before have run."""
    if host.size == 0:
        return
    if SIMULATED:
        host[...] = address.copy_to_host().reshape(host.shape)
        return
    enter()
    call("cuMemcpyDtoH", address_of(host), address, host.nbytes)


def write(address: Any, host: np.ndarray[Any, Any]) -> None:
    """Copy a C-contiguous host array to the GPU, once all kernels before have run."""
    if host.size == 0:
        return
    if SIMULATED:
        address.copy_to_device(host.reshape(-1))
        return
    enter()
    call("cuMemcpyHtoD", address, address_of(host), host.nbytes)
