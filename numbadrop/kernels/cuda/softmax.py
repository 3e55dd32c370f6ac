"""The negative log-likelihood under a softmax, and its gradient: a warp for each row."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from numbadrop.kernels.cuda.array import DeviceArray
from numbadrop.kernels.cuda.driver import SIMULATED, cuda
from numbadrop.kernels.cuda.launch import kernel
from numbadrop.kernels.cuda.memory import load, store

__all__ = ["cross_entropy", "cross_entropy_gradient"]

_THREADS = 2 if SIMULATED else 32


@cache
def _softmax_kernel(dtype: np.dtype[Any], gradient: bool, factor_there: bool) -> Any:
    threads, element = _THREADS, dtype.type

    @kernel(threads)
    def softmax(logits, labels, classes, factor, out):
        shared = cuda.shared.array(threads, np.float64)
        thread, row = cuda.threadIdx.x, cuda.blockIdx.x
        first, label = row * classes, load(labels, row, np.int64)
        largest = load(logits, first, element)
        for j in range(thread, classes, threads):
            largest = max(largest, load(logits, first + j, element))
        shared[thread] = largest
        cuda.syncthreads()
        for i in range(threads):
            largest = max(largest, element(shared[i]))
        cuda.syncthreads()
        total = 0.0  # in float64, however many classes there are
        for j in range(thread, classes, threads):
            total += math.exp(load(logits, first + j, element) - largest)
        shared[thread] = total
        cuda.syncthreads()
        total = 0.0
        for i in range(threads):
            total += shared[i]
        # A label that came to be on the device cannot be refused without waiting for it.
        known = label >= 0 and label < classes
        if gradient:
            whole = np.float64(load(factor, 0, element)) if factor_there else factor
            share = element(whole / total)
            for j in range(thread, classes, threads):
                slope = share * element(math.exp(load(logits, first + j, element) - largest))
                if j == label:
                    slope -= element(whole)
                store(out, first + j, slope if known else element(math.nan), element)
        elif thread == 0:
            own = load(logits, first + (label if known else 0), element)
            loss = math.log(total) - (own - largest)
            store(out, row, element(loss) if known else element(math.nan), element)

    return softmax


def _run(
    logits: DeviceArray, labels: DeviceArray, factor: float | DeviceArray, out: DeviceArray
) -> DeviceArray:
    batch, classes = logits.shape
    if batch and classes:
        number = factor.address if isinstance(factor, DeviceArray) else factor
        run = _softmax_kernel(logits.dtype, out.shape == logits.shape, number is not factor)
        grid = batch, 1, 1
        run(grid, logits.address, labels.address, classes, number, out.address)
    return out


def cross_entropy(logits: DeviceArray, labels: DeviceArray) -> DeviceArray:
    """See `numbadrop.kernels.cross_entropy`; a label that is out of range gives NaN."""
    return _run(logits, labels, 1.0, DeviceArray.empty(logits.shape[:1], logits.dtype))


def cross_entropy_gradient(
    logits: DeviceArray, labels: DeviceArray, factor: float | DeviceArray
) -> DeviceArray:
    """See `numbadrop.kernels.cross_entropy_gradient`; a label out of range gives a row of NaN."""
    return _run(logits, labels, factor, DeviceArray.empty(logits.shape, logits.dtype))
