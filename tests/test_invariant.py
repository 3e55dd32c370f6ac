"""The invariant of correct: training on submatrices is dense training with masks.

The dense net and the dense optimizers here are plain NumPy, forward and backward written by hand.
They share nothing with the package but initial weights and the patterns drawn.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import winograd_from

from numbadrop.autograd import primitive
from numbadrop.nn import (
    Activation,
    BatchwiseDropout,
    Conv2d,
    LeakyReLU,
    Linear,
    Module,
    ReLU,
    Residual,
    Sequential,
    Sigmoid,
    Tanh,
    cross_entropy,
    mse,
)
from numbadrop.optim import NAG, SGD, Adam, AdamW

STEPS = 20
SAMPLES, INPUTS, CLASSES = 5, 9, 3
IMAGE = 7, 6, 3

FROZEN = [
    (SGD, {"lr": 0.01}),
    (SGD, {"lr": 0.01, "weight_decay": 0.1}),
    (SGD, {"lr": 0.01, "momentum": 0.9}),
    (SGD, {"lr": 0.01, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}),
    (SGD, {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (NAG, {"lr": 0.05, "momentum": 0.9}),
    (NAG, {"lr": 0.01, "momentum": 0.0}),
    (Adam, {"lr": 0.01}),
    (Adam, {"lr": 0.01, "weight_decay": 0.1}),
    (AdamW, {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1}),
]
CATCHING_UP = [(make, options | {"inactive": "catch_up"}) for make, options in FROZEN[:7]]


class RecordedDropout(BatchwiseDropout):
    """Remembers the last pattern, as the mask and the factor of a dense net."""

    def draw(self, within):
        pattern = super().draw(within)
        self.mask, self.scale = pattern.units.mask(), pattern.scale
        return pattern


# ------------------------------------------------------------------------- random nets


@dataclass
class RandomNet:
    """A net, and for each layer with weights the dropout layers before and behind it, or None."""

    net: Module
    linears: list[tuple[Linear | Conv2d, RecordedDropout, RecordedDropout | None]]
    inputs: tuple[int, ...]
    steps: int

    def active(self, linear):
        """Return the mask of the active weights, and of the active biases."""
        for layer, before, behind in self.linears:
            if layer is linear:
                cols = np.ones(layer.weight.shape[-1], bool) if behind is None else behind.mask
                return np.broadcast_to(np.outer(before.mask, cols), layer.weight.shape), cols
        raise AssertionError


def random_net(seed):
    rng = np.random.default_rng(seed)
    linears = []

    def linear(n_in, n_out, before, behind):
        layer = Linear(n_in, n_out, gain=1.0, dtype=np.float64)
        linears.append((layer, before, behind))
        return layer

    def dropout():
        return RecordedDropout(rng.choice([0.0, 0.2, 0.5, 0.8]))

    def activation():
        return rng.choice([ReLU, LeakyReLU, Tanh, Sigmoid])()

    n, here = INPUTS, dropout()
    layers = [here]
    for _ in range(rng.integers(1, 4)):
        width, behind = int(rng.integers(2, 12)), dropout()
        layers += [linear(n, width, here, behind), activation(), behind]
        n, here = width, behind
        for _ in range(rng.integers(0, 3)):
            inner_width, inner = int(rng.integers(2, 8)), dropout()
            block = Sequential(
                linear(n, inner_width, here, inner),
                activation(),
                inner,
                linear(inner_width, n, inner, here),
            )
            layers += [Residual(block)] + [activation()] * int(rng.integers(2))
    layers.append(linear(n, CLASSES, here, None))
    net = Sequential(*layers).seed(seed)
    for layer, _, _ in linears:  # Biases that are not zero, so that a lost one shows.
        layer.bias.value[...] = rng.uniform(-0.5, 0.5, layer.bias.shape)
    return RandomNet(net, linears, (INPUTS,), STEPS)


@primitive
def mean_over_positions(x):
    return x.mean(axis=(1, 2))


@mean_over_positions.gradient("x")
def _(g, out, x):
    return np.broadcast_to(g[:, None, None] / np.prod(x.shape[1:3]), x.shape)


class MeanOverPositions(Module):
    unitwise = True

    def __call__(self, x, units=None):
        x = Activation.of(x).take(units)
        return Activation(mean_over_positions(x.values), x.units)


def random_conv_net(seed):
    rng = np.random.default_rng(seed)
    layers_with_weights = []

    def dropout():
        return RecordedDropout(rng.choice([0.0, 0.2, 0.5]))

    def activation():
        return rng.choice([ReLU, LeakyReLU, Tanh])()

    def conv(n_in, n_out, before, behind, kernel, *geometry):
        layer = Conv2d(n_in, n_out, kernel, *geometry, dtype=np.float64)
        layers_with_weights.append((layer, before, behind))
        return layer

    n, here = IMAGE[2], dropout()
    layers = [here]
    for _ in range(rng.integers(2, 4)):
        width, behind = int(rng.integers(2, 9)), dropout()
        kernel, stride, padding, dilation = (
            tuple(int(v) for v in rng.integers(low, high, 2))
            for low, high in ((1, 4), (1, 3), (2, 4), (1, 3))
        )
        layers += [conv(n, width, here, behind, kernel, stride, padding, dilation), activation()]
        layers.append(behind)
        n, here = width, behind
        if rng.integers(2):
            inner_width, inner = int(rng.integers(2, 8)), dropout()
            block = Sequential(
                conv(n, inner_width, here, inner, 3, 1, 1),
                activation(),
                inner,
                conv(inner_width, n, inner, here, (1, 3), 1, (0, 1)),
            )
            layers += [Residual(block)] + [activation()] * int(rng.integers(2))
    last = Linear(n, CLASSES, gain=1.0, dtype=np.float64)
    layers_with_weights.append((last, here, None))
    net = Sequential(*layers, MeanOverPositions(), last).seed(seed)
    for layer, _, _ in layers_with_weights:
        layer.bias.value[...] = rng.uniform(-0.5, 0.5, layer.bias.shape)
    return RandomNet(net, layers_with_weights, IMAGE, STEPS // 2)


# ----------------------------------------------------- dense nets: masks for every sample


@dataclass
class DenseLinear:
    w: np.ndarray
    b: np.ndarray
    slots: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def forward(self, x, mask):
        self.x = x
        return x @ self.w + self.b, np.ones(len(self.b), bool)

    def backward(self, g):
        self.grad_w, self.grad_b = self.x.T @ g, g.sum(axis=0)
        return g @ self.w.T


class DenseConv(DenseLinear):
    def __init__(self, layer):
        super().__init__(layer.weight.value.copy(), layer.bias.value.copy())
        self.stride, self.padding, self.dilation = (
            np.broadcast_to(pair, 2) for pair in (layer.stride, layer.padding, layer.dilation)
        )

    def taps(self, padded):
        """Yield each tap with the pixels that it meets, a view of padded images."""
        for i, j in np.ndindex(self.w.shape[:2]):
            ends = (
                slice(tap * d, tap * d + s * (n - 1) + 1, s)
                for tap, d, s, n in zip((i, j), self.dilation, self.stride, self.size, strict=True)
            )
            yield (i, j), padded[:, *ends]

    def forward(self, x, mask):
        (down, along), reach = self.padding, self.dilation * (np.array(self.w.shape[:2]) - 1)
        self.padded = np.pad(x, ((0, 0), (down, down), (along, along), (0, 0)))
        self.size = (np.array(self.padded.shape[1:3]) - reach - 1) // self.stride + 1
        y = sum(np.einsum("byxc,co->byxo", p, self.w[tap]) for tap, p in self.taps(self.padded))
        return y + self.b, np.ones(len(self.b), bool)

    def backward(self, g):
        self.grad_w, self.grad_b = np.empty_like(self.w), g.sum(axis=(0, 1, 2))
        padded_g = np.zeros_like(self.padded)
        for (tap, pixels), (_, target) in zip(
            self.taps(self.padded), self.taps(padded_g), strict=True
        ):
            self.grad_w[tap] = np.einsum("byxc,byxo->co", pixels, g)
            target += np.einsum("byxo,co->byxc", g, self.w[tap])
        (down, along), (height, width) = self.padding, padded_g.shape[1:3]
        return padded_g[:, down : height - down, along : width - along]


class DenseMean:
    def forward(self, x, mask):
        self.shape = x.shape
        return x.mean(axis=(1, 2)), mask

    def backward(self, g):
        return np.broadcast_to(g[:, None, None] / np.prod(self.shape[1:3]), self.shape)


class DenseElementwise:
    SLOPES = {
        ReLU: lambda x, y: x > 0,
        LeakyReLU: lambda x, y: np.where(x > 0, 1, 0.01),
        Tanh: lambda x, y: 1 - y**2,
        Sigmoid: lambda x, y: y * (1 - y),
    }
    VALUES = {
        ReLU: lambda x: x * (x > 0),
        LeakyReLU: lambda x: np.where(x > 0, x, 0.01 * x),
        Tanh: np.tanh,
        Sigmoid: lambda x: 1 / (1 + np.exp(-x)),
    }

    def __init__(self, kind):
        self.value, self.slope = self.VALUES[kind], self.SLOPES[kind]

    def forward(self, x, mask):
        y = self.value(x)
        self.factor = self.slope(x, y) * mask
        return y * mask, mask

    def backward(self, g):
        return g * self.factor


class DenseDropout:
    def __init__(self, recorded):
        self.recorded = recorded

    def forward(self, x, mask):
        self.factor = self.recorded.mask * self.recorded.scale
        return x * self.factor, self.recorded.mask

    def backward(self, g):
        return g * self.factor


class DenseChain:
    def __init__(self, layers):
        self.layers = layers

    def forward(self, x, mask):
        for layer in self.layers:
            x, mask = layer.forward(x, mask)
        return x, mask

    def backward(self, g):
        for layer in reversed(self.layers):
            g = layer.backward(g)
        return g


class DenseResidual:
    def __init__(self, block):
        self.block = block

    def forward(self, x, mask):
        self.mask = mask
        return x + mask * self.block.forward(x, mask)[0], mask

    def backward(self, g):
        return g + self.block.backward(self.mask * g)


def dense_net(module, linears):
    """Return the dense twin of a module; append each pair of layers with weights to `linears`."""
    match module:
        case Linear():
            twin = DenseLinear(module.weight.value.copy(), module.bias.value.copy())
            linears.append((module, twin))
            return twin
        case Conv2d():
            twin = DenseConv(module)
            linears.append((module, twin))
            return twin
        case MeanOverPositions():
            return DenseMean()
        case RecordedDropout():
            return DenseDropout(module)
        case Sequential():
            return DenseChain([dense_net(layer, linears) for layer in module.layers])
        case Residual():
            return DenseResidual(dense_net(module.block, linears))
        case _:
            return DenseElementwise(type(module))


def dense_cross_entropy(logits, labels):
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    one_hot = np.eye(CLASSES)[labels]
    return -np.log((p * one_hot).sum(axis=1)).sum(), p - one_hot


def dense_mse(prediction, target):
    return ((prediction - target) ** 2).mean(), 2 * (prediction - target) / target.size


# ----------------------------------------------------- dense optimizers, from their papers


def sgd(w, slots, g, t, lr, momentum=0.0, dampening=0.0, nesterov=False, weight_decay=0.0):
    d = g + weight_decay * w
    if momentum == 0:
        return w - lr * d, []
    m = d if t == 1 else momentum * slots[0] + (1 - dampening) * d
    return w - lr * (d + momentum * m if nesterov else m), [m]


def nag(w, slots, g, t, lr, momentum):
    w = w - momentum * slots[0]
    m = momentum * slots[0] - lr * (1 - momentum) * g
    return w + (1 + momentum) * m, [m]


def adam(w, slots, g, t, lr, betas=(0.9, 0.999), weight_decay=0.0):
    g = g + weight_decay * w
    m = betas[0] * slots[0] + (1 - betas[0]) * g
    v = betas[1] * slots[1] + (1 - betas[1]) * g**2
    m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
    return w - lr * m_hat / (np.sqrt(v_hat) + 1e-8), [m, v]


def adamw(w, slots, g, t, lr, betas, weight_decay):
    return adam(w - lr * weight_decay * w, slots, g, t, lr, betas)


DENSE_RULES = {SGD: sgd, NAG: nag, Adam: adam, AdamW: adamw}


def dense_update(make, options, w, slots, g, t, active):
    options = {name: value for name, value in options.items() if name != "inactive"}
    slots = slots or [np.zeros_like(w), np.zeros_like(w)]
    new_w, new_slots = DENSE_RULES[make](w, slots, g, t, **options)
    return (
        np.where(active, new_w, w),
        [np.where(active, new, old) for new, old in zip(new_slots, slots, strict=False)],
    )


# ----------------------------------------------------------------------------- the tests


def assert_same(actual, expected):
    actual = actual.dense() if hasattr(actual, "dense") else actual
    np.testing.assert_allclose(actual, expected, rtol=1e-8, atol=1e-11)


def slots_of(optimizer):
    """Return copies of the slots, one array for each parameter that has any."""
    state = optimizer._states.values()
    return [np.copy(s.slots) for s in state]


def check(random, seed, make, options, classify):
    net, parameters = random.net, random.net.parameters()
    optimizer = make(parameters, **options)
    pairs = []
    dense = dense_net(net, pairs)
    rng = np.random.default_rng(seed)
    catching_up = options.get("inactive") == "catch_up"
    loss_of, dense_loss_of = (cross_entropy, dense_cross_entropy) if classify else (mse, dense_mse)
    arguments = ("sum",) if classify else ()

    for t in range(1, random.steps + 1):
        x = rng.standard_normal((SAMPLES, *random.inputs))
        target = rng.integers(CLASSES, size=SAMPLES)
        target = target if classify else rng.standard_normal((SAMPLES, CLASSES))
        optimizer.zero_grad()
        loss = loss_of(net(x), target, *arguments)
        loss.backward()
        y, _ = dense.forward(x, np.ones(random.inputs[-1], bool))
        dense_loss, g = dense_loss_of(y, target)
        dense.backward(g)
        assert_same(float(loss), dense_loss)

        before = [p.value.copy() for p in parameters], slots_of(optimizer)
        optimizer.lr_scale = 0.9**t
        optimizer.step()
        after = [p.value for p in parameters], slots_of(optimizer)
        for linear, twin in pairs:
            actives = random.active(linear)
            for name, parameter, active in zip(
                "wb", (linear.weight, linear.bias), actives, strict=True
            ):
                grad = getattr(twin, f"grad_{name}")
                assert_same(parameter.grad, grad)
                assert (grad[~active] == 0).all()
                value, slots = dense_update(
                    make,
                    {**options, "lr": options["lr"] * 0.9**t},
                    getattr(twin, name),
                    twin.slots.get(name),
                    grad,
                    t,
                    np.ones_like(active) if catching_up else active,
                )
                setattr(twin, name, value)
                twin.slots[name] = slots

                at = parameters.index(parameter)
                outside = ~active
                np.testing.assert_array_equal(after[0][at][outside], before[0][at][outside])
                np.testing.assert_array_equal(after[1][at][:, outside], before[1][at][:, outside])
                if not catching_up:
                    assert_same(parameter.value, value)
                    assert len(after[1][at]) == len(slots)
                    for ours, theirs in zip(after[1][at], slots, strict=True):
                        assert_same(ours, theirs)
    if catching_up:
        optimizer.catch_up()
        slots = slots_of(optimizer)
        for linear, twin in pairs:
            for name, parameter in zip("wb", (linear.weight, linear.bias), strict=True):
                assert_same(parameter.value, getattr(twin, name))
                for ours, theirs in zip(
                    slots[parameters.index(parameter)], twin.slots[name], strict=False
                ):
                    assert_same(ours, theirs)


@pytest.mark.parametrize(("make", "options"), FROZEN + CATCHING_UP)
@settings(max_examples=5)
@given(seed=st.integers(0, 9999), classify=st.booleans())
def test_twenty_steps_on_submatrices_are_dense_masked_steps(make, options, seed, classify):
    check(random_net(seed), seed, make, options, classify)


@pytest.mark.parametrize(("make", "options"), FROZEN + CATCHING_UP)
@pytest.mark.parametrize("winograd", [True, False])
@settings(max_examples=3)
@given(seed=st.integers(0, 9999), classify=st.booleans())
def test_ten_steps_on_kept_channels_are_dense_masked_steps(winograd, make, options, seed, classify):
    with winograd_from(0 if winograd else sys.maxsize):
        check(random_conv_net(seed), seed, make, options, classify)


@pytest.mark.parametrize(("make", "options"), FROZEN + CATCHING_UP)
@pytest.mark.parametrize("random", [random_net, random_conv_net])
@settings(max_examples=4)
@given(seed=st.integers(0, 9999))
def test_weights_outside_are_never_read(random, make, options, seed):
    random = random(seed)
    net, optimizer = random.net, make(random.net.parameters(), **options)
    x = np.random.default_rng(seed).standard_normal((SAMPLES, *random.inputs))

    def pass_through():
        optimizer.zero_grad()
        loss = cross_entropy(net(x), np.arange(SAMPLES) % CLASSES)
        loss.backward()
        return float(loss), [getattr(p.grad, "values", p.grad) for p in net.parameters()]

    start = net.rng.bit_generator.state
    loss, grads = pass_through()
    for linear, _, _ in random.linears:
        for parameter, active in zip(
            (linear.weight, linear.bias), random.active(linear), strict=True
        ):
            parameter.value[~active] = np.nan
            optimizer._states[parameter].slots[:, ~active] = np.nan
    net.rng.bit_generator.state = start
    poisoned_loss, poisoned_grads = pass_through()
    assert poisoned_loss == loss
    for grad, poisoned in zip(grads, poisoned_grads, strict=True):
        assert np.isfinite(grad).all()
        np.testing.assert_array_equal(poisoned, grad)
    optimizer.step()
    for linear, _, _ in random.linears:
        for parameter, active in zip(
            (linear.weight, linear.bias), random.active(linear), strict=True
        ):
            np.testing.assert_array_equal(np.isnan(parameter.value), ~active)
