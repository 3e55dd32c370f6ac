"""Timing several ways of doing the same in one process, so that drift meets all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

Run = Callable[[], object]

SETTLED = 5
"""Calls of a block that are not counted: the threads of the library that ran before still look for
work, on cores that this one needs."""


def quartiles(
    runs: Mapping[str, Run], rounds: int, block: int
) -> dict[str, tuple[float, float, float]]:
    """Return the quartiles of the seconds that each run takes.

    Parameters
    ----------
    runs : mapping of str to callable
    rounds : int
        How often each has its turn.
    block : int
        Calls counted in a turn, one right after the other, as in training.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            for _ in range(SETTLED):
                run()
            for _ in range(block):
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
    return {name: tuple(np.percentile(t, (25, 50, 75))) for name, t in times.items()}
