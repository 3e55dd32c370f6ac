"""How many CPUs this process may use: all, those of its affinity, or what a container pays for."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numba

__all__ = ["default_threads"]

_GROUPS, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def default_threads() -> int:
    """Return the number of threads that the user has set for Numba, else that of usable CPUs.

    A quota on CPU time, as containers have, leaves all CPUs of the machine to be seen. Threads that
    are more would use it up in the first part of each period, and then all be stopped, those in the
    middle of a kernel too.
    """
    threads: int = numba.config.NUMBA_NUM_THREADS
    if "NUMBA_NUM_THREADS" in os.environ or threads != numba.config.NUMBA_DEFAULT_NUM_THREADS:
        return threads
    return max(1, math.ceil(min([threads, *_quotas()])))


def _quotas() -> Iterator[float]:
    """Yield how many CPUs each control group of Linux pays for that this process is part of."""
    for line in _lines(_MEMBERSHIP):
        number, _, rest = line.partition(":")
        controllers, _, own = rest.partition(":")
        group = _GROUPS / own.lstrip("/")  # within a container that is most often all there is
        if number == "0":  # the second version: one group for all controllers, in other groups
            for outer in (group, *group.parents):
                yield from _quota(" ".join(_lines(outer / "cpu.max")))
        elif "cpu" in controllers.split(","):
            group = _GROUPS / "cpu" / own.lstrip("/")
            for outer in (group, *group.parents):
                words = _lines(outer / "cpu.cfs_quota_us") + _lines(outer / "cpu.cfs_period_us")
                yield from _quota(" ".join(words))


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(errors="replace").splitlines()
    except OSError:  # no such group, or another system
        return []


def _quota(limit: str) -> Iterator[float]:
    """Yield the CPUs of microseconds in a period of so many, if they are limited."""
    with suppress(ValueError, ZeroDivisionError):  # such as "max 100000"
        time, period = map(int, limit.split())
        if time > 0:  # the first version says -1
            yield time / period
