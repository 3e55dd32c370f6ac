"""Timing several ways of doing the same in one process, so that drift meets all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

__all__ = ["Quartiles", "Run", "quartiles"]

Run = Callable[[], object]
Quartiles = tuple[float, float, float]

SETTLING = 0.02
"""Seconds at the start of a turn that are not counted: the threads of whoever ran before still look
for work, on cores that this one needs. OpenMP's of GCC do so for up to 300,000 pauses."""


def quartiles(
    runs: Mapping[str, Run],
    rounds: int,
    turn: float,
    settling: float = SETTLING,
    after_turn: Callable[[], object] = lambda: None,
) -> dict[str, Quartiles]:
    """Return the quartiles of the seconds that each run takes.

    The order is mirrored from round to round, so that nobody always comes after the same one.

    Parameters
    ----------
    runs : mapping of str to callable
    rounds : int
        How often each has its turn.
    turn : float
        Seconds counted in a turn, of calls one right after the other, as in training; one call at
        least.
    settling : float
        Seconds of calls before those, not counted; one call at least.
    after_turn : callable
        Called after each turn.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for _ in range(rounds):
        for name in order:
            _calls(runs[name], settling)
            times[name] += _calls(runs[name], turn)
            after_turn()
        order.reverse()
    return {name: _quartiles(taken) for name, taken in times.items()}


def _calls(run: Run, seconds: float) -> list[float]:
    """Call until so many seconds have gone by; return what each call took."""
    times: list[float] = []
    began = now = time.perf_counter()
    while not times or now - began < seconds:
        start = time.perf_counter()
        run()
        now = time.perf_counter()
        times.append(now - start)
    return times


def _quartiles(times: list[float]) -> Quartiles:
    low, middle, high = np.percentile(times, (25, 50, 75))
    return float(low), float(middle), float(high)
