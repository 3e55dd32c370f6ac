from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numbadrop import kernels, ops
from numbadrop.autograd import Block, Variable, check_grads
from numbadrop.index_set import IndexSet
from numbadrop.kernels import reference

seeds = st.integers(0, 999)


def pair(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


def subset(size):
    chosen = st.sets(st.integers(0, size - 1), min_size=1)
    return st.none() | chosen.map(lambda units: IndexSet(sorted(units), size))


class TestLinear:
    @given(
        rows=subset(5),
        cols=subset(4),
        bias=st.booleans(),
        batch=st.integers(0, 3),
        slope=st.sampled_from([0.0, 0.25, 1.0, 1.5]),
        scale=st.sampled_from([1.0, 1.75]),
        seed=seeds,
    )
    def test_value_and_gradients(self, rows, cols, bias, batch, slope, scale, seed):
        rng = np.random.default_rng(seed)
        row_units = rows or IndexSet.all(5)
        col_units = cols or IndexSet.all(4)
        x = rng.standard_normal((batch, len(row_units)))
        w = rng.standard_normal((5, 4))
        b = rng.standard_normal(4) if bias else None
        block = np.ix_(row_units.indices, col_units.indices)
        sums = x @ w[block] + (b[col_units.indices] if bias else 0)
        expected = scale * np.where(sums > 0, sums, slope * sums)
        y = ops.linear(x, w, b, rows, cols, slope, scale).value
        np.testing.assert_allclose(y, expected, atol=1e-13)
        if abs(sums).min(initial=1) > 1e-4:  # away from the kink
            check_grads(ops.linear, [x, w, b, rows, cols, slope, scale])

        weight = Variable(w, requires_grad=True)
        ops.linear(x, weight, b, rows, cols, slope, scale).backward(np.ones(expected.shape))
        assert isinstance(weight.grad, Block) != (row_units.is_all and col_units.is_all)

    def test_other_weights_are_never_read(self):
        w, b = np.full((5, 4), np.nan), np.full(4, np.nan)
        rows, cols = IndexSet([1, 3], 5), IndexSet([0, 2], 4)
        w[np.ix_(rows.indices, cols.indices)] = 1
        b[cols.indices] = 1
        x, w, b = (Variable(a, requires_grad=True) for a in (np.ones((3, 2)), w, b))
        y = ops.linear(x, w, b, rows, cols)
        y.backward(np.ones((3, 2)))
        for array in (y.value, x.grad, w.grad.values, b.grad.values):
            assert np.isfinite(array).all()

    def test_the_input_gradient_is_not_computed_unless_asked_for(self, monkeypatch):
        monkeypatch.setattr(kernels, "gathered_matmul_t", None)
        w = Variable(np.ones((2, 2)), requires_grad=True)
        ops.linear(np.ones((1, 2)), w).backward(np.ones((1, 2)))
        with pytest.raises(TypeError):
            ops.linear(Variable(np.ones((1, 2)), True), w).backward(np.ones((1, 2)))

    def test_bad_bias(self):
        x, w = np.ones((1, 2), np.float32), np.ones((2, 3), np.float32)
        with pytest.raises(ValueError, match=r"^b must have shape \(3,\), got \(1,\)"):
            ops.linear(x, w, np.ones(1, np.float32))
        with pytest.raises(TypeError, match=r"^b and w must have one dtype, got float64 and"):
            ops.linear(x, w, np.ones(3))


class TestConv2d:
    @settings(max_examples=60)
    @given(
        ins=subset(3),
        outs=subset(4),
        bias=st.booleans(),
        batch=st.integers(0, 2),
        kernel=pair(1, 3),
        stride=pair(1, 3),
        padding=pair(0, 3),
        dilation=pair(1, 2),
        slope=st.sampled_from([0.0, 0.25, 1.0, 1.5]),
        scale=st.sampled_from([1.0, 1.75]),
        seed=seeds,
    )
    def test_value_and_gradients(
        self, ins, outs, bias, batch, kernel, stride, padding, dilation, slope, scale, seed
    ):
        rng = np.random.default_rng(seed)
        least = (d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilation, kernel, padding, strict=True))
        size = [max(1, n) + int(rng.integers(3)) for n in least]
        x = rng.standard_normal((batch, *size, 3 if ins is None else len(ins)))
        w = rng.standard_normal((*kernel, 3, 4))
        b = rng.standard_normal(4) if bias else None
        geometry = stride, padding, dilation
        sums = reference.gathered_conv2d(
            x, w, ins, outs, stride=stride, padding=padding, dilation=dilation, bias=b
        )
        y = ops.conv2d(x, w, b, ins, outs, *geometry, slope, scale).value
        expected = scale * np.where(sums > 0, sums, slope * sums)
        np.testing.assert_allclose(y, expected, atol=1e-13)
        # Away from the kink, where there is one: sums of padding alone are zero.
        if slope == 1 or abs(sums).min(initial=1) > 1e-4:
            check_grads(ops.conv2d, [x, w, b, ins, outs, *geometry, slope, scale])

        weight = Variable(w, requires_grad=True)
        ops.conv2d(x, weight, b, ins, outs, *geometry).backward(np.ones(y.shape))
        all_take_part = all(units is None or units.is_all for units in (ins, outs))
        assert isinstance(weight.grad, Block) != all_take_part
        assert weight.grad.shape == w.shape

    def test_other_weights_are_never_read(self):
        w, b = np.full((2, 3, 5, 4), np.nan), np.full(4, np.nan)
        ins, outs = IndexSet([1, 3], 5), IndexSet([0, 2], 4)
        w[:, :, *np.ix_(ins.indices, outs.indices)] = 1
        b[outs.indices] = 1
        x, w, b = (Variable(a, requires_grad=True) for a in (np.ones((3, 4, 4, 2)), w, b))
        y = ops.conv2d(x, w, b, ins, outs, 1, 2)
        y.backward(np.ones(y.shape))
        for array in (y.value, x.grad, w.grad.values, b.grad.values):
            assert np.isfinite(array).all()

    def test_the_input_gradient_is_not_computed_unless_asked_for(self, monkeypatch):
        monkeypatch.setattr(kernels, "gathered_conv2d_t", None)
        w = Variable(np.ones((1, 1, 2, 2)), requires_grad=True)
        x = np.ones((1, 1, 1, 2))
        ops.conv2d(x, w).backward(x)
        with pytest.raises(TypeError):
            ops.conv2d(Variable(x, True), w).backward(x)

    def test_gradients_of_different_sets_add_up(self):
        w = Variable(np.ones((2, 1, 3, 2)), requires_grad=True)
        x = np.arange(1.0, 9.0).reshape(1, 2, 2, 2)
        y = ops.conv2d(x, w, None, IndexSet([0, 2], 3)) + ops.conv2d(
            x, w, None, IndexSet([0, 1], 3)
        )
        y.backward(np.ones(y.shape))
        taps = x.sum(axis=(0, 2))
        expected = np.stack([2 * taps[:, 0], taps[:, 1], taps[:, 1]], axis=1)
        np.testing.assert_array_equal(
            w.grad + np.zeros(w.shape), expected[:, None, :, None] + 0 * w.value
        )


@pytest.mark.parametrize("op", [ops.relu, ops.leaky_relu, ops.tanh, ops.sigmoid])
class TestElementwise:
    @given(seed=seeds)
    def test_gradient(self, op, seed):
        x = np.random.default_rng(seed).uniform(-4, 4, (3, 4))
        x[np.abs(x) < 1e-3] = 1.0  # Away from the kink.
        check_grads(op, [x])

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_dtype_and_empty_batch(self, op, dtype):
        for batch in (0, 2):
            x = Variable(np.ones((batch, 3), dtype), requires_grad=True)
            y = op(x)
            y.backward(np.ones((batch, 3), dtype))
            assert y.dtype == x.grad.dtype == dtype
            assert y.shape == x.grad.shape == (batch, 3)

    def test_nan_is_not_hidden(self, op):
        assert np.isnan(op(np.array([np.nan])).value).all()

    def test_extremes(self, op):
        x = Variable(np.array([-1e4, 1e4], np.float32), requires_grad=True)
        y = op(x)
        y.backward(np.ones(2, np.float32))
        assert np.isfinite(y.value).all()
        assert np.isfinite(x.grad).all()


def test_sigmoid_and_its_slope_keep_their_relative_precision():
    x = Variable(np.array([-60.0, -30.0, 0.3, 30.0, 60.0]), requires_grad=True)
    y = ops.sigmoid(x)
    y.backward(np.ones(5))
    tail = [math.exp(-abs(v)) for v in x.value]
    slope = [t / (1 + t) ** 2 for t in tail]
    value = [(1 if v > 0 else t) / (1 + t) for v, t in zip(x.value, tail, strict=True)]
    np.testing.assert_allclose(y.value, value, rtol=1e-15)
    np.testing.assert_allclose(x.grad, slope, rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
@pytest.mark.parametrize("shape", [(), (5,), (3, 5), (2, 3, 1, 5), (0, 5), (3, 0)])
@pytest.mark.parametrize("slope", [None, -0.5, 0.0, 0.25, 1.0, 3.0])
def test_rectifiers(dtype, shape, slope):
    rng = np.random.default_rng(0)
    x, g = (rng.integers(-4, 5, shape).astype(dtype) for _ in range(2))
    variable = Variable(x, requires_grad=True)
    y = ops.relu(variable) if slope is None else ops.leaky_relu(variable, slope)
    y.backward(g)
    slope = slope or 0.0
    assert y.dtype == variable.grad.dtype == dtype
    np.testing.assert_array_equal(y.value, np.where(x > 0, x, x * slope))
    np.testing.assert_array_equal(variable.grad, np.where(x > 0, g, g * slope))


@pytest.mark.parametrize("slope", [0.25, 2.0])
def test_rectifiers_of_infinity_and_of_what_is_no_number(slope):
    x = np.array([np.inf, -np.inf, np.nan])
    y = ops.leaky_relu(x, slope).value
    np.testing.assert_array_equal(y, [np.inf, -np.inf, np.nan])
    np.testing.assert_array_equal(ops.relu(x).value, [np.inf, 0, np.nan])


def test_leaky_relu_slope():
    check_grads(ops.leaky_relu, [np.array([-2.0, 3.0]), -1.0])
    np.testing.assert_array_equal(ops.leaky_relu(np.array([-2.0, 3.0]), -1.0).value, [2.0, 3.0])


class TestUnits:
    @given(kept=st.sets(st.integers(0, 5), min_size=1), shape=st.sampled_from([(2,), (0,), (2, 3)]))
    def test_take_and_place(self, kept, shape):
        units = IndexSet(sorted(kept), 6)
        x = np.random.default_rng(0).standard_normal((*shape, 6))
        taken = ops.take_units(x, units, 3.0)
        np.testing.assert_array_equal(taken.value, 3 * x[..., units.indices])
        placed = ops.place_units(taken, units).value
        np.testing.assert_array_equal(placed, np.where(units.mask(), 3 * x, 0))
        check_grads(ops.take_units, [x, units, 3.0])
        check_grads(ops.place_units, [x[..., : len(units)], units])

    def test_flatten(self):
        x = np.arange(12.0).reshape(2, 3, 2)
        np.testing.assert_array_equal(ops.flatten(x).value, x.reshape(2, 6))
        assert ops.flatten(x[:0]).shape == (0, 6)
        check_grads(ops.flatten, [x])

    @pytest.mark.parametrize("layout", ["nchw", "HWC", ""])
    def test_unflatten_of_another_layout(self, layout):
        with pytest.raises(ValueError, match=f"layout must be 'NHWC' or 'NCHW', got '{layout}'"):
            ops.unflatten(np.ones((1, 12)), (2, 2, 3), layout)

    @pytest.mark.parametrize(("shape", "layout"), [((2, 3, 4), "NCHW"), ((3, 4, 2), "NHWC")])
    def test_unflatten(self, shape, layout):
        x = np.random.default_rng(0).standard_normal((5, 24))
        images = x.reshape(5, *shape)
        images = images.transpose(0, 2, 3, 1) if layout == "NCHW" else images
        np.testing.assert_array_equal(ops.unflatten(x, shape, layout).value, images)
        check_grads(ops.unflatten, [x, shape, layout])


class TestCrossEntropy:
    @given(batch=st.integers(1, 4), reduction=st.sampled_from(["mean", "sum"]), seed=seeds)
    def test_against_the_definition(self, batch, reduction, seed):
        rng = np.random.default_rng(seed)
        logits, labels = rng.standard_normal((batch, 3)) * 3, rng.integers(3, size=batch)
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        expected = getattr(np, reduction)([-math.log(p[i, y]) for i, y in enumerate(labels)])
        loss = ops.cross_entropy(logits, labels, reduction)
        np.testing.assert_allclose(float(loss), expected, rtol=1e-12)
        check_grads(ops.cross_entropy, [logits, labels, reduction], atol=1e-7)

    def test_against_pytorch_in_float32(self):
        torch = pytest.importorskip("torch")
        rng = np.random.default_rng(1)
        logits = (rng.standard_normal((50, 10)) * 20).astype(np.float32)
        labels = rng.integers(10, size=50)
        ours, theirs = Variable(logits, True), torch.tensor(logits, requires_grad=True)
        loss = ops.cross_entropy(ours, labels)
        loss.backward()
        expected = torch.nn.functional.cross_entropy(theirs, torch.tensor(labels))
        expected.backward()
        assert loss.dtype == ours.grad.dtype == np.float32
        np.testing.assert_allclose(loss.value, expected.detach().numpy(), rtol=1e-6)
        np.testing.assert_allclose(ours.grad, theirs.grad.numpy(), atol=1e-8)

    def test_huge_logits(self):
        logits = Variable(np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32), True)
        loss = ops.cross_entropy(logits, [0, 0], "sum")
        loss.backward()
        assert float(loss) == 2e4
        np.testing.assert_array_equal(logits.grad, [[0, 0], [-1, 1]])

    @pytest.mark.parametrize(
        ("error", "message", "labels"),
        [
            (ValueError, r"labels must be in \[0, 3\), labels\[1\] is 3", [0, 3]),
            (ValueError, r"labels must be in \[0, 3\), labels\[0\] is -1", [-1, 0]),
            (ValueError, r"labels\[1\] is nan", [0, np.nan]),
            (ValueError, r"labels\[0\] is inf", [np.inf, 0]),
            (TypeError, r"labels must be integers in \[0, 3\), got dtype float64", [0.0, 1.0]),
            (TypeError, "got dtype bool", [True, False]),
            (ValueError, r"labels must have shape \(2,\) as logits, got \(3,\)", [0, 1, 2]),
            (ValueError, r"labels must have shape \(2,\) as logits, got \(2, 1\)", [[0], [1]]),
        ],
    )
    def test_bad_labels(self, error, message, labels):
        with pytest.raises(error, match=message):
            ops.cross_entropy(np.zeros((2, 3)), labels)

    def test_bad_input(self):
        with pytest.raises(ValueError, match=r"logits must be two-dimensional, got shape"):
            ops.cross_entropy(np.zeros(3), [0])
        with pytest.raises(ValueError, match="reduction must be 'mean' or 'sum', got 'none'"):
            ops.cross_entropy(np.zeros((1, 3)), [0], "none")
        with pytest.raises(ValueError, match="logits is empty, and so has no mean"):
            ops.cross_entropy(np.zeros((0, 3)), np.zeros(0, int))
        assert float(ops.cross_entropy(np.zeros((0, 3)), np.zeros(0, int), "sum")) == 0


class TestMse:
    @given(reduction=st.sampled_from(["mean", "sum"]), seed=seeds)
    def test_against_the_definition(self, reduction, seed):
        rng = np.random.default_rng(seed)
        prediction, target = rng.standard_normal((2, 3, 4))
        expected = getattr(np, reduction)((prediction - target) ** 2)
        np.testing.assert_allclose(float(ops.mse(prediction, target, reduction)), expected)
        check_grads(ops.mse, [prediction, target, reduction])

    def test_float32(self):
        prediction = Variable(np.ones((2, 2), np.float32), True)
        loss = ops.mse(prediction, np.zeros((2, 2), np.float32))
        loss.backward()
        assert loss.dtype == prediction.grad.dtype == np.float32

    @pytest.mark.parametrize(
        ("error", "message", "target"),
        [
            (ValueError, r"target must have shape \(2, 1\), got \(2,\)", np.zeros(2)),
            (TypeError, "target must be float64, got float32", np.zeros((2, 1), np.float32)),
            (ValueError, "target must be finite", np.array([[0], [np.nan]])),
            (ValueError, "target must be finite", np.array([[0], [-np.inf]])),
        ],
    )
    def test_bad_target(self, error, message, target):
        with pytest.raises(error, match=message):
            ops.mse(np.zeros((2, 1)), target)

    def test_empty(self):
        assert float(ops.mse(np.zeros((0, 1)), np.zeros((0, 1)), "sum")) == 0
        with pytest.raises(ValueError, match="prediction is empty"):
            ops.mse(np.zeros((0, 1)), np.zeros((0, 1)))
