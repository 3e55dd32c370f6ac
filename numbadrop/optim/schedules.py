"""Learning-rate schedules: functions of the time in epochs that return a factor.

Set ``optimizer.lr_scale = schedule(epoch)`` before a step; the epoch may be a fraction.
"""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["constant", "cosine", "exponential", "step"]

Schedule = Callable[[float], float]


def constant() -> Schedule:
    """Return the schedule that is always 1.

    Examples
    --------
    >>> constant()(7.5)
    1.0
    """
    return lambda epoch: 1.0


def exponential(rate: float) -> Schedule:
    """Return the schedule ``exp(-rate * epoch)``.

    Parameters
    ----------
    rate : float
        Decay an epoch, finite and not negative.

    Examples
    --------
    >>> round(exponential(0.01)(100), 4)
    0.3679
    """
    if not 0 <= rate < math.inf:
        raise ValueError(f"rate must be finite and not negative, got {rate}")
    return lambda epoch: math.exp(-rate * epoch)


def cosine(epochs: float) -> Schedule:
    """Return the schedule that falls from 1 to 0 in `epochs` along half a cosine, and stays.

    Parameters
    ----------
    epochs : float
        Positive.

    References
    ----------
    I. Loshchilov and F. Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR
    2017, equation 5 without the restarts.

    Examples
    --------
    >>> schedule = cosine(10)
    >>> [round(schedule(epoch), 4) for epoch in (0, 2.5, 5, 10, 11)]
    [1.0, 0.8536, 0.5, 0.0, 0.0]
    """
    if not 0 < epochs < math.inf:
        raise ValueError(f"epochs must be finite and positive, got {epochs}")
    return lambda epoch: (1 + math.cos(math.pi * min(epoch / epochs, 1))) / 2


def step(every: float, factor: float) -> Schedule:
    """Return the schedule that is multiplied by `factor` each time `every` epochs are over.

    Parameters
    ----------
    every : float
        Epochs, positive.
    factor : float
        In (0, 1].

    Examples
    --------
    >>> [step(2, 0.1)(epoch) for epoch in (0, 1.9, 2, 4)]
    [1.0, 1.0, 0.1, 0.010000000000000002]
    """
    if not 0 < every < math.inf:
        raise ValueError(f"every must be finite and positive, got {every}")
    if not 0 < factor <= 1:
        raise ValueError(f"factor must be in (0, 1], got {factor}")
    return lambda epoch: float(factor ** (epoch // every))
