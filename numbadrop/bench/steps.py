"""Whole training steps of a fully connected net: here with each kind of dropout, and by others.

SGD with momentum on the mean cross-entropy of one batch of random data. Each step draws its
patterns anew.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from numbadrop.bench.clock import Run
from numbadrop.bench.contest import Array, Contest, Contestant, relative_error
from numbadrop.index_set import IndexSet
from numbadrop.kernels import reference, sample_units
from numbadrop.nn import BatchwiseDropout, Dropout, Linear, Module, ReLU, Sequential
from numbadrop.optim import SGD
from numbadrop.train import train_step

__all__ = ["BATCHWISE", "NO_DROPOUT", "steps"]

BATCHWISE, INDEPENDENT, NO_DROPOUT = (
    "numbadrop, batchwise dropout", "numbadrop, independent dropout", "numbadrop, no dropout",
)  # fmt: skip
LEARNING_RATE, MOMENTUM = 0.1, 0.9
"""While a step is checked. Afterwards the rate is 0: that costs the same, and nothing diverges."""


def steps(widths: tuple[int, ...], batch: int, keep: float, torch: Any = None) -> Contest:
    """Return the contest of training steps, with dropout on input and hidden units.

    Parameters
    ----------
    widths : tuple of int
        Inputs, hidden units, classes.
    batch : int
    keep : float
        Fraction of the units that is kept, in (0, 1].
    torch : module, optional
        PyTorch.
    """
    rng = np.random.default_rng(0)
    x = rng.random((batch, widths[0]), np.float32)
    labels = rng.integers(widths[-1], size=batch)
    contestants = {}
    kinds: dict[str, Callable[[float], Module] | None] = {
        BATCHWISE: BatchwiseDropout,
        INDEPENDENT: Dropout,
        NO_DROPOUT: None,
    }
    for name, kind in kinds.items():
        contestants[name] = _our_contestant(_net(widths, kind, 1 - keep), x, labels)
    for name, dense in (("NumPy, all units and masks", True), ("NumPy, np.ix_", False)):
        contestants[name] = _numpy_contestant(widths, x, labels, keep, dense)
    if torch is not None:
        for name, p in (("PyTorch, its dropout", 1 - keep), ("PyTorch, no dropout", 0.0)):
            contestants[name] = _torch_contestant(torch, widths, x, labels, p)
    kept = [round(keep * n) for n in widths[:-1]] + [widths[-1]]
    flops = 6.0 * batch * sum(a * b for a, b in pairwise(kept)) - 2.0 * batch * kept[0] * kept[1]
    title = f"step, {'-'.join(map(str, widths))}, batch {batch}"
    return Contest(title, keep, contestants, flops)


def _net(
    widths: tuple[int, ...], dropout: Callable[[float], Module] | None, p: float
) -> Sequential:
    layers: list[Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [dropout(p)] if dropout is not None else []
        layers += [Linear(n_in, n_out), ReLU()]
    return Sequential(*layers[:-1]).seed(0)


def _parameters(net: Sequential) -> list[Array]:
    return [parameter.value for parameter in net.parameters()]


def _changed_wrongly(
    parameters: list[Array], step: Run, x: Array, labels: Array, patterns: list[IndexSet]
) -> float:
    """Take a first step; return the error of what it changes against NumPy's in float64."""
    before = [value.astype(float) for value in parameters]
    expected = [value.copy() for value in before]
    numpy_step(expected, None, x, labels, patterns, True, LEARNING_RATE)
    step()
    changes = (
        (found - old, new - old)
        for found, new, old in zip(parameters, expected, before, strict=True)
    )
    return max(relative_error(found, new) for found, new in changes)


def _our_contestant(net: Sequential, x: Array, labels: Array) -> Contestant:
    optimizer = SGD(net.parameters(), LEARNING_RATE, MOMENTUM)

    def error() -> float:
        # A mask for each value is random: what is checked of such a net is the rest of it.
        independent = any(isinstance(layer, Dropout) for layer in net.layers)
        net.train(not independent)
        ahead = copy.deepcopy(net).layers
        patterns = [
            layer.draw(IndexSet.all(n)).units
            for layer, n in zip(
                (layer for layer in ahead if isinstance(layer, BatchwiseDropout)),
                (len(value) for value in _parameters(net)[::2]), strict=False,
            )
        ]  # fmt: skip
        result = _changed_wrongly(
            _parameters(net), lambda: train_step(net, optimizer, x, labels), x, labels, patterns
        )
        net.train()
        optimizer.lr_scale = 0.0
        return result

    return Contestant(lambda: train_step(net, optimizer, x, labels), error)


def numpy_step(
    parameters: list[Array], momenta: list[Array] | None, x: Array, labels: Array,
    patterns: list[IndexSet], dense: bool, lr: float,
) -> None:  # fmt: skip
    """Take one step in plain NumPy, in the dtype of the parameters.

    Parameters
    ----------
    parameters : list of ndarray
        Weights and bias of each layer in turn, changed in place.
    momenta : list of ndarray, optional
        Of the parameters, changed in place; none at a first step.
    patterns : list of IndexSet
        Kept units of the input and of each hidden layer; empty: all of them.
    dense : bool
        Whether to compute all units and mask them, or to index the kept ones.
    lr : float
    """
    weights, biases = parameters[::2], parameters[1::2]
    classes = IndexSet.all(len(biases[-1]))
    sets = [*(patterns or [IndexSet.all(len(w)) for w in weights]), classes]
    dtype = weights[0].dtype.type
    units = [slice(None) if dense else each.indices for each in sets]
    blocks = [np.s_[:, :] if dense else np.ix_(a.indices, b.indices) for a, b in pairwise(sets)]
    factors: list[Any] = [dtype(each.size / len(each)) for each in sets]
    if dense and patterns:
        for n, each in enumerate(sets):
            mask = np.zeros(each.size, dtype)
            mask[each.indices] = factors[n]
            factors[n] = mask
    inputs = [x[:, units[0]] * factors[0]]
    kept = [w[block] for w, block in zip(weights, blocks, strict=True)]
    for n, (w, b) in enumerate(zip(kept, biases, strict=True)):
        z = inputs[n] @ w + b[units[n + 1]]
        inputs.append(np.maximum(z, 0) * factors[n + 1])
    g = reference.cross_entropy_gradient(z, labels, 1 / len(x)).astype(dtype, copy=False)
    for n in range(len(weights) - 1, -1, -1):
        gradients = (inputs[n].T @ g, g.sum(axis=0))
        if n > 0:
            g = (g @ kept[n].T) * (inputs[n] > 0) * factors[n]
        for k, index, gradient in (
            (2 * n, blocks[n], gradients[0]), (2 * n + 1, units[n + 1], gradients[1]),
        ):  # fmt: skip
            if momenta is not None:
                gradient += dtype(MOMENTUM) * momenta[k][index]
                momenta[k][index] = gradient
            parameters[k][index] -= dtype(lr) * gradient


def _numpy_contestant(
    widths: tuple[int, ...], x: Array, labels: Array, keep: float, dense: bool
) -> Contestant:
    parameters = [value.copy() for value in _parameters(_net(widths, None, 0.0))]
    momenta = [np.zeros_like(value) for value in parameters]
    rng = np.random.default_rng(0)
    every = [IndexSet.all(n) for n in widths[:-1]]

    def drawn() -> list[IndexSet]:
        return [sample_units(units, max(1, round(keep * len(units))), rng) for units in every]

    def error() -> float:
        patterns = drawn()

        def step() -> None:
            numpy_step(parameters, momenta, x, labels, patterns, dense, LEARNING_RATE)

        return _changed_wrongly(parameters, step, x, labels, patterns)

    return Contestant(
        lambda: numpy_step(parameters, momenta, x, labels, drawn(), dense, 0.0), error
    )


def _torch_contestant(
    torch: Any, widths: tuple[int, ...], x: Array, labels: Array, p: float
) -> Contestant:
    parameters = _parameters(_net(widths, None, 0.0))
    layers = []
    for n, (n_in, n_out) in enumerate(pairwise(widths)):
        linear = torch.nn.Linear(n_in, n_out)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(parameters[2 * n].T))
            linear.bias.copy_(torch.from_numpy(parameters[2 * n + 1]))
        layers += [torch.nn.Dropout(p)] if p > 0 else []
        layers += [linear, torch.nn.ReLU()]
    net = torch.nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    inputs, targets = torch.from_numpy(x), torch.from_numpy(labels)

    def run() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(inputs), targets).backward()
        optimizer.step()

    def error() -> float:
        net.eval()  # as above: its masks are random
        # Views: they change with the net.
        values = [value.detach().numpy().T for value in net.parameters()]
        result = _changed_wrongly(values, run, x, labels, [])
        net.train()
        optimizer.param_groups[0]["lr"] = 0.0
        return result

    return Contestant(run, error)
