"""Layers in a row, and layers around which the input is carried past."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from numbadrop.index_set import IndexSet
from numbadrop.nn.activation import Activation, Input
from numbadrop.nn.activations import LeakyReLU, ReLU
from numbadrop.nn.convolution import Conv2d
from numbadrop.nn.dropout import BatchwiseDropout, Pattern
from numbadrop.nn.linear import Linear
from numbadrop.nn.module import Module

__all__ = ["Residual", "Sequential"]


class Sequential(Module):
    """Apply layers one after another.

    In training, where a `BatchwiseDropout` follows a layer that makes units, with nothing but
    unit-wise layers in between, its pattern is drawn before that layer runs, which then makes
    only the units that will be kept.

    Parameters
    ----------
    *layers : Module

    Attributes
    ----------
    layers : tuple of Module
        Fixed: to replace one, make another Sequential of the others and the new one.

    Raises
    ------
    TypeError
        If a layer is no Module.

    Examples
    --------
    >>> import numpy as np
    >>> from numbadrop.nn import Linear, ReLU
    >>> net = Sequential(Linear(4, 8), ReLU(), BatchwiseDropout(0.5), Linear(8, 3)).seed(0)
    >>> net(np.ones((2, 4), np.float32)).value.shape
    (2, 3)
    """

    def __init__(self, *layers: Module) -> None:
        for position, layer in enumerate(layers):
            if not isinstance(layer, Module):
                raise TypeError(f"layer {position} must be a Module, got {type(layer).__name__}")
        self._layers = layers
        self.unitwise = all(layer.unitwise for layer in layers)
        # A layer that makes units, and the unit-wise layers behind it. The input makes units too.
        stages: list[tuple[Module | None, list[Module]]] = [(None, [])]
        for layer in _flat(layers):
            if layer.unitwise:
                stages[-1][1].append(layer)
            else:
                stages.append((layer, []))
        self._stages = stages

    @property
    def layers(self) -> tuple[Module, ...]:
        """The layers in their order."""
        return self._layers

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield the layers, named by their positions, and modules that a subclass has besides."""
        yield from ((str(position), layer) for position, layer in enumerate(self.layers))
        yield from super().children()

    def out_units(self, units: IndexSet | None) -> IndexSet | None:
        """Return what the last layer makes of what the others make."""
        for layer in self.layers:
            units = layer.out_units(units)
        return units

    def __call__(self, x: Input, units: IndexSet | None = None) -> Activation:
        """Return the output of the last layer; `units` are asked of the last that makes units."""
        x = Activation.of(x)
        for stage in self._stages:
            x = _run(*stage, x, units if stage is self._stages[-1] else None)
        return x


def _flat(layers: Iterable[Module]) -> Iterator[Module]:
    """Yield layers, and instead of rows of unit-wise ones what is in them.

    So that a dropout in them is seen, and drawn before what makes its units.
    """
    for layer in layers:
        if type(layer) is Sequential and layer.unitwise:
            yield from _flat(layer.layers)
        else:
            yield layer


def _run(
    producer: Module | None, tail: list[Module], x: Activation, wanted: IndexSet | None
) -> Activation:
    if producer is None:
        x, pattern, absorbed = x.take(wanted), None, 0
    else:
        dropout = next((layer for layer in tail if isinstance(layer, BatchwiseDropout)), None)
        pattern = None
        if dropout is not None and dropout.training:
            within = producer.out_units(x.units)
            # None: the producer drops units itself, nobody knows yet which.
            if within is not None:
                pattern = dropout.draw(within if wanted is None else wanted)
                wanted = pattern.units
        factors, absorbed, pattern = _absorb(producer, tail, pattern)
        x = producer(x, wanted, **factors)
    for layer in tail[absorbed:]:
        if pattern is not None and isinstance(layer, BatchwiseDropout):
            x = layer(x, pattern=pattern)
            # Others in the same tail, or the same once more, draw for themselves.
            pattern = None
        else:
            x = layer(x)
    return x


def _absorb(
    producer: Module, tail: list[Module], pattern: Pattern | None
) -> tuple[dict[str, float], int, Pattern | None]:
    """Find the layers behind `producer` whose work it can do itself.

    Factors of positive scale and not negative slope commute, so that any row of them is one pair.

    Returns
    -------
    factors : dict
        What to call the producer with; empty if there is nothing for it to do.
    absorbed : int
        How many layers of the tail that does.
    pattern : Pattern or None
        The one given, if the layer that it is for is not among them.
    """
    factors: dict[str, float] = {}
    # Of these classes alone: one that is derived from them may do something else.
    if type(producer) not in (Linear, Conv2d):
        return factors, 0, pattern
    for absorbed, layer in enumerate(tail):
        slope = _slope_of(layer)
        if slope is not None:
            factors["slope"] = factors.get("slope", 1.0) * slope
        elif type(layer).__call__ is not BatchwiseDropout.__call__:
            return factors, absorbed, pattern
        elif pattern is not None and layer.training:
            factors["scale"], pattern = pattern.scale, None
        elif layer.training:
            return factors, absorbed, pattern
    return factors, len(tail), pattern


def _slope_of(layer: Module) -> float | None:
    """Return the slope below zero of a layer that is x above it, if it is not negative."""
    if type(layer) is ReLU:
        return 0.0
    if type(layer) is LeakyReLU and layer.negative_slope >= 0:
        return layer.negative_slope
    return None


class Residual(Module):
    """Return x + block(x), on the units of x.

    The block is asked for exactly the units that x has: both branches share one pattern.

    Parameters
    ----------
    block : Module
        Makes as many units as it takes.

    Examples
    --------
    >>> import numpy as np
    >>> from numbadrop.nn import Linear
    >>> layer = Residual(Linear(6, 6, gain=0.0))
    >>> x = Activation.of(np.ones((1, 6), np.float32)).take(IndexSet([1, 4], 6))
    >>> layer(x).dense()
    array([[0., 1., 0., 0., 1., 0.]], dtype=float32)
    """

    def __init__(self, block: Module) -> None:
        if not isinstance(block, Module):
            raise TypeError(f"block must be a Module, got {type(block).__name__}")
        self.block = block

    def out_units(self, units: IndexSet | None) -> IndexSet | None:
        """Return `units`."""
        return units

    def __call__(self, x: Input, units: IndexSet | None = None) -> Activation:
        """Return the sum on the wanted units, which must be some of x's."""
        x = Activation.of(x)
        passed = x.take(units)
        return passed + self.block(x, passed.units)
