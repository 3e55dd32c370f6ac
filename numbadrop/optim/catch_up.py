"""Steps that inactive weights have missed, made up for when the weights are needed.

With the gradient 0, a step of momentum descent is a linear map of a weight and its slot, the same
2 x 2 matrix for all weights. The steps that a weight has missed are one product of such matrices,
whatever their number: so nothing but the block that is needed has to be touched, and the result
is that of a step on all weights, to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbadrop.index_set import IndexSet, as_matrix_index
from numbadrop.kernels.catch_up import apply_missed

__all__ = ["Lag"]

Array = NDArray[Any]

_WINDOW = 255
"""After so many steps all weights catch up, so that a byte can count what a weight has seen."""


class Lag:
    """How many of the last steps each weight of one parameter has seen.

    Parameters
    ----------
    element : callable
        The element rule.
    value : ndarray, shape (..., n_out), C-contiguous
        The weights, changed in place.
    slots : ndarray, shape (1, ..., n_out), C-contiguous
        Their one slot, changed in place.
    """

    def __init__(self, element: Callable[..., None], value: Array, slots: Array) -> None:
        self._element = element
        # No view of them is kept: in a copy of this it would be an array of its own.
        self.value, self._slots = value, slots
        matrix = math.prod(value.shape[:-1]), value.shape[-1]
        self._seen = np.zeros(matrix, np.uint8)
        self._all = tuple(map(IndexSet.all, matrix))
        self._maps = np.empty((_WINDOW, 2, 2))
        self._steps = 0

    def refresh(self, *index: IndexSet | None) -> None:
        """Let a block catch up; see `Parameter.refresh`."""
        if self._steps == 0:
            return
        if all(units is None or units.is_all for units in index):
            self._apply(None, None, 0)
            self._steps = 0
        else:
            self._apply(*as_matrix_index(index, self.value.shape), self._steps)

    def advance(
        self, rule: tuple[float, ...], rows: IndexSet | None, cols: IndexSet | None
    ) -> None:
        """Count a step, which the caller is about to make on a block of the matrix of weights."""
        if self._steps == _WINDOW:
            self.refresh()
        self._apply(rows, cols, self._steps + 1)
        # The columns are what becomes of a weight and its slot that are (1, 0) and (0, 1).
        columns = np.eye(2)
        self._element(rule, columns[0], columns[1:], slice(None), np.zeros(2))
        self._maps[self._steps] = columns
        self._steps += 1

    def _apply(self, rows: IndexSet | None, cols: IndexSet | None, seen: int) -> None:
        """Apply all missed steps to a block, and mark it as having seen so many."""
        block = (
            (every if units is None else units).indices
            for units, every in zip((rows, cols), self._all, strict=True)
        )
        value, slot = (array.reshape(self._seen.shape) for array in (self.value, self._slots))
        apply_missed(value, slot, self._seen, self._maps[: self._steps], *block, seen)
