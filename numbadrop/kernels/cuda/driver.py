"""The one import of Numba's CUDA, and plain words where it, a GPU or its memory is missing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from numbadrop.errors import DeviceError, DeviceMemoryError, needs_extra

with needs_extra("cuda", "a GPU"):
    # Some releases of Numba have a `numba.cuda` of their own, which is no longer maintained.
    import numba_cuda  # noqa: F401
    from numba import config, cuda
    from numba.cuda.cudadrv.error import CudaSupportError

__all__ = ["SIMULATED", "allocate", "cuda", "launch"]

SIMULATED = bool(config.ENABLE_CUDASIM)
"""Whether Python threads of the host stand in for a GPU: ``NUMBA_ENABLE_CUDASIM=1``."""

_THREADS, _MOST_BLOCKS = (2, 1) if SIMULATED else (256, 4096)
"""Of a kernel whose threads stride over the elements; a simulated thread is a thread of Python."""

config.CUDA_LOW_OCCUPANCY_WARNINGS = 0
"""A net is allowed to be small."""


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
        return cuda.device_array(shape, dtype)
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
