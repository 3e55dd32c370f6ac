"""Running the parts of a kernel on a crew of threads.

A kernel is a native function ``kernel(task, part, parts)`` that does one of `parts` equal shares
of the work that `task`, a block of memory, describes, and returns `DONE`. The crew are Python
threads that wait, and work, in native code without the interpreter lock.

Why not Numba's own `prange`: its workqueue layer, the only one that pip brings to macOS, ends the
process when two threads use it at once; OpenMP ends it after a fork; and both hand each thread its
share in advance, so that on a machine that does something else too everybody spins for the one
thread that was not scheduled (measured: a training step ten times as long beside one busy
process). Here each thread takes a part of its own first, the same one of every task, because what
an earlier kernel left in the cache of its core is most often what this part needs, and then those
that nobody else has begun.
"""

from __future__ import annotations

import atexit
import ctypes
import operator
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numbadrop.kernels.atomics import (
    atomic_add,
    atomic_exchange,
    atomic_load,
    compare_and_swap,
    give_way,
    relax,
)
from numbadrop.kernels.cpus import default_threads
from numbadrop.kernels.jit import DONE, inner, native_function
from numbadrop.kernels.memory import load_index, pointer, store

__all__ = [
    "OUT_OF_MEMORY", "UNDONE", "crew_memory", "get_num_threads", "run", "set_num_threads",
    "work_at_once",
]  # fmt: skip

OUT_OF_MEMORY = "there is no memory for what a kernel needs, its result is undefined"

# What threads share: words of 8 bytes, apart where they are contended for.
_APART = 128
"""Two cache lines: Apple's are as long, and Intel's come in pairs."""
_NUMBER = 0
"""Of the current task; the first is 1."""
_KERNEL = 1 * 8
_TASK = 2 * 8
_FAILED = 3 * 8
"""How many parts of the current task have."""
_PARTS = 4 * 8
"""Of each task."""
_PATIENCE = 5 * 8
"""Looks that a caller takes at whether others are done, before it offers them its core."""
_DONE = 1 * _APART
_ASLEEP = 2 * _APART
_STATE = 3 * _APART
"""Of the crew: `_FREE`, `_IN_USE` for a caller's task, or `_CLOSED` for ever."""
_TAKEN = 4 * _APART
"""For each part, apart: the number of the last task of which it was taken, at first 0. All parts of
a task are taken before the next has a number: who comes late with an old number takes none."""
_FREE, _IN_USE, _CLOSED = 0, 1, 2
_NO_HELPERS, _NOT_MADE = 0, -1
"""In place of the address of what threads share: there is one thread, or its crew is still to be
made."""
UNDONE = -1
"""In place of the number of parts that have failed: nothing has been done yet."""
_MOST_THREADS = 4095
"""More than a machine has, so that a mistyped number does not start a million."""

_WAKEFULNESS = 3e-4
"""Seconds that a thread looks for work before it goes to sleep: longer than the gap between two
kernels of a training step, since to be woken takes as long as a kernel."""

_LONGEST_WAIT = 2.0
"""Seconds that ending the threads may take."""


@intrinsic
def _call(typingctx: Any, kernel: Any, task: Any, part: Any, parts: Any) -> Any:
    i64 = types.int64

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kernel, task, part, parts = args
        word = ir.IntType(64)
        kind = ir.FunctionType(word, [ir.PointerType(), word, word])
        function = builder.inttoptr(kernel, kind.as_pointer())
        return builder.call(function, [pointer(builder, task), part, parts])

    return i64(i64, i64, i64, i64), codegen


@inner
def _work_alone(kernel, task):
    """Do all of a task on this thread; return how many parts have failed."""
    return 0 if _call(kernel, task, 0, 1) == DONE else 1


@inner
def _take_parts(shared, number, own, parts):
    """Do the parts of a task that nobody has taken, the thread's own first."""
    for n in range(parts):
        part = (own + n) % parts
        taken = shared + _TAKEN + part * _APART
        if atomic_load(taken) == number - 1 and compare_and_swap(taken, number - 1, number):
            # Until this part is done the task stays what it is.
            kernel, task = load_index(shared, _KERNEL // 8), load_index(shared, _TASK // 8)
            if _call(kernel, task, part, parts) != DONE:
                atomic_add(shared + _FAILED, 1)
            atomic_add(shared + _DONE, 1)


def _serve(shared, own, parts, patience):
    """Count as awake, and work until so many looks in a row have found no new task."""
    atomic_add(shared + _ASLEEP, -1)
    seen = -1
    waited = 0
    while waited < patience:
        number = atomic_load(shared + _NUMBER)
        if number != seen:
            _take_parts(shared, number, own, parts)
            seen = number
            waited = 0
        else:
            waited += 1
            relax()
    atomic_add(shared + _ASLEEP, 1)


@inner
def _work_through(shared, kernel, task):
    """Make a task the current one; when all its parts are done, return how many have failed.

    Where the crew is not free, the caller does all of it alone. It is one native function, so that
    no exception, such as the one of Ctrl-C, can send the caller away, to free what other threads
    still work on, or with the crew marked as in use.
    """
    if not compare_and_swap(shared + _STATE, _FREE, _IN_USE):
        return _work_alone(kernel, task)
    store(shared + _KERNEL, kernel)
    store(shared + _TASK, task)
    store(shared + _FAILED, 0)
    parts, patience = load_index(shared, _PARTS // 8), load_index(shared, _PATIENCE // 8)
    done = atomic_load(shared + _DONE)
    number = atomic_load(shared + _NUMBER) + 1
    atomic_exchange(shared + _NUMBER, number)
    _take_parts(shared, number, 0, parts)
    waited = 0
    while atomic_load(shared + _DONE) - done < parts:
        if waited < patience:
            waited += 1
            relax()
        else:
            give_way()  # The thread that we wait for may need this core.
    failed = atomic_load(shared + _FAILED)
    compare_and_swap(shared + _STATE, _IN_USE, _FREE)
    return failed


@inner
def work_at_once(shared, kernel, task, parallel):
    """Run a kernel; return how many parts have failed, or `UNDONE`.

    `shared` is what `crew_memory` returns. To make a crew, or to wake it, takes Python: see `run`.
    """
    if not parallel or shared == _NO_HELPERS:
        return _work_alone(kernel, task)
    if shared == _NOT_MADE or atomic_load(shared + _ASLEEP) > 0:
        return UNDONE
    return _work_through(shared, kernel, task)


class _Native(NamedTuple):
    serve: Any
    work_through: Any
    work_at_once: Any


@cache
def _native() -> _Native:
    i64 = types.int64
    return _Native(
        native_function(_serve, types.void(i64, i64, i64, i64)),
        native_function(_work_through.py_func, types.int64(i64, i64, i64)),
        native_function(work_at_once.py_func, types.int64(i64, i64, i64, i64)),
    )


@cache
def _sched_getcpu() -> Callable[[], int]:
    if not hasattr(os, "sched_setaffinity"):
        return lambda: -1
    # It takes less time than to hand on the interpreter lock, for which a helper that falls asleep
    # may wait just now.
    return getattr(ctypes.PyDLL(None), "sched_getcpu", lambda: -1)


def _current_cpu() -> int:
    """Return the CPU of this thread, -1 where threads cannot be sent to another."""
    return _sched_getcpu()()


class _Crew:
    """Threads that help whoever calls `run`; one caller at a time.

    Parameters
    ----------
    parts : int
        Of each task: one for each thread, the caller among them, whose own is part 0.
    """

    def __init__(self, parts: int) -> None:
        self._parts = parts
        self._native = _native()
        self._keeping_off = threading.RLock()
        self._owed: dict[int, set[int]] = {}
        """By the native id of a helper that is kept off a CPU: those that it may use."""
        # Not a semaphore: that is Python code, which a signal handler's exception can leave with
        # its lock held for ever.
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._stopped = False
        self._memory = np.zeros(_TAKEN + (parts + 1) * _APART, np.uint8)
        self.shared = self._memory.ctypes.data + -self._memory.ctypes.data % _APART
        self._asleep = ctypes.c_int64.from_address(self.shared + _ASLEEP)
        """Helpers that wait for the bell, will in a moment, or have just heard it."""
        self._state = ctypes.c_int64.from_address(self.shared + _STATE)
        self._patience = self._looks_in(_WAKEFULNESS)
        for at, number in ((_PARTS, parts), (_PATIENCE, self._patience // 8)):
            ctypes.c_int64.from_address(self.shared + at).value = number
        self._cpus: dict[int, int] = {}
        """By the native id of a helper that sleeps: the CPU on which it fell asleep."""
        self._threads: list[threading.Thread] = []
        try:
            for own in range(1, parts):
                name = f"numbadrop-{own}"
                thread = threading.Thread(target=self._work, args=(own,), name=name, daemon=True)
                thread.start()
                self._threads.append(thread)
                self._asleep.value += 1
        except RuntimeError:
            pass  # The system allows no more: those that are there share all parts.
        except BaseException:
            self.stop()
            raise

    def _looks_in(self, seconds: float) -> int:
        """Return how many looks a thread takes in that time; CPUs differ by a factor of 20."""
        looks = 1000
        times = []
        for _ in range(5):
            start = time.perf_counter()
            self._native.serve(self.shared, 0, 0, looks)  # There is nothing to do yet.
            times.append(time.perf_counter() - start)
        return int(looks * seconds / min(times))

    def _work(self, own: int) -> None:
        helper = threading.get_native_id()
        while True:
            self._cpus[helper] = _current_cpu()
            self._bell.get()
            self._cpus.pop(helper, None)
            if self._stopped:
                return
            self._native.serve(self.shared, own, self._parts, self._patience)

    def _ring(self, times: int) -> None:
        """Wake so many helpers, and none of them on the CPU of the caller, who works there at once.

        Linux may put one back where it fell asleep, to wait beside an idle CPU until the work is
        done, and again the next time (measured: half of the speed, for up to a second). It chooses
        when a thread is woken, so that a helper must keep off no longer than that.
        """
        # Two at once would take what the other forbids for what was allowed. Nobody waits: an
        # exception at the wrong instant can leave the lock held.
        keeps_off = self._keeping_off.acquire(blocking=False)
        try:
            if keeps_off:
                self._let_back()  # whom an exception has left
                here = _current_cpu()
                for helper, cpu in list(self._cpus.items()):
                    if cpu == here >= 0:
                        with suppress(OSError):  # Somebody may have forbidden it.
                            self._owed[helper] = os.sched_getaffinity(helper)
                            os.sched_setaffinity(helper, self._owed[helper] - {here})
            for _ in range(times):
                self._bell.put(None)
        finally:
            if keeps_off:
                self._let_back()
                self._keeping_off.release()

    def _let_back(self) -> None:
        for helper, affinity in list(self._owed.items()):
            with suppress(OSError):
                os.sched_setaffinity(helper, affinity)
            self._owed.pop(helper, None)

    def run(self, kernel: int, task: int) -> int:
        """Return how many parts have failed."""
        # Who falls asleep just now misses this task either way. Who was rung for may not be awake
        # yet; an exception, such as the one of Ctrl-C, may have left some to ring for.
        if self._asleep.value and self._state.value == _FREE:
            missing = self._asleep.value - self._bell.qsize()
            if missing > 0:
                self._ring(missing)
        failed: int = self._native.work_through(self.shared, kernel, task)
        return failed

    def stop(self) -> None:
        """End the threads, after what they are at; who still calls `run` works alone."""
        self._state.value = _CLOSED
        self._stopped = True
        for _ in range(self._parts):
            self._bell.put(None)
        end = time.monotonic() + _LONGEST_WAIT
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))


_threads = default_threads()
_crew: _Crew | None = None
_making = threading.RLock()
_is_under_way = False


def get_num_threads() -> int:
    """Return how many threads a kernel uses, the caller's among them.

    Examples
    --------
    >>> former = get_num_threads()
    >>> set_num_threads(1)
    >>> get_num_threads()
    1
    >>> set_num_threads(former)
    """
    return _threads


def set_num_threads(threads: int) -> None:
    """Set how many threads a kernel uses, the caller's among them.

    The default is NUMBA_NUM_THREADS, else the CPUs that this process may use, or that the quota of
    a container pays for. Results do not depend on it.

    Parameters
    ----------
    threads : int
        At least 1.

    Raises
    ------
    TypeError
        If `threads` is not an integer.
    ValueError
        If `threads` is not in [1, 4095].

    Examples
    --------
    >>> import numpy as np
    >>> from numbadrop.kernels import matmul_at
    >>> x = np.random.default_rng(0).random((500, 500))
    >>> former, product = get_num_threads(), matmul_at(x, x)
    >>> set_num_threads(1)
    >>> bool((matmul_at(x, x) == product).all())
    True
    >>> set_num_threads(former)
    """
    global _crew, _threads
    try:
        threads = operator.index(threads)
    except TypeError:
        raise TypeError(f"threads must be an integer, got {threads!r}") from None
    if not 1 <= threads <= _MOST_THREADS:
        raise ValueError(f"threads must be in [1, {_MOST_THREADS}], got {threads}")
    with _making:
        former, _crew, _threads = _crew, None, threads
    if former is not None:
        former.stop()


def _dismiss() -> None:
    global _crew
    former, _crew = _crew, None
    if former is not None:
        former.stop()


def _forget() -> None:
    """Begin anew in a child by fork, where the crew's threads do not exist."""
    global _crew, _making, _is_under_way
    _crew = None
    _making = threading.RLock()
    _is_under_way = False


atexit.register(_dismiss)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _crew_at_hand() -> _Crew | None:
    """Return the crew, made if need be, None to a signal's handler in the thread that makes it."""
    global _crew, _is_under_way
    with _making:
        if _crew is None and not _is_under_way:
            try:
                _is_under_way = True
                _crew = _Crew(_threads)
            finally:
                _is_under_way = False
        return _crew


def crew_memory() -> tuple[_Crew | None, int]:
    """Return what `work_at_once` works with, and who has to live until that returns."""
    crew = _crew
    if crew is not None:
        return crew, crew.shared
    return None, _NO_HELPERS if _threads == 1 else _NOT_MADE


def run(kernel: int, task: int, parallel: bool) -> None:
    """Run a kernel on a task: on the crew if `parallel` and it is free, else on this thread.

    Both are addresses, of what lives until the return.

    Raises
    ------
    MemoryError
        If there is no memory for what the kernel needs. What it writes is undefined then.
    """
    crew, shared = crew_memory()
    failed = _native().work_at_once(shared, kernel, task, parallel)
    if failed == UNDONE:
        crew = crew or _crew_at_hand()
        if crew is None:
            failed = _native().work_at_once(_NO_HELPERS, kernel, task, parallel)
        else:
            failed = crew.run(kernel, task)
    if failed > 0:
        raise MemoryError(OUT_OF_MEMORY)
