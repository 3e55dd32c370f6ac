"""A task that several contestants do, each checked before any of them is timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbadrop.bench.clock import Quartiles, Run, quartiles
from numbadrop.errors import UserError

__all__ = [
    "DENSE",
    "EXTRACTED",
    "INDEXED",
    "OURS",
    "OURS_DENSE",
    "Contest",
    "Contestant",
    "Result",
    "WrongResultError",
    "relative_error",
]

Array = NDArray[Any]

OURS, OURS_DENSE = "numbadrop", "numbadrop, all units"
DENSE, INDEXED, EXTRACTED = "NumPy, all units and masks", "NumPy, np.ix_", "NumPy, extracted before"


class WrongResultError(UserError, ArithmeticError):
    """A contestant computes something else than the others: its time would mean nothing."""

    exit_code = 1


class Contestant(NamedTuple):
    """One way to do the task."""

    run: Run
    error: Callable[[], float]
    """Runs once; returns the error relative to the same in float64."""


def relative_error(found: Array, expected: Array) -> float:
    """Return the largest difference, relative to the largest value expected."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@dataclass(frozen=True)
class Contest:
    """A task and those who do it.

    Parameters
    ----------
    title : str
    keep : float
        Fraction of the units that is kept.
    contestants : mapping of str to Contestant
        The first is the one that the others are compared with. ``way [setting]`` are settings of
        one way, of which the fastest counts.
    flops, traffic : float
        Of the kept units: operations, and bytes of the cache lines that hold operands and result.
    """

    title: str
    keep: float
    contestants: Mapping[str, Contestant]
    flops: float = 0.0
    traffic: float = 0.0

    def measure(self, rounds: int, turn: float, tolerance: float = 1e-3) -> Result:
        """Check all contestants, then time them.

        Parameters
        ----------
        rounds, turn
            As for `quartiles`.
        tolerance : float
            What rounding explains of a relative error in float32.

        Raises
        ------
        WrongResultError
            If a result is further from float64. Nothing has been timed then.
        """
        for name, contestant in self.contestants.items():
            error = contestant.error()
            if not error <= tolerance:
                raise WrongResultError(
                    f"{self.title}: the result of {name} is wrong, its relative error against "
                    f"float64 is {error:.1e}, and rounding explains {tolerance:.0e}"
                )
        runs = {name: contestant.run for name, contestant in self.contestants.items()}
        best: dict[str, Quartiles] = {}
        for name, seconds in quartiles(runs, rounds, turn).items():
            way = name.partition(" [")[0]
            best[way] = min(best.get(way, seconds), seconds, key=lambda each: each[1])
        return Result(self.title, self.keep, best, self.flops, self.traffic)


@dataclass(frozen=True)
class Result:
    """Quartiles of the seconds that each way takes, and what the task is."""

    title: str
    keep: float
    seconds: Mapping[str, Quartiles]
    flops: float
    traffic: float

    def median(self, way: str) -> float:
        """Return the median of the seconds of a way."""
        return self.seconds[way][1]
