"""The invariant of correct on images: pooling and batch normalization under batchwise dropout.

The dense net is plain NumPy. A product at each pixel stands in for every layer that mixes units.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_invariant import (
    CLASSES,
    DenseChain,
    DenseDropout,
    DenseElementwise,
    DenseLinear,
    DenseResidual,
    RecordedDropout,
    assert_same,
    dense_cross_entropy,
    dense_update,
    slots_of,
)

from numbadrop.autograd import primitive
from numbadrop.kernels import reference
from numbadrop.nn import (
    Activation,
    AvgPool2d,
    BatchNorm1d,
    BatchNorm2d,
    Flatten,
    GlobalAvgPool2d,
    LeakyReLU,
    Linear,
    MaxPool2d,
    Module,
    ReLU,
    Residual,
    Sequential,
    Tanh,
    cross_entropy,
)
from numbadrop.optim import NAG, SGD

STEPS = 6
SAMPLES, HEIGHT, WIDTH, CHANNELS = 5, 9, 8, 4
POOLS = [
    lambda: MaxPool2d(2),
    lambda: MaxPool2d(3, 2, 1),
    lambda: MaxPool2d(2, 1, (1, 0)),
    lambda: AvgPool2d(2),
    lambda: AvgPool2d(3, (1, 2), 1),
]
# Not Adam: of a gradient that normalization makes zero, it makes a whole step of the rounding.
OPTIMIZERS = [
    (SGD, {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.01}),
    (NAG, {"lr": 0.02, "momentum": 0.9}),
    (NAG, {"lr": 0.02, "momentum": 0.9, "inactive": "catch_up"}),
]


@primitive
def reshape(x, shape):
    return x.reshape(shape)


@reshape.gradient("x")
def _(g, out, x, shape):
    return g.reshape(x.shape)


class Pointwise(Linear):
    """Applies one Linear to every pixel."""

    def __call__(self, x, units=None):
        x = Activation.of(x)
        pixels = Activation(reshape(x.values, (-1, len(x.units))), x.units)
        y = super().__call__(pixels, units)
        return Activation(reshape(y.values, (*x.value.shape[:3], len(y.units))), y.units)


# ------------------------------------------------------------------------- random nets


@dataclass
class RandomNet:
    net: Module
    masks: dict[Module, tuple] = field(default_factory=dict)
    """For each layer with parameters, what returns the masks of its inputs and of its outputs."""

    def active(self, layer, name):
        before, behind = (mask() for mask in self.masks[layer])
        return np.outer(before, behind) if name == "weight" and before is not None else behind


def random_net(seed):
    rng = np.random.default_rng(seed)
    random = RandomNet(Sequential())
    layers = []

    def add(layer, before, behind):
        random.masks[layer] = before, behind
        return layer

    def some_dropout():
        return RecordedDropout(rng.choice([0.0, 0.2, 0.5, 0.8]))

    def maybe_norm(make, units, mask):
        if rng.random() < 0.7:
            layer = make(units, eps=1e-2, momentum=rng.choice([0.1, 1.0]), dtype=np.float64)
            yield add(layer, lambda: None, mask)

    def product(make, n, width, before, behind, followers=()):
        # A mean that is subtracted takes the bias with it: its gradient would be mere rounding.
        bias = not any(isinstance(layer, BatchNorm1d | BatchNorm2d) for layer in followers)
        return add(make(n, width, bias, dtype=np.float64), before, behind)

    def activation():
        return rng.choice([ReLU, LeakyReLU, Tanh])()

    n, dropout = CHANNELS, some_dropout()
    layers.append(dropout)
    for _ in range(rng.integers(1, 4)):
        width, before, behind = int(rng.integers(2, 9)), dropout, some_dropout()

        def kept(behind=behind):
            return behind.mask

        tail = [*maybe_norm(BatchNorm2d, width, kept), activation()]
        if rng.random() < 0.7:
            tail.insert(rng.integers(len(tail) + 1), rng.choice(POOLS)())
        layers.append(product(Pointwise, n, width, lambda d=before: d.mask, kept, tail))
        layers += [*tail, behind, *maybe_norm(BatchNorm2d, width, kept)]
        if rng.random() < 0.5:
            inner = [*maybe_norm(BatchNorm2d, width, kept), activation()]
            first = product(Pointwise, width, width, kept, kept, inner)
            layers.append(Residual(Sequential(first, *inner)))
        n, dropout = width, behind
    whole = np.zeros((1, HEIGHT, WIDTH, CHANNELS))
    for layer in layers:
        if isinstance(layer, MaxPool2d | AvgPool2d):
            whole = layer(whole).value
    places, last = (
        (1, GlobalAvgPool2d()) if rng.random() < 0.5 else (whole[0, ..., 0].size, Flatten())
    )
    hidden, behind = int(rng.integers(3, 9)), some_dropout()

    def flat():
        return np.tile(dropout.mask, places)

    tail = [*maybe_norm(BatchNorm1d, hidden, lambda: behind.mask), activation()]
    layers += [
        last,
        product(Linear, n * places, hidden, flat, lambda: behind.mask, tail),
        *tail,
        behind,
        product(Linear, hidden, CLASSES, lambda: behind.mask, lambda: np.ones(CLASSES, bool)),
    ]
    random.net = Sequential(*layers).seed(seed)
    for parameter in random.net.parameters():
        if parameter.value.ndim == 1:  # So that a lost bias shows.
            parameter.value[...] = rng.uniform(0.5, 1.5, parameter.shape)
    return random


# ----------------------------------------------------- dense nets: masks for every sample


class DensePointwise(DenseLinear):
    def forward(self, x, mask):
        self.shape = x.shape
        y, mask = super().forward(x.reshape(-1, x.shape[-1]), mask)
        return y.reshape(*x.shape[:3], -1), mask

    def backward(self, g):
        return super().backward(g.reshape(-1, g.shape[-1])).reshape(self.shape)


class DenseNorm:
    def __init__(self, layer):
        self.w, self.b = layer.weight.value.copy(), layer.bias.value.copy()
        self.running = [layer.running_mean.value.copy(), layer.running_var.value.copy()]
        self.layer, self.slots = layer, {}

    def forward(self, x, mask):
        self.mask, axes = mask, tuple(range(x.ndim - 1))
        self.mean, self.variance = x.mean(axis=axes), x.var(axis=axes)
        count = x[..., 0].size
        self.seen = self.mean, self.variance * count / (count - 1)
        self.deviation = np.sqrt(self.variance + self.layer.eps)
        self.z = (x - self.mean) / self.deviation
        return (self.z * self.w + self.b) * mask, mask

    def backward(self, g):
        axes, g = tuple(range(g.ndim - 1)), g * self.mask
        self.grad_w, self.grad_b = (g * self.z).sum(axis=axes), g.sum(axis=axes)
        inner = g - g.mean(axis=axes) - self.z * (g * self.z).mean(axis=axes)
        return inner * self.w / self.deviation

    def observe(self, active):
        share = self.layer.momentum
        for running, seen in zip(self.running, self.seen, strict=True):
            running[active] = ((1 - share) * running + share * seen)[active]


class DensePool:
    def __init__(self, layer):
        self.window = layer.size, layer.stride, layer.padding
        self.largest = isinstance(layer, MaxPool2d)

    def forward(self, x, mask):
        self.x = x
        pool = reference.max_pool2d if self.largest else reference.avg_pool2d
        self.y = pool(x, *self.window)
        return self.y, mask

    def backward(self, g):
        if self.largest:
            return reference.max_pool2d_gradient(g, self.x, self.y, *self.window)
        return reference.avg_pool2d_gradient(g, self.x.shape, *self.window)


class DenseMean:
    def forward(self, x, mask):
        self.shape = x.shape
        return x.mean(axis=(1, 2)), mask

    def backward(self, g):
        return np.broadcast_to(g[:, None, None], self.shape) / (self.shape[1] * self.shape[2])


class DenseFlatten:
    def forward(self, x, mask):
        self.shape = x.shape
        return x.reshape(len(x), -1), np.tile(mask, x.shape[1] * x.shape[2])

    def backward(self, g):
        return g.reshape(self.shape)


def dense_net(module, twins):
    """Return the dense twin of a module; note in `twins` those of layers with parameters."""
    match module:
        case Linear():
            make = DensePointwise if isinstance(module, Pointwise) else DenseLinear
            bias = np.zeros(module.weight.shape[1]) if module.bias is None else module.bias.value
            twins[module] = make(module.weight.value.copy(), bias.copy())
            return twins[module]
        case BatchNorm1d() | BatchNorm2d():
            twins[module] = DenseNorm(module)
            return twins[module]
        case MaxPool2d() | AvgPool2d():
            return DensePool(module)
        case GlobalAvgPool2d():
            return DenseMean()
        case Flatten():
            return DenseFlatten()
        case RecordedDropout():
            return DenseDropout(module)
        case Sequential():
            return DenseChain([dense_net(layer, twins) for layer in module.layers])
        case Residual():
            return DenseResidual(dense_net(module.block, twins))
        case _:
            return DenseElementwise(type(module))


# ----------------------------------------------------------------------------- the test


@pytest.mark.parametrize(("make", "options"), OPTIMIZERS)
@settings(max_examples=40)
@given(seed=st.integers(0, 99999))
def test_steps_on_submatrices_are_dense_masked_steps(make, options, seed):
    random = random_net(seed)
    net, parameters = random.net, random.net.parameters()
    optimizer = make(parameters, **options)
    twins = {}
    dense = dense_net(net, twins)
    rng = np.random.default_rng(seed)
    catching_up = options.get("inactive") == "catch_up"

    def assert_up_to_date():
        slots_now = slots_of(optimizer)
        for layer, twin in twins.items():
            for short, parameter in (("w", layer.weight), ("b", layer.bias)):
                if parameter is not None:
                    assert_same(parameter.value, getattr(twin, short))
                    ours, theirs = slots_now[parameters.index(parameter)], twin.slots[short]
                    for pair in zip(ours, theirs, strict=not catching_up):
                        assert_same(*pair)

    for t in range(1, STEPS + 1):
        x = rng.standard_normal((SAMPLES, HEIGHT, WIDTH, CHANNELS))
        labels = rng.integers(CLASSES, size=SAMPLES)
        before = net.state_dict()
        slots_before = slots_of(optimizer)
        optimizer.zero_grad()
        loss = cross_entropy(net(x), labels, "sum")
        loss.backward()
        optimizer.step()

        y, _ = dense.forward(x, np.ones(CHANNELS, bool))
        dense_loss, g = dense_cross_entropy(y, labels)
        dense.backward(g)
        assert_same(float(loss), dense_loss)
        slots_after = slots_of(optimizer)
        paths = {parameter: name for name, parameter in net.named_parameters()}
        for layer, twin in twins.items():
            for short, name in (("w", "weight"), ("b", "bias")):
                parameter = getattr(layer, name)
                if parameter is None:
                    continue
                active, grad = random.active(layer, name), getattr(twin, f"grad_{short}")
                assert_same(parameter.grad, grad * active)
                value, slots = dense_update(
                    make, options, getattr(twin, short), twin.slots.get(short), grad, t,
                    np.ones_like(active) if catching_up else active,
                )  # fmt: skip
                setattr(twin, short, value)
                twin.slots[short] = slots
                at = parameters.index(parameter)
                np.testing.assert_array_equal(
                    parameter.value[~active], before[paths[parameter]][~active]
                )
                np.testing.assert_array_equal(
                    slots_after[at][:, ~active], slots_before[at][:, ~active]
                )
            if isinstance(twin, DenseNorm):
                active = random.active(layer, "running_mean")
                twin.observe(active)
                prefix = paths[layer.weight].removesuffix("weight")
                for running, name in zip(twin.running, ("mean", "var"), strict=True):
                    value = getattr(layer, f"running_{name}").value
                    assert_same(value, running)
                    old = before[f"{prefix}running_{name}"]
                    np.testing.assert_array_equal(value[~active], old[~active])
        if not catching_up:
            assert_up_to_date()
    if catching_up:
        optimizer.catch_up()
        assert_up_to_date()
    # Without dropout, the running statistics take the place of the batch's.
    y = net.eval()(x).value
    for twin in twins.values():
        if isinstance(twin, DenseNorm):
            twin.forward = lambda x, mask, twin=twin: (
                reference.batch_norm(x, *twin.running, twin.w, twin.b, eps=twin.layer.eps), mask
            )  # fmt: skip
    for layer in net.layers:
        if isinstance(layer, RecordedDropout):
            layer.mask, layer.scale = np.ones(len(layer.mask), bool), 1.0
    assert_same(y, dense.forward(x, np.ones(CHANNELS, bool))[0])
