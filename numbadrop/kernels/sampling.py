"""Drawing units without replacement."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from numbadrop.index_set import IndexSet
from numbadrop.kernels.jit import DONE
from numbadrop.kernels.memory import array_data, first_of, load, load_index, store, words_behind
from numbadrop.kernels.task import run_task
from numbadrop.kernels.windows import Axis, unit

__all__ = ["sample_units"]


class _Keys(NamedTuple):
    one: float
    """Of the type of the keys, which are below it."""


def _sample_part(task, part, parts):
    (one,) = first_of(task)
    words = words_behind(task)
    keys, out = array_data(load_index(words, 0)), array_data(load_index(words, 4))
    axis = Axis(8, load_index(words, 2), load_index(words, 1))
    left = load_index(words, 3)
    i = 0
    while left > 0:
        # Of the units that are not yet decided on, this share is still wanted. Written in any
        # case, and then perhaps over: a branch would be foretold wrongly every other time.
        store(out, unit(axis, i))
        taken = int(load(one, keys + i * 8) * (axis.size - i) < left)
        out += 8 * taken
        left -= taken
        i += 1
    return DONE


def sample_units(units: IndexSet, keep: int, rng: np.random.Generator) -> IndexSet:
    """Draw units of a set without replacement, each as likely as any other.

    Parameters
    ----------
    units : IndexSet
    keep : int
        How many to draw, in ``[1, len(units)]``.
    rng : numpy.random.Generator

    Returns
    -------
    IndexSet
        A subset, on the same axis.

    Raises
    ------
    TypeError
        If `rng` is something else.
    ValueError
        If `keep` is out of range.

    References
    ----------
    D. E. Knuth, The Art of Computer Programming 2, section 3.4.2, algorithm S: the units come in
    ascending order, where a permutation would have to be sorted.

    Examples
    --------
    >>> drawn = sample_units(IndexSet([1, 3, 4], 6), 2, np.random.default_rng(0))
    >>> len(drawn), drawn.size
    (2, 6)
    """
    if not 1 <= keep <= len(units):
        raise ValueError(f"keep must be in [1, {len(units)}], got {keep}")
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng must be a numpy.random.Generator, got {type(rng).__name__}")
    if keep == len(units):
        return units
    keys = rng.random(len(units))
    chosen = np.empty(keep, np.int64)
    run_task(
        _sample_part, keys.dtype, _Keys(1.0),
        id(keys), units.address, len(units), keep, id(chosen), parallel=False,
    )  # fmt: skip
    return IndexSet._trusted(chosen, units.size)
