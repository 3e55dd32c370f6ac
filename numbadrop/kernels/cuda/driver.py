"""The one import of Numba's CUDA, and plain words where it, a GPU or its memory is missing."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from numbadrop.errors import DeviceError, DeviceMemoryError, needs_extra
from numbadrop.kernels.cuda.pool import Pool, rounded

with needs_extra("cuda", "a GPU"):
    # Some releases of Numba have a `numba.cuda` of their own, which is no longer maintained.
    import numba_cuda  # noqa: F401
    from numba import config, cuda
    from numba.cuda.cudadrv.error import CudaSupportError

    if not config.ENABLE_CUDASIM:
        from numba.cuda.cudadrv.devicearray import DeviceNDArray

__all__ = ["SIMULATED", "allocate", "cuda", "launch"]

SIMULATED = bool(config.ENABLE_CUDASIM)
"""Whether Python threads of the host stand in for a GPU: ``NUMBA_ENABLE_CUDASIM=1``."""

_THREADS, _MOST_BLOCKS = (2, 1) if SIMULATED else (256, 4096)
"""Of a kernel whose threads stride over the elements; a simulated thread is a thread of Python."""

config.CUDA_LOW_OCCUPANCY_WARNINGS = 0
"""A net is allowed to be small."""


_pool: Pool[Any] = Pool(lambda size: cuda.current_context().memalloc(size))


def device_array(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """Return a device array of Numba, in memory that may have been used before."""
    nbytes = math.prod(shape) * dtype.itemsize
    if SIMULATED or nbytes == 0:
        return cuda.device_array(shape, dtype)
    size = rounded(nbytes)
    block = _pool.take(size)
    give_back = partial(_pool.give_back, size, block)
    memory = cuda.MemoryPointer(block.context, block.device_pointer, size, finalizer=give_back)
    strides = tuple(dtype.itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return DeviceNDArray(shape, strides, dtype, gpu_data=memory)


def allocate(shape: tuple[int, ...], dtype: DTypeLike) -> Any:
    """Return a new device array of Numba.

    Raises
    ------
    DeviceError
        If there is no GPU, or no driver for it.
    DeviceMemoryError
        If there is not enough memory. Nothing else is lost: arrays stay as they are.
    """
    try:
        return device_array(shape, np.dtype(dtype))
    except CudaSupportError as error:
        reason = " ".join(str(error).split())
        raise DeviceError(
            f"no GPU can be used: {reason} Numba needs an NVIDIA GPU with its driver, "
            'pip install "numbadrop[cuda]" brings the rest'
        ) from error
    except Exception as error:
        # The class depends on the release of numba-cuda, the name of the code does not.
        if "OUT_OF_MEMORY" not in str(error):
            raise
        wanted = int(np.prod(shape)) * np.dtype(dtype).itemsize
        raise DeviceMemoryError(
            f"the GPU has no memory left for an array of shape {shape} and {np.dtype(dtype)}, "
            f"{wanted} bytes: take smaller batches, or go on with model.to('cpu')"
        ) from error


def launch(kernel: Any, size: int, *arguments: Any) -> None:
    """Run a kernel whose threads stride over `size` elements; nothing is run for none."""
    if size > 0:
        blocks = min(-(-size // _THREADS), _MOST_BLOCKS)
        kernel[blocks, _THREADS](*arguments)
