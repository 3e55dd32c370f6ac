"""Batch normalization: kernels against the reference, gradients, PyTorch as a second oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import DTYPES, LAYOUTS, WIDE, answer, laid_out

from numbadrop import kernels, ops
from numbadrop.autograd import Block, Variable, check_grads
from numbadrop.index_set import IndexSet
from numbadrop.kernels import normalization, reference

sizes = st.tuples(st.integers(1, 30) | st.integers(1, 700), st.sampled_from([1, 3, 31, 33, 130]))
seeds = st.integers(0, 2**32 - 1)
EPS = 1e-5


class TestKernels:
    @settings(max_examples=100)
    @given(
        shape=sizes,
        mean=st.sampled_from([0.0, -3.0, 1e3]),
        layout=st.sampled_from(LAYOUTS),
        dtype=st.sampled_from(DTYPES),
        factors=st.booleans(),
        training=st.booleans(),
        seed=seeds,
    )
    def test_against_reference(self, shape, mean, layout, dtype, factors, training, seed):
        rng = np.random.default_rng(seed)
        x, g = rng.standard_normal((2, *shape)).astype(dtype)
        x += dtype(mean)
        weight, bias = rng.standard_normal((2, shape[1])).astype(dtype) if factors else (None, None)
        wide_x, wide_g = x.astype(WIDE), g.astype(WIDE)
        x.flags.writeable = False
        x, g = (laid_out(a, layout)[0] for a in (x, g))

        moments = kernels.batch_moments(x)
        expected = reference.batch_moments(wide_x)
        # float64 sums of n terms of about 1, for both dtypes.
        few = 4 * len(x) * np.finfo(float).eps
        np.testing.assert_allclose(moments[0], expected[0].astype(float), rtol=few, atol=few)
        np.testing.assert_allclose(moments[1], expected[1].astype(float), rtol=few, atol=1e-30)

        # Given the moments, a value is rounded once.
        wide = [WIDE(1) if weight is None else weight.astype(WIDE)]
        offset = WIDE(0) if bias is None else bias.astype(WIDE)
        y = kernels.batch_norm(x, *moments, weight, bias, eps=EPS)
        near = reference.batch_norm(wide_x, *moments, *wide, offset, eps=WIDE(EPS))
        tiny = 2 * np.finfo(dtype).eps
        assert y.dtype == dtype
        np.testing.assert_allclose(y, near.astype(dtype), rtol=tiny, atol=1e-10)

        found = kernels.batch_norm_gradient(g, x, *moments, weight, eps=EPS, training=training)
        near = reference.batch_norm_gradient(
            wide_g, wide_x, *moments, *wide, eps=WIDE(EPS), training=training
        )
        steep = max(1, (1 / np.sqrt(moments[1] + EPS)).max())
        for array, oracle in zip(found, near, strict=True):
            assert array.dtype == dtype
            np.testing.assert_allclose(
                array, oracle.astype(dtype), rtol=tiny, atol=steep * len(x) * 1e-12
            )

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_a_large_mean_costs_the_variance_nothing(self, dtype):
        # Numbers that float32 holds exactly, two grid steps apart.
        x = np.tile(np.array([[2.0**22], [2.0**22 + 2]], dtype), (500, 3))
        mean, variance = kernels.batch_moments(x)
        np.testing.assert_array_equal(mean, [2.0**22 + 1] * 3)
        np.testing.assert_array_equal(variance, [1.0] * 3)
        y = kernels.batch_norm(x, mean, variance, eps=1e-12)
        np.testing.assert_allclose(y, np.tile([[-1.0], [1.0]], (500, 3)), rtol=1e-6)

    def test_a_first_row_far_from_all_others(self):
        x = np.random.default_rng(0).standard_normal((10_000, 2))
        x[0] = 1e6
        # Its distance squared is at most n variances: n sums of n terms round by n^2 eps at worst.
        expected = x.astype(WIDE).var(axis=0).astype(float)
        bound = len(x) ** 2 * np.finfo(float).eps
        np.testing.assert_allclose(kernels.batch_moments(x)[1], expected, rtol=bound)

    @pytest.mark.parametrize("value", [0.1, -1e30])
    def test_equal_values_have_no_variance(self, value):
        mean, variance = kernels.batch_moments(np.full((1000, 3), value))
        assert (mean == value).all()
        assert (variance == 0).all()

    def test_nan_stays_with_its_unit(self):
        x = np.ones((100, 3))
        x[7, 1] = np.nan
        moments = kernels.batch_moments(x)
        np.testing.assert_array_equal(np.isnan(moments), [[False, True, False]] * 2)
        y = kernels.batch_norm(x, *moments)
        np.testing.assert_array_equal(np.isnan(y), [[False, True, False]] * 100)

    def test_an_empty_batch(self):
        x, ones = np.ones((0, 3)), np.ones(3)
        assert kernels.batch_norm(x, ones, ones).shape == (0, 3)
        for training in (False, True):
            dx, *sums = kernels.batch_norm_gradient(x, x, ones, ones, training=training)
            assert dx.shape == (0, 3)
            np.testing.assert_array_equal(sums, np.zeros((2, 3)))

    def test_bad_input(self):
        x, ones = np.ones((2, 3)), np.ones(3)
        with pytest.raises(ValueError, match=r"^x must have at least one row .*, got shape \(0, 3"):
            kernels.batch_moments(x[:0])
        with pytest.raises(ValueError, match=r"^x must be two-dimensional, got shape \(3,\)"):
            kernels.batch_moments(ones)
        for name, arguments in (
            ("mean", (ones[:2], ones)),
            ("variance", (ones, ones[:2])),
            ("weight", (ones, ones, ones[:2])),
            ("bias", (ones, ones, None, ones[:2])),
        ):
            with pytest.raises(ValueError, match=rf"^{name} must have shape \(3,\), got \(2,\)"):
                kernels.batch_norm(x, *arguments)
        with pytest.raises(TypeError, match=r"^weight and x must have one dtype, got float32 and"):
            kernels.batch_norm(x, ones, ones, ones.astype(np.float32))
        for eps in (0.0, -1.0, np.nan, np.inf):
            with pytest.raises(ValueError, match=r"^eps must be positive and finite, got"):
                kernels.batch_norm(x, ones, ones, eps=eps)
        with pytest.raises(ValueError, match=r"^g must have the shape of x, \(2, 3\), got \(1, 3"):
            kernels.batch_norm_gradient(x[:1], x, ones, ones)
        with pytest.raises(TypeError, match=r"^g and x must have one dtype"):
            kernels.batch_norm_gradient(x.astype(np.float32), x, ones, ones)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("units", [IndexSet([0, 2], 4), IndexSet.all(4)], ids=str)
    def test_running_statistics(self, dtype, units):
        rng = np.random.default_rng(0)
        running, moments = rng.random((2, 4)).astype(dtype), rng.random((2, len(units)))
        expected = running.astype(WIDE)
        reference.track_moments(*expected, *moments, units, count=3, momentum=0.25)
        before = running.copy()
        kernels.track_moments(*running, *moments, units, count=3, momentum=0.25)
        np.testing.assert_allclose(running, expected.astype(dtype), rtol=2 * np.finfo(dtype).eps)
        out = ~units.mask()
        np.testing.assert_array_equal(running[:, out], before[:, out])

    def test_bad_running_statistics(self):
        units, two, three = IndexSet([0, 2], 3), np.ones(2), np.ones(3)
        for name, at in (("running_mean", 0), ("running_var", 1), ("mean", 2), ("variance", 3)):
            arrays = [three, three, two, two]
            arrays[at] = np.ones(5)
            with pytest.raises(ValueError, match=rf"^{name} must have shape .*, got \(5,\)"):
                kernels.track_moments(*arrays, units, count=3, momentum=0.1)
        with pytest.raises(TypeError, match=r"^running_var and running_mean must have one dtype"):
            kernels.track_moments(
                three, np.ones(3, np.float32), two, two, units, count=3, momentum=0.1
            )
        with pytest.raises(TypeError, match=r"^variance must be float64, got float32"):
            kernels.track_moments(
                three, three, two, two.astype(np.float32), units, count=3, momentum=0.1
            )
        with pytest.raises(TypeError, match=r"^mean must be a NumPy array or a DeviceArray, got l"):
            kernels.track_moments(three, three, [1, 1], two, units, count=3, momentum=0.1)
        with pytest.raises(ValueError, match=r"^count must be at least 2, got 1"):
            kernels.track_moments(three, three, two, two, units, count=1, momentum=0.1)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_any_number_of_threads_gives_the_same_bits(self, dtype, monkeypatch):
        monkeypatch.setattr(normalization, "_SERIAL_BELOW", 0)
        rng = np.random.default_rng(0)
        x, g = rng.standard_normal((2, 2500, 33)).astype(dtype)
        results = set()
        before = kernels.get_num_threads()
        try:
            for threads in (1, 2, 3, 4, 5):
                kernels.set_num_threads(threads)
                moments = kernels.batch_moments(x)
                y = kernels.batch_norm(x, *moments)
                gradients = kernels.batch_norm_gradient(g, x, *moments)
                results.add(b"".join(a.tobytes() for a in (*moments, y, *gradients)))
        finally:
            kernels.set_num_threads(before)
        assert len(results) == 1

    def test_no_byte_outside_an_operand(self):
        answer(
            "-c",
            """
from kernel_checks import *
for dtype, shape, at_end in itertools.product(
    DTYPES, [(1, 1), (3, 17), (700, 33), (65, 130), (4000, 31)], (True, False)
):
    x = guarded(np.random.default_rng(0).standard_normal(shape).astype(dtype), at_end)
    weight, bias = (guarded(np.ones(shape[1], dtype), at_end) for _ in range(2))
    moments = [guarded(m, at_end) for m in kernels.batch_moments(x)]
    y = guarded(kernels.batch_norm(x, *moments, weight, bias), at_end)
    kernels.batch_norm_gradient(y, x, *moments, weight)
""",
        )


def normalized(x, weight, bias, units, training):
    """Normalize by moments that a difference of x changes too."""
    rows = x.value.reshape(-1, x.shape[-1])
    moments = kernels.batch_moments(rows) if training else (np.full(len(rows[0]), 0.5),) * 2
    return ops.batch_norm(x, *moments, weight, bias, units, EPS, training)


class TestOp:
    @settings(max_examples=30)
    @given(
        shape=st.sampled_from([(2,), (5,), (2, 3), (2, 2, 3)]),
        kept=st.none() | st.sets(st.integers(0, 3), min_size=1),
        affine=st.booleans(),
        training=st.booleans(),
        seed=seeds,
    )
    def test_value_and_gradients(self, shape, kept, affine, training, seed):
        rng = np.random.default_rng(seed)
        units = kept and IndexSet(sorted(kept), 4)
        inside = slice(None) if units is None else units.indices
        x = rng.standard_normal((*shape, 4))[..., inside]
        # Far enough apart that the third derivative does not spoil the differences.
        x[0] += 3
        weight, bias = rng.standard_normal((2, 4)) if affine else (None, None)
        check_grads(normalized, [x, weight, bias, units, training], rtol=1e-5, atol=1e-7)

        rows = x.reshape(-1, x.shape[-1])
        moments = (rows.mean(axis=0), rows.var(axis=0)) if training else (0.5, 0.5)
        factors = (weight[inside], bias[inside]) if affine else ()
        expected = reference.batch_norm(x, *moments, *factors, eps=EPS)
        y = normalized(Variable(x), weight, bias, units, training).value
        np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-12)

    def test_other_units_are_never_read(self):
        units = IndexSet([0, 2], 4)
        weight, bias = (Variable(np.full(4, np.nan), requires_grad=True) for _ in range(2))
        weight.value[units.indices] = bias.value[units.indices] = 1
        x = Variable(np.arange(6.0).reshape(3, 2), requires_grad=True)
        y = normalized(x, weight, bias, units, True)
        y.backward(np.ones((3, 2)))
        assert isinstance(weight.grad, Block)
        assert weight.grad.index == bias.grad.index == (units,)
        for array in (y.value, x.grad, weight.grad.values, bias.grad.values):
            assert np.isfinite(array).all()


def test_against_pytorch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    for number in range(120):
        training = number % 4 != 0
        units = int(rng.choice([1, 3, 31, 33]))
        shape = (*map(int, rng.integers(2, 7, rng.choice([1, 3]))), units)
        x = rng.standard_normal(shape) * rng.uniform(0.1, 10) + rng.uniform(-100, 100)
        g, weight, bias = (rng.standard_normal(n) for n in (shape, units, units))
        running = [rng.standard_normal(units), rng.uniform(0.5, 2, units)]
        eps = float(10 ** rng.uniform(-8, -1))

        ours = [Variable(a, requires_grad=True) for a in (x, weight, bias)]
        moments = kernels.batch_moments(x.reshape(-1, units)) if training else running
        y = ops.batch_norm(ours[0], *moments, *ours[1:], None, eps, training)
        y.backward(g)

        theirs = [torch.tensor(np.moveaxis(x, -1, 1).copy(), requires_grad=True)]
        theirs += [torch.tensor(a, requires_grad=True) for a in (weight, bias)]
        expected = torch.nn.functional.batch_norm(
            theirs[0], *map(torch.tensor, running), *theirs[1:], training, 0.1, eps
        )
        expected.backward(torch.tensor(np.moveaxis(g, -1, 1).copy()))
        pairs = [(y.value, expected.detach())] + [
            (a.grad, b.grad) for a, b in zip(ours, theirs, strict=True)
        ]
        # A gradient is a small difference of terms as large as this.
        steepest = max(1, (1 / np.sqrt(moments[1] + eps)).max())
        for one, other in pairs:
            other = other.numpy()
            other = np.moveaxis(other, 1, -1) if other.ndim > 1 else other
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-11 * steepest)


def test_moments_that_cannot_be_tracked_leave_the_others_alone():
    means, variances = np.zeros(2, np.float32), np.ones(2, np.float32)
    variances.flags.writeable = False
    moments, units = (np.ones(2), np.ones(2)), IndexSet.all(2)
    with pytest.raises(ValueError, match="running_var is read-only"):
        kernels.track_moments(means, variances, *moments, units, count=3, momentum=0.5)
    assert (means == 0).all()
    variances.flags.writeable = True
    with np.errstate(all="raise"):  # as a kernel, it says nothing of what is too large
        huge = np.full(2, 1e200)
        kernels.track_moments(means, variances, huge, huge, units, count=3, momentum=0.5)
    assert np.isinf(means).all()
    assert np.isinf(variances).all()
