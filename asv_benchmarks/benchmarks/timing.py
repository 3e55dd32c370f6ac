"""What the benchmarks share: how long is measured, that nothing is compiled, and ratios."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numba.core import event

__all__ = ["Timed", "ratio"]

Run = Callable[[], object]


class _Compilations(event.Listener):
    count = 0

    def on_start(self, event: Any) -> None:
        self.count += 1

    def on_end(self, event: Any) -> None:
        pass


_compilations = _Compilations()
# Whatever compiles takes this lock.
event.register("numba:compiler_lock", _compilations)


class Timed:
    """Base class: `prepare` makes the operands, `run` is what is timed, already compiled."""

    rounds = 1
    repeat = (5, 20, 0.3)
    sample_time = 0.005
    warmup_time = 0.05

    def setup(self, *params: Any) -> None:
        self.prepare(*params)
        self.run()  # compiles
        self.run()  # lets threads that were started for the first time settle
        self.compiled = _compilations.count

    def teardown(self, *_: Any) -> None:
        if _compilations.count != getattr(self, "compiled", _compilations.count):
            raise RuntimeError("something was compiled while the clock ran")

    def prepare(self, *params: Any) -> None:
        raise NotImplementedError

    def run(self) -> object:
        raise NotImplementedError


def ratio(ours: Run, peer: Run, rest: float = 0.0, rounds: int = 7) -> float:
    """Return the median over rounds of our time divided by the peer's: the less, the better.

    The two take turns, so that drift meets both. A turn is a block of calls, the first of which
    does not count.

    Parameters
    ----------
    ours, peer : callable
    rest : float
        Seconds to wait after the peer's turn: threads of OpenBLAS look for work for 2^28 cycles, on
        cores that we would need.
    rounds : int
    """
    one = max(_seconds(run, 1) for run in (ours, peer, ours, peer))
    block = max(1, round(0.02 / one))
    found = []
    for _ in range(rounds):
        theirs = _seconds(peer, block)
        time.sleep(rest)
        found.append(_seconds(ours, block) / theirs)
    return float(np.median(found))


def _seconds(run: Run, calls: int) -> float:
    run()
    began = time.perf_counter()
    for _ in range(calls):
        run()
    return time.perf_counter() - began
