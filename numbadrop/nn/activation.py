"""The values of some units, and which units they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbadrop.autograd import Variable
from numbadrop.index_set import IndexSet
from numbadrop.kernels.device import as_array
from numbadrop.ops import place_units, take_units

__all__ = ["Activation", "Input", "check_set"]

Array = NDArray[Any]


def check_set(units: IndexSet) -> IndexSet:
    """Return `units`, or refuse them: of a plain array nobody knows the axis."""
    if not isinstance(units, IndexSet):
        raise TypeError(
            f"units must be an IndexSet, got {type(units).__name__}: IndexSet(units, size) is one"
        )
    return units


@dataclass(frozen=True, slots=True, eq=False)
class Activation:
    """What a layer makes: the values of the units that take part, and the set of these units.

    Dropped units are absent, they are not zeros. The set travels beside the values, so that
    everything that touches the same units, such as both branches of a residual sum, sees the
    same set.

    Parameters
    ----------
    values : Variable, shape (batch, ..., len(units))
        Compact: units in `units` only, always on the last axis.
    units : IndexSet

    Raises
    ------
    ValueError
        If the last axis of `values` does not have one element for each unit.

    Examples
    --------
    >>> a = Activation(Variable([[1.0, 2.0]]), IndexSet([0, 2], 4))
    >>> b = Activation(Variable([[5.0]]), IndexSet([3], 4))
    >>> (a + b).dense()
    array([[1., 0., 2., 5.]])
    """

    values: Variable
    units: IndexSet

    # NumPy leaves `array + activation` to the activation.
    __array_ufunc__ = None

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        raise TypeError(
            "an Activation is no array: .value holds the units that take part, .dense() all of them"
        )

    def __post_init__(self) -> None:
        if self.values.shape[-1:] != (len(self.units),):
            raise ValueError(
                f"values must have {len(self.units)} units on their last axis, "
                f"got shape {self.values.shape}"
            )

    @classmethod
    def of(cls, x: Input) -> Activation:
        """Return `x` itself, or the activation of all units of an array, on the host or a GPU."""
        if isinstance(x, Activation):
            return x
        if isinstance(x, np.ndarray) or hasattr(x, "__cuda_array_interface__"):
            x = Variable(as_array(x))
        elif not isinstance(x, Variable):
            raise TypeError(f"x must be an ndarray, Variable or Activation, got {type(x).__name__}")
        if x.value.ndim < 2:
            raise ValueError(f"x must have shape (batch, ..., units), got {x.shape}")
        if x.dtype not in (np.float32, np.float64):
            raise TypeError(f"x must be float32 or float64, got {x.dtype}")
        return cls(x, IndexSet.all(x.shape[-1]))

    @property
    def value(self) -> Array:
        """The compact values as a plain array."""
        return self.values.value

    def take(self, units: IndexSet | None) -> Activation:
        """Return the activation of `units`, which must be some of these; None: of all of these."""
        if units is None or check_set(units) == self.units:
            return self
        return Activation(take_units(self.values, self.units.positions_of(units)), units)

    def place(self, units: IndexSet) -> Activation:
        """Return the activation on `units`, which hold all of these, with zeros for the others."""
        if check_set(units) == self.units:
            return self
        return Activation(place_units(self.values, units.positions_of(self.units)), units)

    def dense(self) -> Array:
        """Return a plain array, shape (batch, ..., units.size), with zeros for dropped units."""
        return self.place(IndexSet.all(self.units.size)).value

    def __add__(self, other: Input) -> Activation:
        """Return the sum, on the union of the units: a dropped unit adds nothing."""
        other = Activation.of(other)
        units = self.units.union(other.units)
        return Activation(self.place(units).values + other.place(units).values, units)

    __radd__ = __add__


Input = Array | Variable | Activation
