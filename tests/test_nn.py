from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbadrop import kernels, ops
from numbadrop.autograd import Block, Variable, no_grad
from numbadrop.index_set import IndexSet
from numbadrop.nn import (
    Activation,
    AvgPool2d,
    BatchNorm1d,
    BatchNorm2d,
    BatchwiseDropout,
    Buffer,
    Conv2d,
    Dropout,
    Dropout2d,
    Flatten,
    GlobalAvgPool2d,
    LeakyReLU,
    Linear,
    MaxPool2d,
    Module,
    Parameter,
    Pattern,
    ReLU,
    Residual,
    Sequential,
    Sigmoid,
    Tanh,
    Unflatten,
    cross_entropy,
    mse,
)
from numbadrop.optim import SGD

X = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
PART_OF_FOUR = Activation(Variable(X[:, :3]), IndexSet([0, 1, 2], 4))


class Spy(Linear):
    """A Linear that remembers which blocks of its weights were asked for."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.blocks = []

    def __call__(self, x, units=None):
        y = super().__call__(x, units)
        self.blocks.append((Activation.of(x).units, y.units))
        return y


class TestActivation:
    def test_of(self):
        a = Activation.of(X)
        assert a.units == IndexSet.all(4)
        assert Activation.of(a) is a
        assert Activation.of(Variable(X)).value is X

    @given(
        a=st.sets(st.integers(0, 5), min_size=1),
        b=st.sets(st.integers(0, 5), min_size=1),
        shape=st.sampled_from([(2,), (0,), (2, 3)]),
    )
    def test_sum_lives_on_the_union(self, a, b, shape):
        def activation(kept):
            values = np.arange(1.0, 1 + np.prod([*shape, len(kept)])).reshape(*shape, len(kept))
            return Activation(Variable(values, True), IndexSet(sorted(kept), 6))

        left, right = activation(a), activation(b)
        total = left + right
        assert total.units == IndexSet(sorted(a | b), 6)
        np.testing.assert_array_equal(total.dense(), left.dense() + right.dense())
        total.values.backward(np.ones(total.values.shape))
        np.testing.assert_array_equal(left.values.grad, np.ones(left.value.shape))

    def test_sum_with_an_array(self):
        np.testing.assert_array_equal((X + Activation.of(X)).value, 2 * X)

    def test_sum_with_a_variable(self):
        variable = Variable(X, True)
        for total in (variable + Activation.of(X), Activation.of(X) + variable):
            assert isinstance(total, Activation)
            np.testing.assert_array_equal(total.value, 2 * X)
        with pytest.raises(TypeError, match="unsupported operand"):
            variable * Activation.of(X)

    @pytest.mark.parametrize("function", [np.asarray, np.argmax, np.sort])
    def test_numpy_takes_none_for_an_array(self, function):
        with pytest.raises(TypeError, match=r"an Activation is no array: \.value holds"):
            function(Activation.of(X))
        with pytest.raises(TypeError, match=r"a Variable is no array, its \.value is"):
            function(Variable(X))

    @pytest.mark.parametrize("units", [[0, 2], np.array([0, 2]), np.ones(4, bool), 2])
    def test_units_that_are_no_set(self, units):
        for layer in (ReLU(), Linear(4, 4), Sequential(Linear(4, 4)), Residual(Linear(4, 4))):
            with pytest.raises(
                TypeError, match=r"units must be an IndexSet, got (list|ndarray|int)"
            ):
                layer(X, units)

    @pytest.mark.parametrize(
        ("error", "message", "x"),
        [
            (TypeError, "x must be an ndarray, Variable or Activation, got list", [[1.0]]),
            (ValueError, r"x must have shape \(batch, ..., units\), got \(3,\)", np.ones(3)),
            (TypeError, "x must be float32 or float64, got int64", np.ones((2, 2), int)),
        ],
    )
    def test_bad_input(self, error, message, x):
        with pytest.raises(error, match=message):
            ReLU()(x)

    def test_values_that_do_not_fit_the_units(self):
        with pytest.raises(ValueError, match=r"must have 1 units on their last axis, got shape"):
            Activation(Variable(X), IndexSet([1], 4))


class TestLinear:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_initial_values(self, dtype):
        layer = Linear(400, 300, gain=2.0, dtype=dtype).seed(0)
        assert layer.weight.dtype == layer.bias.dtype == dtype
        assert 0.099 < np.abs(layer.weight.value).max() <= np.float32(0.1)
        np.testing.assert_allclose(layer.weight.value.std(), 0.1 / np.sqrt(3), rtol=0.01)
        assert (layer.bias.value == 0).all()
        assert Linear(3, 2, bias=False).bias is None

    @pytest.mark.parametrize(
        ("error", "message", "x", "units"),
        [
            (ValueError, r"x must have shape \(batch, 3\), got \(2, 4\) with 4", X, None),
            (ValueError, r"x must have shape \(batch, 3\), got \(2, 1, 3\)", X[:, None, :3], None),
            (ValueError, r"x must have .* got \(2, 3\) with 4", PART_OF_FOUR, None),
            (TypeError, "x must be float32 as weight, got float64", np.ones((2, 3)), None),
            (ValueError, "units must be of 5 output units, got of 4", X[:, :3], IndexSet([1], 4)),
        ],
    )  # fmt: skip
    def test_bad_input(self, error, message, x, units):
        with pytest.raises(error, match=message):
            Linear(3, 5)(x, units)

    def test_bad_declarations(self):
        with pytest.raises(ValueError, match="in_features must be at least 1, got 0"):
            Linear(0, 3)
        with pytest.raises(ValueError, match="gain must be finite and not negative, got -1"):
            Linear(3, 3, gain=-1.0)
        with pytest.raises(TypeError, match="value must be float32 or float64, got float16"):
            Linear(3, 3, dtype=np.float16)

    def test_empty_batch(self):
        net = Sequential(BatchwiseDropout(0.5), Linear(4, 6), Sigmoid(), Dropout(0.5), Linear(6, 3))
        logits = net(X[:0])
        assert logits.value.shape == (0, 3)
        loss = cross_entropy(logits, np.zeros(0, int), "sum")
        loss.backward()
        assert float(loss) == 0
        assert all((p.grad + np.zeros(p.shape) == 0).all() for p in net.parameters())


SMALL_IMAGES = np.linspace(-1, 1, 2 * 4 * 5 * 3, dtype=np.float32).reshape(2, 4, 5, 3)


class TestConv2d:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_initial_values(self, dtype):
        layer = Conv2d(20, 300, (4, 5), gain=2.0, dtype=dtype).seed(0)
        assert layer.weight.shape == (4, 5, 20, 300)
        assert layer.weight.dtype == layer.bias.dtype == dtype
        assert 0.099 < np.abs(layer.weight.value).max() <= np.float32(0.1)
        np.testing.assert_allclose(layer.weight.value.std(), 0.1 / np.sqrt(3), rtol=0.01)
        assert (layer.bias.value == 0).all()
        assert Conv2d(3, 2, 1, bias=False).bias is None

    def test_value(self):
        layer = Conv2d(3, 8, (3, 2), (2, 1), (1, 0), (1, 2)).seed(0)
        layer.bias.value[...] = np.arange(8)
        options = dict(stride=(2, 1), padding=(1, 0), dilation=(1, 2))
        w, b = layer.weight.value, layer.bias.value
        y = layer(SMALL_IMAGES, slope=0.5, scale=2.0)
        expected = kernels.gathered_conv2d(SMALL_IMAGES, w, bias=b, slope=0.5, scale=2.0, **options)
        np.testing.assert_array_equal(y.value, expected)
        x, units = Activation.of(SMALL_IMAGES).take(IndexSet([0, 2], 3)), IndexSet([1, 7], 8)
        y = layer(x, units)
        assert y.units == units
        expected = kernels.gathered_conv2d(x.value, w, [0, 2], [1, 7], bias=b, **options)
        np.testing.assert_array_equal(y.value, expected)

    @pytest.mark.parametrize(
        ("error", "message", "x", "units"),
        [
            (ValueError, r"x must have shape \(batch, height, width, 3\), got \(2, 4, 5, 2\) with",
             SMALL_IMAGES[..., :2], None),
            (ValueError, r"x must have shape .*got \(4, 5, 3\) with 3", SMALL_IMAGES[0], None),
            (ValueError, r"x must have shape .*got \(2, 60\) with 60",
             SMALL_IMAGES.reshape(2, 60), None),
            (ValueError, r"x must have .*got \(2, 3, 4, 5\) with 5",  # channels first
             SMALL_IMAGES.transpose(0, 3, 1, 2), None),
            (ValueError, r"x must have .*got \(2, 4, 5, 3\) with 4",
             Activation(Variable(SMALL_IMAGES), IndexSet([0, 1, 2], 4)), None),
            (TypeError, "x must be float32 as weight, got float64", np.ones((2, 4, 5, 3)), None),
            (ValueError, "units must be of 6 channels, got of 4", SMALL_IMAGES, IndexSet([1], 4)),
            (ValueError, "kernel is larger than the padded image: height 2 with padding 0",
             SMALL_IMAGES[:, :2], None),
        ],
    )  # fmt: skip
    def test_bad_input(self, error, message, x, units):
        with pytest.raises(error, match=message):
            Conv2d(3, 6, 3)(x, units)

    @pytest.mark.parametrize(
        ("error", "message", "arguments", "options"),
        [
            (ValueError, "in_channels must be at least 1, got 0", (0, 3, 3), {}),
            (ValueError, "out_channels must be at least 1, got -2", (3, -2, 3), {}),
            (ValueError, "kernel_size must be at least 1.*got 0", (3, 3, 0), {}),
            (TypeError, "kernel_size must be an int or a pair.*got 3.0", (3, 3, 3.0), {}),
            (TypeError, "kernel_size must be .*got \\(3, 3, 3\\)", (3, 3, (3, 3, 3)), {}),
            (ValueError, "stride must be at least 1.*got 0", (3, 3, 3), {"stride": 0}),
            (ValueError, "padding must be at least 0.*got -1", (3, 3, 3), {"padding": -1}),
            (TypeError, "padding must be .*got 'same'", (3, 3, 3), {"padding": "same"}),
            (ValueError, "dilation must be at least 1.*got 0", (3, 3, 3), {"dilation": 0}),
            (ValueError, "gain must be finite and not negative, got -1", (3, 3, 3), {"gain": -1.0}),
            (TypeError, "value must be float32 or float64, got float16", (3, 3, 3),
             {"dtype": np.float16}),
        ],
    )  # fmt: skip
    def test_bad_declarations(self, error, message, arguments, options):
        with pytest.raises(error, match=message):
            Conv2d(*arguments, **options)

    def test_empty_batch(self):
        net = Sequential(BatchwiseDropout(0.5), Conv2d(3, 6, 3), Tanh(), Flatten(), Linear(36, 2))
        logits = net(SMALL_IMAGES[:0])
        assert logits.value.shape == (0, 2)
        cross_entropy(logits, np.zeros(0, int), "sum").backward()
        assert all((p.grad + np.zeros(p.shape) == 0).all() for p in net.parameters())

    def test_dropped_channels_are_never_computed(self):
        net = Sequential(
            BatchwiseDropout(0.3), Conv2d(3, 8, 3), ReLU(), BatchwiseDropout(0.5), Conv2d(8, 4, 2)
        ).seed(0)
        calls = []
        for layer in (net.layers[1], net.layers[4]):
            layer.weight.before_read = lambda *index: calls.append(index)
        y = net(SMALL_IMAGES)
        assert y.value.shape == (2, 1, 2, 4)
        (*_, ins, outs), (*_, inner, last) = calls
        assert [len(units) for units in (ins, outs, last)] == [2, 4, 4]
        assert inner == outs
        calls.clear()
        net.eval()(SMALL_IMAGES)
        assert all(units.is_all for call in calls for units in call[2:])

    @given(
        tail=st.lists(
            st.sampled_from([ReLU, lambda: LeakyReLU(0.25), Tanh, lambda: BatchwiseDropout(0.5)]),
            max_size=4,
        ),
        training=st.booleans(),
    )
    def test_what_it_absorbs_changes_no_value(self, tail, training):
        net = Sequential(Conv2d(3, 8, 3, 2, 1, dtype=np.float64), *[make() for make in tail])
        net.seed(3).train(training)
        layer = net.layers[0]
        layer.bias.value[...] = np.linspace(-1, 1, 8)
        state = net.rng.bit_generator.state
        x = SMALL_IMAGES.astype(np.float64)
        fused = net(x)
        net.rng.bit_generator.state = state
        first = next((m for m in net.layers if isinstance(m, BatchwiseDropout)), None)
        pattern = first.draw(IndexSet.all(8)) if first is not None and training else None
        plain = layer(x, None if pattern is None else pattern.units)
        for other in net.layers[1:]:
            plain = other(plain, pattern=pattern) if other is first else other(plain)
        assert fused.units == plain.units
        np.testing.assert_allclose(fused.value, plain.value, rtol=1e-13)

    def test_residual_shares_the_pattern(self):
        block = Sequential(Conv2d(6, 4, 3, padding=1), ReLU(), BatchwiseDropout(0.5))
        block = Sequential(*block.layers, Conv2d(4, 6, 1))
        net = Sequential(Conv2d(3, 6, 1), BatchwiseDropout(0.5), Residual(block)).seed(0)
        y = net(SMALL_IMAGES)
        assert len(y.units) == 3
        assert y.value.shape == (2, 4, 5, 3)
        smaller = Residual(Conv2d(3, 3, 3))
        with pytest.raises(ValueError, match="shape"):
            smaller(SMALL_IMAGES)

    def test_a_copy_and_a_state_go_on_alone(self):
        layer = Conv2d(3, 4, 2).seed(0)
        other = copy.deepcopy(layer)
        other.weight.value[...] = 0
        assert (layer.weight.value != 0).all()
        other.load_state_dict(layer.state_dict())
        np.testing.assert_array_equal(other(SMALL_IMAGES).value, layer(SMALL_IMAGES).value)


class TestUnitwise:
    @pytest.mark.parametrize(
        ("layer", "function"),
        [
            (ReLU(), lambda x: np.maximum(x, 0)),
            (LeakyReLU(0.2), lambda x: np.where(x > 0, x, 0.2 * x)),
            (Tanh(), np.tanh),
            (Sigmoid(), lambda x: 1 / (1 + np.exp(-x))),
        ],
    )
    def test_value_on_the_wanted_units(self, layer, function):
        units = IndexSet([0, 3], 4)
        y = layer(X, units)
        assert y.units == units
        np.testing.assert_allclose(y.value, function(X[:, [0, 3]]), rtol=1e-6)
        with pytest.raises(ValueError, match="unit 3 of other is not in this set"):
            layer(Activation.of(X).take(IndexSet([0, 1], 4)), units)

    def test_bad_slope(self):
        with pytest.raises(ValueError, match="negative_slope must be finite, got nan"):
            LeakyReLU(float("nan"))

    def test_flatten(self):
        images = np.arange(12.0).reshape(2, 3, 2)
        units = IndexSet([1, 5], 6)
        np.testing.assert_array_equal(Flatten()(images, units).value, [[1, 5], [7, 11]])
        assert Flatten()(images[:0]).value.shape == (0, 6)
        with pytest.raises(
            ValueError, match=r"x must have no empty axis but the first, got .*0, 2"
        ):
            Flatten()(images[:, :0])
        flat = Activation.of(X).take(IndexSet([1], 4))
        assert Flatten()(flat) is flat


IMAGES = np.random.default_rng(0).standard_normal((3, 5, 4, 6)).astype(np.float32)
KEPT = IndexSet([1, 2, 5], 6)


class ToImages(Module):
    """Makes images out of vectors, and remembers which units it was asked for."""

    def __call__(self, x, units=None):
        self.asked = units
        return Activation.of(IMAGES).take(units)

    def out_units(self, units):
        return IndexSet.all(6)


class TestImages:
    @pytest.mark.parametrize("wanted", [None, IndexSet([2, 5], 6)])
    def test_flatten_of_some_channels(self, wanted):
        flat = Flatten()(Activation.of(IMAGES).take(KEPT))
        assert flat.units == IndexSet(np.tile(KEPT.mask(), 20), 120)
        masked = np.where(KEPT.mask(), IMAGES, 0).reshape(3, 120)
        np.testing.assert_array_equal(flat.dense(), masked)
        if wanted is not None:
            part = Flatten()(Activation.of(IMAGES).take(KEPT), IndexSet.all(20).outer(wanted))
            assert part.units == IndexSet.all(20).outer(wanted)
            np.testing.assert_array_equal(part.value, masked[:, part.units.indices])
            with pytest.raises(ValueError, match="unit 0 of other is not in this set"):
                Flatten()(Activation.of(IMAGES).take(KEPT), IndexSet([0], 120))

    def test_linear_behind_flatten_uses_the_rows_of_the_channels_there(self):
        layer = Linear(120, 2).seed(0)
        flat = Flatten()(Activation.of(IMAGES).take(KEPT))
        expected = flat.dense() @ layer.weight.value
        layer.weight.value[~flat.units.mask()] = np.nan
        np.testing.assert_allclose(layer(flat).value, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
    @pytest.mark.parametrize("flat", [True, False])
    def test_unflatten(self, layout, flat):
        given_ = IMAGES if layout == "NHWC" else IMAGES.transpose(0, 3, 1, 2)
        layer = Unflatten(given_.shape[1:], layout)
        x = Variable(given_.reshape(3, -1) if flat else given_, requires_grad=True)
        y = layer(x)
        np.testing.assert_array_equal(y.value, IMAGES)
        assert y.value.flags.c_contiguous
        assert layer(x, KEPT).units == KEPT
        y.values.backward(IMAGES)
        np.testing.assert_array_equal(x.grad, x.value)
        assert layer(x.value[:0]).value.shape == (0, 5, 4, 6)

    def test_unflatten_bad_input(self):
        with pytest.raises(
            ValueError, match=r"x must have shape \(batch, 120\) or \(batch, 6, 5, 4\)"
        ):
            Unflatten((6, 5, 4), "NCHW")(IMAGES)
        with pytest.raises(ValueError, match="x must have all of its 6 units, got 3"):
            Unflatten((5, 4, 6), "NHWC")(Activation(Variable(IMAGES[..., :3]), KEPT))
        with pytest.raises(ValueError, match="layout must be 'NHWC' or 'NCHW', got 'CHWN'"):
            Unflatten((6, 5, 4), "CHWN")
        with pytest.raises(ValueError, match=r"shape must be \(units, height, width\), each at"):
            Unflatten((5, 4), "NCHW")
        with pytest.raises(ValueError, match=r"shape must be \(height, width, units\), .* \(0, 4"):
            Unflatten((0, 4, 6), "NHWC")

    @pytest.mark.parametrize(
        ("layer", "function"),
        [
            (MaxPool2d(2), lambda x: ops.max_pool2d(x, 2).value),
            (AvgPool2d(3, 1, (1, 0)), lambda x: ops.avg_pool2d(x, 3, 1, (1, 0)).value),
            (GlobalAvgPool2d(), lambda x: x.mean(axis=(1, 2))),
        ],
    )
    def test_pooling_treats_each_unit_alone(self, layer, function):
        y = layer(IMAGES, KEPT)
        assert y.units == KEPT
        np.testing.assert_allclose(y.dense(), function(IMAGES) * KEPT.mask(), rtol=1e-5, atol=1e-6)
        with pytest.raises(ValueError, match=r"x must have shape \(batch, height, width, units\)"):
            layer(X)

    def test_pooling_refuses_a_window_at_once(self):
        with pytest.raises(
            ValueError, match=r"padding must be in \[0, size / 2\], got 2 with size 3"
        ):
            MaxPool2d(3, 1, 2)

    def test_sum_of_images(self):
        x = Activation(Variable(IMAGES[..., :3], True), KEPT)
        total = x + Activation(Variable(IMAGES[..., 3:], True), KEPT)
        assert total.units == KEPT
        np.testing.assert_array_equal(total.value, IMAGES[..., :3] + IMAGES[..., 3:])
        total.values.backward(IMAGES[..., :3])
        np.testing.assert_array_equal(x.values.grad, IMAGES[..., :3])
        y = Residual(Sequential(BatchNorm2d(6), ReLU()))(x)
        assert y.units == KEPT
        normal = IMAGES[..., :3] - IMAGES[..., :3].mean(axis=(0, 1, 2))
        normal /= normal.std(axis=(0, 1, 2))
        np.testing.assert_allclose(y.value, x.value + np.maximum(normal, 0), rtol=1e-3, atol=1e-4)

    def test_dropout_is_drawn_before_what_makes_the_images(self):
        producer = ToImages()
        tail = BatchNorm2d(6), ReLU(), MaxPool2d(2), GlobalAvgPool2d(), BatchwiseDropout(0.5)
        net = Sequential(producer, *tail).seed(0)
        units = net(X).units
        assert len(units) == 3
        assert producer.asked == units

    def test_dropout_behind_flatten(self):
        net = Sequential(ToImages(), BatchwiseDropout(0.5), Flatten(), BatchwiseDropout(0.5))
        y = net.seed(0)(X)
        channels = IndexSet.all(20).outer(net.layers[0].asked)
        assert len(y.units) == 30
        assert (channels.mask() >= y.units.mask()).all()
        expected = 4 * IMAGES.reshape(3, 120)[:, y.units.indices]
        np.testing.assert_allclose(y.value, expected, rtol=1e-6)

    def test_a_linear_absorbs_up_to_a_normalization(self):
        layers = Linear(4, 8), ReLU(), BatchNorm1d(8, eps=1e-12), ReLU(), BatchwiseDropout(0.5)
        net = Sequential(*layers).seed(0)
        y = net(X)
        hidden = np.maximum(X @ layers[0].weight.value, 0)[:, y.units.indices].astype(float)
        deviation = hidden.std(axis=0)
        normal = (hidden - hidden.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
        np.testing.assert_allclose(y.value, 2 * np.maximum(normal, 0), rtol=1e-3, atol=1e-3)


class TestBatchNorm:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize(("make", "shape"), [(BatchNorm1d, (7,)), (BatchNorm2d, (7, 3, 2))])
    def test_against_pytorch(self, make, shape, dtype):
        torch = pytest.importorskip("torch")
        rng = np.random.default_rng(0)
        ours = make(6, 1e-3, 0.3, dtype=dtype)
        kind = {np.float32: torch.float32, np.float64: torch.float64}[dtype]
        theirs = getattr(torch.nn, make.__name__)(6, 1e-3, 0.3, dtype=kind)
        ours.weight.value[...] = rng.uniform(0.5, 1.5, 6)
        theirs.weight.data = torch.tensor(ours.weight.value)
        for training in (True, True, False, True):
            x = rng.standard_normal((*shape, 6)).astype(dtype)
            ours.train(training)
            theirs.train(training)
            y = ours(x)
            expected = theirs(torch.tensor(np.moveaxis(x, -1, 1).copy()))
            tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype is np.float32 else {"rtol": 1e-12}
            np.testing.assert_allclose(
                y.value, np.moveaxis(expected.detach().numpy(), 1, -1), **tolerance
            )
        for name, value in ours.state_dict().items():
            assert value.dtype == dtype
            np.testing.assert_allclose(value, theirs.state_dict()[name].numpy(), **tolerance)

    def test_absent_units_keep_their_bits(self):
        layer = BatchNorm2d(6)
        absent = ~KEPT.mask()
        for buffer in (layer.running_mean, layer.running_var):
            buffer.value[absent] = np.nan
        y = layer(IMAGES, KEPT)
        y.values.backward(IMAGES[..., :3])
        assert layer.weight.grad.index == layer.bias.grad.index == (KEPT,)
        for buffer in (layer.running_mean, layer.running_var):
            np.testing.assert_array_equal(np.isnan(buffer.value), absent)
        assert np.isfinite(layer.eval()(IMAGES, KEPT).value).all()
        assert np.isfinite(y.value).all()

    def test_factors_are_brought_up_to_date_before_they_are_read(self):
        layer, asked = BatchNorm1d(4), []
        units = IndexSet([0, 2], 4)
        expected = 2 * layer(X, units).value + 2

        def read(parameter):
            def refresh(*index):
                asked.append(index)
                parameter.value.fill(2)

            return refresh

        for parameter in layer.parameters():
            parameter.before_read = read(parameter)
        np.testing.assert_allclose(layer(X, units).value, expected, rtol=1e-6, atol=1e-6)
        assert asked == [(units,)] * 2

    def test_eval_changes_nothing(self):
        layer = BatchNorm1d(4).eval()
        before = layer.state_dict()
        assert layer(X[:1]).value.shape == (1, 4)
        assert layer(X[:0]).value.shape == (0, 4)
        for name, value in layer.state_dict().items():
            np.testing.assert_array_equal(value, before[name])

    def test_without_factors(self):
        layer = BatchNorm1d(4, affine=False)
        assert layer.parameters() == []
        assert [*layer.state_dict()] == ["running_mean", "running_var"]
        np.testing.assert_allclose(layer(X).value, np.sign(X - X.mean(axis=0)), rtol=1e-3)

    def test_seed_begins_anew(self):
        net = Sequential(BatchNorm1d(4))
        before = net.state_dict()
        net(X)
        net.layers[0].weight.value[...] = 3
        for name, value in net.seed(0).state_dict().items():
            np.testing.assert_array_equal(value, before[name])

    @pytest.mark.parametrize(
        ("error", "message", "x"),
        [
            (
                ValueError,
                r"x must have shape \(batch, units\) with 4 units, got \(3, 5, 4, 6\)",
                IMAGES,
            ),
            (ValueError, r"x must have .* with 4 units, got \(2, 3\) with 3 units", X[:, :3]),
            (TypeError, "x must be float32 as the layer, got float64", X.astype(float)),
            (
                ValueError,
                r"x must have at least 2 values .* in training, got shape \(1, 4\)",
                X[:1],
            ),
            (
                ValueError,
                r"x must have at least 2 values .* in training, got shape \(0, 4\)",
                X[:0],
            ),
        ],
    )
    def test_bad_input_changes_nothing(self, error, message, x):
        layer = BatchNorm1d(4)
        before = layer.state_dict()
        with pytest.raises(error, match=message):
            layer(x)
        for name, value in layer.state_dict().items():
            np.testing.assert_array_equal(value, before[name])

    def test_bad_declarations(self):
        with pytest.raises(ValueError, match="features must be at least 1, got 0"):
            BatchNorm1d(0)
        with pytest.raises(ValueError, match="eps must be positive and finite, got 0"):
            BatchNorm1d(3, eps=0)
        with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\], got 1.5"):
            BatchNorm1d(3, momentum=1.5)


class TestDropout:
    @pytest.mark.parametrize("kind", [Dropout, Dropout2d, BatchwiseDropout])
    def test_a_fraction_that_is_changed(self, kind):
        layer = kind(0.5)
        layer.p = 0
        assert layer.p == 0.0
        for p in (1, -0.1, np.nan):
            with pytest.raises(ValueError, match=r"the fraction dropped, must be in \[0, 1\), got"):
                layer.p = p
        assert layer.p == 0.0

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_independent(self, dtype):
        layer = Dropout(0.25).seed(0)
        x = np.full((100, 200), 3.0, dtype)
        y = layer(x).value
        assert y.dtype == dtype
        assert set(np.unique(y)) == {0, dtype(4.0)}
        # 20,000 draws: four standard deviations are 0.0123.
        np.testing.assert_allclose((y == 0).mean(), 0.25, atol=0.0123)
        assert layer.eval()(x).value is x

    @pytest.mark.parametrize(
        ("layer", "shape", "axes"), [(Dropout, (40, 3, 2, 30), ()), (Dropout2d, (40, 30), (1, 2))]
    )
    def test_independent_drops_others_for_each_sample(self, layer, shape, axes):
        layer = layer(0.5).seed(0)
        x = np.ones((40, 3, 2, 30))
        y = layer(x).value
        assert set(np.unique(y)) == {0, 2}
        drawn = y.max(axis=axes)
        np.testing.assert_array_equal(y, np.broadcast_to(np.expand_dims(drawn, axes), x.shape))
        assert drawn.shape == shape
        for axis in range(drawn.ndim):
            others = np.diff(drawn, axis=axis)
            # At least 1160 draws of whether neighbours differ: four standard deviations are 0.06.
            np.testing.assert_allclose((others != 0).mean(), 0.5, atol=0.06)
        assert layer.eval()(x).value is x

    @given(n=st.integers(1, 30), p=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 9))
    def test_batchwise(self, n, p, seed):
        layer = BatchwiseDropout(p).seed(seed)
        x = np.random.default_rng(seed).standard_normal((3, n))
        y = layer(x)
        kept = max(1, round(n * (1 - p)))
        assert len(y.units) == kept
        np.testing.assert_array_equal(y.value, x[:, y.units.indices] * (n / kept))
        assert layer.eval()(x).value is x

    def test_batchwise_draws_every_unit_equally_often(self):
        layer = BatchwiseDropout(0.5).seed(0)
        within = IndexSet([0, 2, 3, 5, 6, 9], 10)
        counts = sum(layer.draw(within).units.mask() for _ in range(4000))
        assert (counts[~within.mask()] == 0).all()
        # Binomial(4000, 1/2): four standard deviations are 126.
        np.testing.assert_allclose(counts[within.mask()], 2000, atol=126)

    def test_batchwise_draws_every_pair_equally_often(self):
        layer, pairs = BatchwiseDropout(0.7).seed(0), np.zeros((10, 10))
        for _ in range(4000):
            kept = layer.draw(IndexSet.all(10)).units.mask()
            pairs += np.outer(kept, kept)
        # Binomial(4000, 1/15), as 3 of the 45 pairs are kept: four standard deviations are 63.
        np.testing.assert_allclose(pairs[~np.eye(10, dtype=bool)], 4000 / 15, atol=63)

    def test_a_pattern_drawn_ahead(self):
        layer = BatchwiseDropout(0.5)
        pattern = Pattern(IndexSet([1, 2], 4), 2.0)
        np.testing.assert_array_equal(layer(X, pattern=pattern).value, 2 * X[:, 1:3])
        compact = Activation(Variable(X[:, 1:3]), pattern.units)
        np.testing.assert_array_equal(layer(compact, pattern=pattern).value, 2 * X[:, 1:3])

    def test_dropped_inputs_are_never_read(self):
        layer = BatchwiseDropout(0.5).seed(3)
        kept = copy.deepcopy(layer).draw(IndexSet.all(4)).units
        x = np.where(kept.mask(), X, np.nan)
        assert np.isfinite(Sequential(layer, Linear(4, 2))(x).value).all()

    @pytest.mark.parametrize("layer", [Dropout, BatchwiseDropout])
    @pytest.mark.parametrize("p", [-0.1, 1.0, float("nan"), 2])
    def test_bad_p(self, layer, p):
        with pytest.raises(ValueError, match=r"p, the fraction dropped, must be in \[0, 1\), got"):
            layer(p)


class TestSequential:
    def test_dropped_outputs_are_never_computed(self):
        net = Sequential(
            BatchwiseDropout(0.25), Spy(4, 8), ReLU(), Tanh(), BatchwiseDropout(0.5), Spy(8, 3)
        ).seed(0)
        first, last = net.layers[1], net.layers[5]
        net(X)
        (rows, cols), (inner, out) = first.blocks[0], last.blocks[0]
        assert (len(rows), len(cols)) == (3, 4)
        assert inner == cols
        assert out.is_all
        net.eval()(X)
        assert all(units.is_all for units in (*first.blocks[1], *last.blocks[1]))

    def test_looking_ahead_changes_no_value(self):
        layers = Linear(4, 8), Sigmoid(), BatchwiseDropout(0.5), Linear(8, 3)
        planned = Sequential(*layers).seed(5)(X).value
        planned_again = Sequential(*layers).seed(5)(X).value
        net = Sequential(*layers).seed(5)
        x = X
        for layer in net.layers:
            x = layer(x)
        np.testing.assert_array_equal(planned, planned_again)
        np.testing.assert_allclose(planned, x.value, rtol=1e-6)

    @given(
        tail=st.lists(
            st.sampled_from([ReLU, lambda: LeakyReLU(0.25), lambda: LeakyReLU(-0.5), Tanh,
                             lambda: BatchwiseDropout(0.5), lambda: Dropout(0.5)]),
            max_size=5,
        ),
        training=st.booleans(),
    )  # fmt: skip
    def test_what_a_layer_absorbs_changes_no_value(self, tail, training):
        net = Sequential(Linear(4, 8, dtype=np.float64), *[make() for make in tail])
        net.seed(3).train(training)
        net.layers[0].bias.value[...] = np.linspace(-1, 1, 8)
        x = Variable(X.astype(np.float64), requires_grad=True)
        fused = net(x)
        fused.values.backward(np.ones(fused.values.shape))
        fused_gradients = [x.grad, *(p.grad for p in net.parameters())]
        x.grad = None
        net.zero_grad()
        net.seed(3)
        net.layers[0].bias.value[...] = np.linspace(-1, 1, 8)
        # The pattern of the first dropout is drawn before the layer runs, the others in turn.
        first = next((m for m in net.layers if isinstance(m, BatchwiseDropout)), None)
        pattern = first.draw(IndexSet.all(8)) if first is not None and training else None
        plain = net.layers[0](x, None if pattern is None else pattern.units)
        for layer in net.layers[1:]:
            plain = layer(plain, pattern=pattern) if layer is first else layer(plain)
        plain.values.backward(np.ones(plain.values.shape))
        assert fused.units == plain.units
        np.testing.assert_allclose(fused.value, plain.value, rtol=1e-13)
        for one, other in zip(
            fused_gradients, [x.grad, *(p.grad for p in net.parameters())], strict=True
        ):
            one, other = (g.dense() if isinstance(g, Block) else g for g in (one, other))
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)

    def test_layers_of_a_users_own_are_not_absorbed(self):
        class ReLU6(ReLU):
            def _function(self, values):
                return Variable(np.clip(values.value, 0, 6))

        class Doubled(BatchwiseDropout):
            def __call__(self, x, units=None, pattern=None):
                y = super().__call__(x, units, pattern)
                return Activation(y.values * 2.0, y.units)

        first = Linear(4, 8, gain=100.0, dtype=np.float64)
        net = Sequential(first, ReLU6()).seed(0)
        x = X.astype(np.float64)
        np.testing.assert_allclose(net(x).value, np.clip(x @ first.weight.value, 0, 6))
        net = Sequential(first, Doubled(0.5)).seed(0)
        y = net(x)
        np.testing.assert_allclose(y.value, 4 * (x @ first.weight.value)[:, y.units.indices])
        leaky = LeakyReLU(0.1)
        leaky.negative_slope = 0.5
        sums = x @ first.weight.value
        np.testing.assert_allclose(
            Sequential(first, leaky)(x).value, np.where(sums > 0, sums, 0.5 * sums)
        )

    def test_a_dropout_at_rest_before_one_that_drops(self):
        resting, dropping = BatchwiseDropout(0.5), BatchwiseDropout(0.5)
        net = Sequential(Linear(4, 8), resting, ReLU(), dropping).seed(0)
        resting.eval()
        y = net(X)
        assert len(y.units) == 4
        expected = 2 * np.maximum(X @ net.layers[0].weight.value, 0)[:, y.units.indices]
        np.testing.assert_allclose(y.value, expected, rtol=1e-5)

    @pytest.mark.parametrize("nested", [False, True])
    def test_units_wanted_from_outside_reach_the_last_producer(self, nested):
        spy = Spy(8, 6)
        tail = (spy, ReLU(), BatchwiseDropout(0.5), Tanh())
        net = Sequential(Linear(4, 8), *([Sequential(*tail)] if nested else tail))
        wanted = IndexSet([0, 2, 3, 5], 6)
        kept = net(X, wanted).units
        assert len(kept) == 2
        assert (wanted.mask() >= kept.mask()).all()
        assert spy.blocks[0][1] == kept
        net.eval()
        assert net(X, wanted).units == wanted
        assert spy.blocks[1][1] == wanted

    def test_a_nested_net_is_asked_for_the_kept_units_only(self):
        spy = Spy(8, 6)
        net = Sequential(Sequential(Linear(4, 8), BatchwiseDropout(0.5), spy, ReLU()))
        net = Sequential(*net.layers, BatchwiseDropout(0.5), Linear(6, 2)).seed(1)
        net(X)
        assert [len(units) for units in spy.blocks[0]] == [4, 3]

    def test_unitwise_layers_alone(self):
        net = Sequential(ReLU(), Tanh())
        assert net.unitwise
        wanted = IndexSet([1], 4)
        assert net(X, wanted).units == wanted
        assert Sequential()(X).value is X

    def test_a_dropout_in_nested_unitwise_layers_is_drawn_ahead(self):
        first, last = Spy(4, 16), Spy(8, 2)
        inner = Sequential(ReLU(), Sequential(BatchwiseDropout(0.5)))
        net = Sequential(first, inner, BatchwiseDropout(0.5), Linear(16, 8), inner, last).seed(0)
        assert net(X).value.shape == (2, 2)
        assert len(first.blocks[0][1]) == 8
        assert len(last.blocks[0][0]) == 4

    def test_two_dropouts_in_one_tail(self):
        dropout = BatchwiseDropout(0.5)
        net = Sequential(Linear(4, 8), dropout, ReLU(), dropout).seed(0)
        layer = net.layers[0]
        y = net(X)
        assert len(y.units) == 2
        expected = np.maximum(X @ layer.weight.value, 0)[:, y.units.indices] * 4
        np.testing.assert_allclose(y.value, expected, rtol=1e-5)

    def test_layers_are_fixed(self):
        net = Sequential(Linear(4, 4))
        with pytest.raises(AttributeError, match="layers"):
            net.layers = (Linear(4, 2),)

    def test_bad_layers(self):
        with pytest.raises(TypeError, match="layer 1 must be a Module, got type"):
            Sequential(Linear(4, 4), ReLU)
        with pytest.raises(TypeError, match="block must be a Module, got int"):
            Residual(3)


class TestResidual:
    def test_shares_the_pattern_of_its_input(self):
        first, inner, last = Spy(4, 6), Spy(6, 6), Spy(6, 3)
        block = Sequential(ReLU(), Linear(6, 6), BatchwiseDropout(0.5), inner)
        net = Sequential(first, BatchwiseDropout(0.5), Residual(block), Residual(block), last)
        net.seed(0)(X)
        units = first.blocks[0][1]
        assert len(units) == 3
        assert [cols for _, cols in inner.blocks] == [units, units]
        assert last.blocks[0][0] == units

    def test_dropout_behind_it_spares_the_block_the_dropped_units(self):
        inner = Spy(4, 4)
        net = Sequential(Residual(inner), ReLU(), BatchwiseDropout(0.5)).seed(0)
        units = net(X).units
        assert len(units) == 2
        assert inner.blocks == [(IndexSet.all(4), units)]

    def test_dropout_behind_a_block_that_drops_units_itself(self):
        inner = Sequential(Linear(4, 4), ReLU(), BatchwiseDropout(0.5))
        net = Residual(Sequential(inner, BatchwiseDropout(0.5))).seed(0)
        assert net(X).units == IndexSet.all(4)
        assert np.isfinite(net(X).value).all()

    def test_block_of_another_width(self):
        with pytest.raises(ValueError, match="units must be of 5 output units, got of 4"):
            Residual(Linear(4, 5))(X)


class Net(Module):
    def __init__(self):
        self.inner = Linear(4, 3)
        self.again = self.inner
        self.scale = Parameter(np.ones(3, np.float32))
        self.body = Sequential(Dropout(0.5), Linear(3, 2, bias=False))

    def __call__(self, x, units=None):
        x = self.again(self.inner(x))
        return self.body(x.values * self.scale, units)


class TestModule:
    def test_parameters_are_found_once(self):
        net = Net()
        names = ["scale", "inner.weight", "inner.bias", "body.1.weight"]
        assert [name for name, _ in net.named_parameters()] == names
        assert net.parameters() == [p for _, p in net.named_parameters()]
        assert len(net.modules()) == 5

    def test_a_sequential_with_a_module_besides(self):
        class Headed(Sequential):
            def __init__(self):
                super().__init__(Linear(4, 3), ReLU())
                self.head = Linear(3, 2)

            def __call__(self, x, units=None):
                return self.head(super().__call__(x), units)

        net = Headed().seed(0).eval()
        names = ["0.weight", "0.bias", "head.weight", "head.bias"]
        assert [name for name, _ in net.named_parameters()] == names
        assert list(net.state_dict()) == names
        assert not net.head.training

    def test_a_state_for_a_parameter_that_is_read_only_changes_nothing(self):
        net = Linear(2, 2)
        before = net.weight.value.copy()
        net.bias.value.flags.writeable = False
        with pytest.raises(ValueError, match="bias is read-only"):
            net.load_state_dict({"weight": before + 1, "bias": np.ones(2, np.float32)})
        np.testing.assert_array_equal(net.weight.value, before)

    def test_modules_that_know_each_other(self):
        net = Net()
        net.inner.owner = net
        assert len(net.modules()) == 5
        assert len(net.parameters()) == 4

    def test_a_step_between_forward_and_backward_is_noticed(self):
        net = Sequential(Linear(4, 3), Linear(3, 2)).seed(0)
        optimizer = SGD(net.parameters(), lr=1.0)
        first, second = (mse(net(X), np.zeros((2, 2), np.float32)) for _ in range(2))
        first.backward()
        optimizer.step()
        with pytest.raises(RuntimeError, match="of linear has been changed since the forward pass"):
            second.backward()
        third = mse(net(X), np.zeros((2, 2), np.float32))
        net.load_state_dict(net.state_dict())
        with pytest.raises(RuntimeError, match="of linear has been changed since the forward pass"):
            third.backward()

    def test_modes(self):
        net = Net()
        assert net.eval() is net
        assert not any(module.training for module in net.modules())
        assert all(module.training for module in net.train().modules())

    def test_seed_decides_everything(self):
        def make(seed):
            net = Sequential(Dropout(0.5), Linear(4, 8), BatchwiseDropout(0.5), Linear(8, 2))
            return net.seed(seed)

        def outputs(net):
            return np.concatenate([net(X).value for _ in range(3)])

        np.testing.assert_array_equal(outputs(make(1)), outputs(make(1)))
        assert (outputs(make(1)) != outputs(make(2))).any()
        net = make(np.random.default_rng(1))
        assert all(module.rng is net.rng for module in net.modules())
        np.testing.assert_array_equal(outputs(net), outputs(make(1)))

    def test_global_state_is_neither_read_nor_changed(self):
        before = np.random.get_state()[1].copy()  # noqa: NPY002
        a, b = (Sequential(Linear(4, 8), Dropout(0.5))(X).value for _ in range(2))
        assert (a != b).any()
        np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002

    def test_zero_grad(self):
        net = Linear(4, 2)
        mse(net(X), np.zeros((2, 2), np.float32)).backward()
        net.zero_grad()
        assert all(p.grad is None for p in net.parameters())

    def test_state_round_trip(self):
        a, b = Net().seed(1), Net().seed(2)
        state = a.state_dict()
        b.load_state_dict(state)
        for name, parameter in b.named_parameters():
            np.testing.assert_array_equal(parameter.value, state[name])
            assert parameter.value is not state[name]
        state["scale"][:] = 7  # A copy.
        assert (a.scale.value == 1).all()

    @pytest.mark.parametrize(
        ("error", "message", "change"),
        [
            (KeyError, "state lacks scale, inner.bias", {"scale": None, "inner.bias": None}),
            (KeyError, "state has the unexpected outer", {"outer": np.ones(3)}),
            (ValueError, r"'scale'\] must be .* of shape \(3,\), got", {"scale": np.ones(4, "f4")}),
            (ValueError, r"'scale'\] must be float32 .* got float64", {"scale": np.ones(3)}),
        ],
    )
    def test_a_state_that_does_not_fit_changes_nothing(self, error, message, change):
        net = Net()
        before = net.state_dict()
        state = {name: value + 1 for name, value in before.items()} | change
        with pytest.raises(error, match=message):
            net.load_state_dict({k: v for k, v in state.items() if v is not None})
        for name, value in net.state_dict().items():
            np.testing.assert_array_equal(value, before[name])

    @pytest.mark.parametrize("kind", [Parameter, Buffer])
    def test_a_holder_owns_its_value(self, kind):
        value = np.ones(3)
        kind(value).value[0] = 5
        assert value[0] == 1
        with pytest.raises(TypeError, match="value must be float32 or float64, got int64"):
            kind([1, 2])

    def test_buffers_are_state_and_not_trained(self):
        net = Sequential(Linear(4, 3), BatchNorm1d(3))
        names = ["1.running_mean", "1.running_var"]
        assert [name for name, _ in net.named_buffers()] == names
        assert len(net.parameters()) == 4
        assert [*net.state_dict()][4:] == names
        net(X)
        other = Sequential(Linear(4, 3), BatchNorm1d(3))
        other.load_state_dict(net.state_dict())
        for (_, one), (_, two) in zip(net.named_buffers(), other.named_buffers(), strict=True):
            np.testing.assert_array_equal(one.value, two.value)
            assert one.value is not two.value
        state = net.state_dict()
        del state["1.running_var"]
        with pytest.raises(KeyError, match=r"state lacks 1\.running_var"):
            net.load_state_dict(state)

    def test_a_module_without_a_call(self):
        with pytest.raises(NotImplementedError, match="Module does not define __call__"):
            Module()(X)


class TestLosses:
    def test_take_what_a_net_returns(self):
        net = Linear(4, 3)
        labels = [0, 2]
        for given_ in (net(X), net(X).values, net(X).value):
            expected = ops.cross_entropy(net(X).value, labels)
            assert float(cross_entropy(given_, labels)) == float(expected)
        assert float(mse(net(X), net(X).value)) == 0

    def test_all_units_are_wanted(self):
        part = Activation.of(X).take(IndexSet([0, 1], 4))
        with pytest.raises(ValueError, match="logits must have all of its 4 units, got 2"):
            cross_entropy(part, [0, 0])
        with pytest.raises(ValueError, match="prediction must have all of its 4 units, got 2"):
            mse(part, X)

    def test_whole_numbers_would_wrap_around(self):
        a, b = np.array([[5]], np.uint8), np.array([[250]], np.uint8)
        with pytest.raises(TypeError, match="prediction must be float32 or float64, got uint8"):
            mse(a, b)

    def test_no_grad(self):
        with no_grad():
            assert not cross_entropy(Linear(4, 3)(X), [0, 1]).requires_grad
