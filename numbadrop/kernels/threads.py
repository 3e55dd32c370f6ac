"""Running the parts of a kernel on threads.

A kernel is a native function ``kernel(task, part, parts)`` that does one of `parts` equal shares
of the work that `task`, a block of memory, describes. One parallel region serves every kernel and
element type, so that only serial code is compiled again for each.
"""

from __future__ import annotations

import ctypes
import os
import threading
from contextlib import nullcontext
from typing import Any

import numba
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numbadrop.kernels.jit import Kernel, entry
from numbadrop.kernels.memory import pointer

__all__ = ["run"]

_forked = False
"""Whether this process is a child by fork: OpenMP's threads do not exist here, and it would abort."""

_one_region = threading.Lock()
"""Held around each region under the workqueue layer, which aborts on a second one."""


def _after_fork() -> None:
    global _forked, _one_region
    _forked = True
    _one_region = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@intrinsic
def _call(typingctx: Any, kernel: Any, task: Any, part: Any, parts: Any) -> Any:
    i64 = types.int64

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kernel, task, part, parts = args
        word = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [ir.PointerType(), word, word])
        function = builder.inttoptr(kernel, kind.as_pointer())
        builder.call(function, [pointer(builder, task), part, parts])
        return context.get_dummy_value()

    return types.void(i64, i64, i64, i64), codegen


@entry
def _region(kernel, task, parts):
    for part in numba.prange(parts):
        _call(kernel, task, part, parts)


def run(kernel: Kernel, task: ctypes.Array[Any], parallel: bool) -> None:
    """Run `kernel` on `task`, on Numba's number of threads if `parallel`, else on this one."""
    parts = numba.get_num_threads() if parallel and not _forked else 1
    address = ctypes.addressof(task)
    if parts == 1:
        kernel.call(address, 0, 1)
        return
    with _one_region if _layer_is_workqueue() else nullcontext():
        _region(kernel.address, address, parts)


def _layer_is_workqueue() -> bool:
    try:
        return numba.threading_layer() == "workqueue"
    except ValueError:  # No region has run yet, so the layer is not chosen: be careful.
        return True
