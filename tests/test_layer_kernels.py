"""What surrounds the products of a step: the layer's epilogue, its gradient, dropped inputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import (
    DTYPES,
    LAYOUTS,
    SETS,
    WIDE,
    answer,
    assert_same_bits,
    count,
    gamma,
    laid_out,
    make_set,
    operands,
)

from numbadrop import kernels
from numbadrop.index_set import IndexSet
from numbadrop.kernels import elementwise, masks, reference, run_product, softmax
from numbadrop.kernels.blocking import _DEPTH_BLOCK

sizes = st.integers(0, 20) | st.integers(0, 110)
kinds = st.sampled_from(SETS)
layouts = st.sampled_from(LAYOUTS)
dtypes = st.sampled_from(DTYPES)
slopes = st.sampled_from([0.0, 0.01, 1.0, 2.5])
scales = st.sampled_from([1.0, 0.75, 3.0])
seeds = st.integers(0, 2**32 - 1)


class TestGatheredLinear:
    @settings(max_examples=150)
    @given(
        shape=st.tuples(
            sizes, sizes | st.sampled_from([_DEPTH_BLOCK + 1, 2 * _DEPTH_BLOCK + 1]), sizes
        ),
        sets=st.tuples(kinds, kinds),
        layout=layouts,
        dtype=dtypes,
        bias=st.booleans(),
        slope=slopes,
        scale=scales,
        seed=seeds,
    )
    def test_within_the_bound_of_rounding(
        self, shape, sets, layout, dtype, bias, slope, scale, seed
    ):
        rng = np.random.default_rng(seed)
        rows, cols = (make_set(*pair, rng) for pair in zip(sets, shape[1:], strict=True))
        x, w = operands("gathered_matmul", dtype, shape, rows, cols, rng)
        b = np.full(shape[2], np.nan, dtype)
        inside = slice(None) if cols is None else cols.indices
        b[inside] = rng.standard_normal(count(cols, shape[2])) if bias else 0
        wide = [a.astype(WIDE) for a in (x, w, b)]
        expected = reference.gathered_linear(*wide, rows, cols, slope=slope, scale=scale)
        # Sums, bias, slope and scale round once each; the rectifier never widens a difference by
        # more than its steeper side.
        largest = reference.gathered_linear(*map(abs, wide), rows, cols, scale=scale)
        bound = gamma(len(w) + 3, dtype) * largest * max(1, slope)
        x, w = (laid_out(a, layout)[0] for a in (x, w))
        b = laid_out(b[None], layout)[0][0] if bias else None
        result = kernels.gathered_linear(x, w, b, rows, cols, slope=slope, scale=scale)
        assert result.dtype == dtype
        assert result.shape == expected.shape
        assert (abs(result - expected) <= bound).all()
        # `out` of any layout gets the same bits.
        out, _ = laid_out(np.full(result.shape, np.nan, dtype), "spread")
        kernels.gathered_linear(x, w, b, rows, cols, slope=slope, scale=scale, out=out)
        assert_same_bits(out.copy(), result)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_without_an_epilogue_it_is_the_product(self, dtype):
        rng = np.random.default_rng(0)
        x, w = (rng.standard_normal(shape).astype(dtype) for shape in ((13, 400), (400, 60)))
        assert_same_bits(kernels.gathered_linear(x, w), kernels.gathered_matmul(x, w))

    def test_nan_stays_nan(self):
        y = kernels.gathered_linear(np.full((1, 1), np.nan), np.ones((1, 3)), slope=0.0)
        assert np.isnan(y).all()

    @pytest.mark.parametrize("slope", [0.0, 0.5])
    def test_infinity(self, slope):
        x = np.array([[np.inf], [-np.inf]])
        y = kernels.gathered_linear(x, np.ones((1, 2)), slope=slope, scale=2.0)
        np.testing.assert_array_equal(y, [[np.inf] * 2, [0 if slope == 0 else -np.inf] * 2])
        np.testing.assert_array_equal(
            y, reference.gathered_linear(x, np.ones((1, 2)), np.zeros(2), slope=slope, scale=2.0)
        )

    def test_no_inputs_leave_the_bias(self):
        b = np.array([1.0, -2.0])
        y = kernels.gathered_linear(np.ones((3, 0)), np.ones((0, 2)), b, slope=0.5, scale=2.0)
        np.testing.assert_array_equal(y, [[2.0, -2.0]] * 3)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"b": np.ones(3)}, r"^b must have shape \(4,\), got \(3,\)"),
            ({"b": np.ones(4, np.float32)}, r"^b and w must have one dtype"),
            ({"b": np.ones((1, 4))}, r"^b must have shape \(4,\), got \(1, 4\)"),
            ({"slope": -0.1}, r"^slope must be in \[0, 2\*\*127\], got -0.1"),
            ({"slope": np.inf}, r"^slope must be in \[0, 2\*\*127\], got inf"),
            ({"slope": np.nan}, r"^slope must be in \[0, 2\*\*127\], got nan"),
            ({"scale": 0.0}, r"^scale must be in \[2\*\*-126, 2\*\*127\], got 0.0"),
            ({"scale": 1e39}, r"^scale must be in"),
            ({"scale": "2"}, r"^scale must be a real number, got '2'"),
            ({"slope": None}, r"^slope must be a real number, got None"),
            ({"scale": np.nan}, r"^scale must be in \[2\*\*-126, 2\*\*127\], got nan"),
        ],
    )
    def test_bad_input(self, changes, message):
        out = np.full((2, 4), 7.0)
        with pytest.raises((ValueError, TypeError), match=message):
            kernels.gathered_linear(np.ones((2, 3)), np.ones((3, 4)), **changes, out=out)
        np.testing.assert_array_equal(out, 7.0)

    def test_out_that_overlaps_the_bias(self):
        memory = np.ones((3, 4))
        with pytest.raises(ValueError, match=r"^out overlaps b"):
            kernels.gathered_linear(np.ones((2, 3)), np.ones((3, 4)), memory[1], out=memory[:2])


CHUNK = elementwise._SUMMED_ROWS


class TestRectifierGradient:
    @given(
        shape=st.tuples(sizes | st.sampled_from([CHUNK, CHUNK + 1, 3 * CHUNK - 1]), sizes),
        layout=layouts,
        dtype=dtypes,
        slope=slopes,
        scale=scales,
        seed=seeds,
    )
    def test_against_reference(self, shape, layout, dtype, slope, scale, seed):
        rng = np.random.default_rng(seed)
        g, y = rng.standard_normal((2, *shape)).astype(dtype)
        y[rng.random(shape) < 0.2] = 0
        expected, sums = reference.rectifier_gradient(
            g.astype(WIDE), y.astype(WIDE), slope=slope, scale=scale
        )
        laid = (laid_out(a, layout)[0] for a in (g, y))
        h, total = kernels.rectifier_gradient(*laid, slope=slope, scale=scale)
        assert h.dtype == total.dtype == dtype
        assert (abs(h - expected) <= gamma(2, dtype) * abs(expected)).all()
        assert (abs(total - sums) <= gamma(shape[0] + 2, dtype) * abs(expected).sum(axis=0)).all()

    def test_the_error_of_a_long_sum_is_that_of_its_chunks(self):
        """A sum of chunks takes as many additions as a chunk has rows, and as there are chunks."""
        rows = 1000 * CHUNK
        g = np.random.default_rng(0).random((rows, 2), np.float32)
        _, sums = kernels.rectifier_gradient(g, g)
        expected = g.sum(axis=0, dtype=np.float64)
        assert (abs(sums - expected) <= gamma(CHUNK + 1000, np.float32) * expected).all()

    @pytest.mark.parametrize("slope", [0.1, 1.0])
    def test_any_number_of_threads_sums_alike(self, slope, monkeypatch):
        monkeypatch.setattr(elementwise, "_GRADIENT_SERIAL_BELOW", 0)
        g, y = np.random.default_rng(0).standard_normal((2, 9 * CHUNK + 5, 3)).astype(np.float32)
        before = kernels.get_num_threads()
        results = set()
        try:
            for threads in (1, 2, 3, 5):
                kernels.set_num_threads(threads)
                h, sums = kernels.rectifier_gradient(g, y, slope=slope)
                results.add(h.tobytes() + sums.tobytes())
        finally:
            kernels.set_num_threads(before)
        assert len(results) == 1

    def test_bad_input(self):
        g = np.ones((2, 3))
        with pytest.raises(
            ValueError, match=r"^g must have the shape of y, \(2, 4\), got \(2, 3\)"
        ):
            kernels.rectifier_gradient(g, np.ones((2, 4)))
        with pytest.raises(TypeError, match=r"^g and y must have one dtype"):
            kernels.rectifier_gradient(g, np.ones((2, 3), np.float32))
        with pytest.raises(ValueError, match=r"^slope must be in"):
            kernels.rectifier_gradient(g, g, slope=-1.0)


class TestTakeColumns:
    @given(
        shape=st.tuples(sizes, st.integers(1, 110)),
        kind=kinds,
        layout=layouts,
        dtype=dtypes,
        factor=st.sampled_from([1.0, 1.25]),
        seed=seeds,
    )
    def test_against_reference(self, shape, kind, layout, dtype, factor, seed):
        rng = np.random.default_rng(seed)
        cols = make_set(kind, shape[1], rng)
        x = rng.standard_normal(shape).astype(dtype)
        expected = reference.take_columns(x, cols, dtype(factor))
        laid = laid_out(x, layout)[0]
        taken = kernels.take_columns(laid, cols, factor)
        assert_same_bits(taken, expected)
        assert not np.shares_memory(taken, laid)

    def test_bad_input(self):
        with pytest.raises(ValueError, match=r"^cols must be in \[0, 3\), got 3"):
            kernels.take_columns(np.ones((2, 3)), [0, 3])
        with pytest.raises(ValueError, match=r"^cols is a set of 4 units, the axis has 3"):
            kernels.take_columns(np.ones((2, 3)), IndexSet([0], 4))
        with pytest.raises(TypeError, match=r"^x must be float32 or float64, got int64"):
            kernels.take_columns(np.ones((2, 3), int), [0])


class TestSampleUnits:
    @given(size=st.integers(1, 40), kind=kinds, seed=seeds, data=st.data())
    def test_draws_a_subset(self, size, kind, seed, data):
        kept = make_set(kind, size, np.random.default_rng(seed)) or IndexSet.all(size)
        keep = data.draw(st.integers(1, len(kept)))
        drawn = kernels.sample_units(kept, keep, np.random.default_rng(seed))
        assert len(drawn) == keep
        assert drawn.size == kept.size
        assert {*drawn.indices.tolist()} <= {*kept.indices.tolist()}
        assert drawn == IndexSet(drawn.indices, drawn.size)  # ascending, unique
        assert drawn == kernels.sample_units(kept, keep, np.random.default_rng(seed))

    def test_is_uniform(self):
        rng = np.random.default_rng(0)
        draws, keep = 4000, 3
        counts = sum(
            kernels.sample_units(IndexSet.all(10), keep, rng).mask().astype(int)
            for _ in range(draws)
        )
        # Each count is binomial: 1200 with standard deviation 29. Five of those: 6e-6 by chance.
        np.testing.assert_allclose(counts, draws * keep / 10, atol=5 * 29)

    @pytest.mark.parametrize("keep", [0, -1, 3])
    def test_wrong_size(self, keep):
        with pytest.raises(ValueError, match=rf"^keep must be in \[1, 2\], got {keep}"):
            kernels.sample_units(IndexSet([0, 2], 4), keep, np.random.default_rng(0))

    def test_wrong_generator(self):
        with pytest.raises(TypeError, match=r"^rng must be a numpy.random.Generator, got Random"):
            kernels.sample_units(IndexSet([0, 2], 4), 1, np.random.RandomState(0))


def test_kernels_that_end_in_numpy_are_silent():
    """As all others are, whose arithmetic NumPy does not see."""
    x = np.ones((600, 2))
    x[0], x[-1] = np.inf, -np.inf
    with np.errstate(all="raise"):
        _, sums = kernels.rectifier_gradient(x, x)
        assert np.isnan(sums).all()
        assert np.isinf(kernels.take_columns(np.full((2, 2), 1e300), None, 1e300)).all()
        kernels.batch_moments(x)
        kernels.batch_moments(np.array([[1e200], [3e200]]))


class TestDropoutMask:
    @given(
        shape=st.lists(st.integers(0, 12), max_size=4).map(tuple),
        p=st.floats(0, 1, exclude_max=True) | st.sampled_from([0.1, 0.5, 0.9, 1 - 2.0**-53]),
        dtype=dtypes,
        seed=seeds,
    )
    def test_has_the_bits_of_numpy(self, shape, p, dtype, seed):
        like = np.empty(0, dtype)
        mask = kernels.dropout_mask(shape, p, np.random.default_rng(seed), like)
        assert mask.shape == shape
        wanted = reference.dropout_mask(shape, p, np.random.default_rng(seed), like)
        assert_same_bits(mask, wanted)

    @pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
    def test_shared_by_threads(self, p):
        shape, like = (3, masks._SERIAL_BELOW), np.empty(0, np.float32)
        mask = kernels.dropout_mask(shape, p, np.random.default_rng(0), like)
        assert_same_bits(mask, reference.dropout_mask(shape, p, np.random.default_rng(0), like))
        # 60,000 draws: four standard deviations are at most 0.0082.
        np.testing.assert_allclose((mask == 0).mean(), p, atol=0.0082)

    def test_every_mask_is_another(self):
        rng, like = np.random.default_rng(0), np.empty(0)
        first, second = (kernels.dropout_mask((4, 50), 0.5, rng, like) for _ in range(2))
        # 200 pairs, half of them alike: four standard deviations are 0.14.
        np.testing.assert_allclose((first == second).mean(), 0.5, atol=0.14)

    def test_bad_input(self):
        rng, like = np.random.default_rng(0), np.empty(0)
        for p in (-0.1, 1, float("nan")):
            with pytest.raises(ValueError, match=r"^p, the fraction dropped, must be in \[0, 1\)"):
                kernels.dropout_mask((2,), p, rng, like)
        with pytest.raises(TypeError, match=r"^p must be a real number, got '0.5'"):
            kernels.dropout_mask((2,), "0.5", rng, like)
        with pytest.raises(TypeError, match=r"^shape must be a tuple of ints, got \(2, 1.5\)"):
            kernels.dropout_mask((2, 1.5), 0.5, rng, like)
        with pytest.raises(ValueError, match=r"^shape must have no negative length, got \(2, -1\)"):
            kernels.dropout_mask((2, -1), 0.5, rng, like)
        with pytest.raises(TypeError, match=r"^like must be a NumPy array or a DeviceArray, got "):
            kernels.dropout_mask((2,), 0.5, rng, [1.0])
        with pytest.raises(TypeError, match=r"^like must be float32 or float64, got int64"):
            kernels.dropout_mask((2,), 0.5, rng, np.empty(0, np.int64))


class TestCrossEntropy:
    @given(
        shape=st.tuples(sizes, st.integers(1, 110)),
        layout=layouts,
        labels=st.sampled_from([np.int64, np.uint8, np.int32]),
        dtype=dtypes,
        spread=st.sampled_from([0.0, 1.0, 30.0]),
        seed=seeds,
    )
    def test_against_reference(self, shape, layout, labels, dtype, spread, seed):
        rng = np.random.default_rng(seed)
        logits = (spread * rng.standard_normal(shape)).astype(dtype)
        labels = rng.integers(shape[1], size=shape[0]).astype(labels)
        wide = logits.astype(WIDE)
        laid = laid_out(logits, layout)[0]
        losses = kernels.cross_entropy(laid, labels)
        gradient = kernels.cross_entropy_gradient(laid, labels, 0.75)
        assert losses.dtype == gradient.dtype == dtype
        # The differences of logits round once, and so a power by as many units as they are large.
        unit = np.finfo(dtype).eps
        largest = 1 + 2 * abs(logits).max(initial=0)
        expected = reference.cross_entropy(wide, labels)
        assert (abs(losses - expected) <= 2 * unit * largest).all()
        expected = reference.cross_entropy_gradient(wide, labels, 0.75)
        assert (abs(gradient - expected) <= 4 * unit * largest).all()

    def test_a_sum_over_many_classes_is_as_exact_as_over_few(self):
        logits = np.random.default_rng(0).random((2, 1 << 18)).astype(np.float32)
        losses = kernels.cross_entropy(logits, [0, 5])
        expected = reference.cross_entropy(logits.astype(float), [0, 5])
        np.testing.assert_allclose(losses, expected, rtol=4 * np.finfo(np.float32).eps)

    @pytest.mark.parametrize("kernel", [kernels.cross_entropy, kernels.cross_entropy_gradient])
    @pytest.mark.parametrize(
        ("labels", "error", "message"),
        [
            ([0, 3], ValueError, r"^labels must be in \[0, 3\), labels\[1\] is 3"),
            ([-1, 0], ValueError, r"^labels must be in \[0, 3\), labels\[0\] is -1"),
            (
                np.array([0, 2**64 - 1], np.uint64),
                ValueError,
                r"^labels must be in \[0, 3\), labels\[1\] is 18446744073709551615",
            ),
            ([0.0, 1.0], TypeError, r"^labels must be integers in \[0, 3\), got dtype float64"),
            ([0.0, np.nan], ValueError, r"^labels must be integers .*, labels\[1\] is nan"),
            ([0], ValueError, r"^labels must have shape \(2,\) as logits, got \(1,\)"),
        ],
    )
    def test_bad_labels(self, kernel, labels, error, message):
        with pytest.raises(error, match=message):
            kernel(np.ones((2, 3)), labels)

    def test_no_classes(self):
        with pytest.raises(ValueError, match=r"^labels must be in \[0, 0\), labels\[0\] is 0"):
            kernels.cross_entropy(np.ones((1, 0)), [0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cols", [1, 7, 16, 33])
def test_no_gradient_passes_where_nothing_does(dtype, cols):
    """Not even one that is infinite, or not a number: a root has one at 0."""
    y = np.tile(np.array([0.0, 2.0], dtype), (cols, 1)).T.copy()
    for bad in (np.inf, -np.inf, np.nan):
        h, sums = kernels.rectifier_gradient(np.full((2, cols), bad, dtype), y, slope=0.0)
        np.testing.assert_array_equal(h[0], 0)
        np.testing.assert_array_equal(h[1], bad)
        np.testing.assert_array_equal(sums, bad)


def test_any_number_of_threads_gives_the_same_bits(monkeypatch):
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((31, 90), (90, 70), 70))
    assert run_product._SERIAL_BELOW <= 31 * 90 * 70
    monkeypatch.setattr(elementwise, "_TAKE_SERIAL_BELOW", 0)
    monkeypatch.setattr(elementwise, "_GRADIENT_SERIAL_BELOW", 0)
    monkeypatch.setattr(softmax, "_SERIAL_BELOW", 0)
    monkeypatch.setattr(masks, "_SERIAL_BELOW", 0)
    results = set()
    before = kernels.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            kernels.set_num_threads(threads)
            y = kernels.gathered_linear(x, w, b, slope=0.1, scale=1.5)
            h, sums = kernels.rectifier_gradient(y, y, slope=0.1, scale=1.5)
            taken = kernels.take_columns(y, np.arange(0, 70, 3), 0.5)
            losses = kernels.cross_entropy(y, np.arange(31))
            dy = kernels.cross_entropy_gradient(y, np.arange(31))
            mask = kernels.dropout_mask((31, 71), 0.5, np.random.default_rng(0), y)
            results.add(b"".join(a.tobytes() for a in (y, h, sums, taken, losses, dy, mask)))
    finally:
        kernels.set_num_threads(before)
    assert len(results) == 1


def test_no_byte_outside_an_operand():
    answer(
        "-c",
        """
from kernel_checks import *
for dtype, shape, at_end in itertools.product(
    DTYPES, [(1, 1, 1), (3, 5, 17), (9, 33, 16), (65, 130, 47)], (True, False)
):
    rng = np.random.default_rng(0)
    batch, n_in, n_out = shape
    rows, cols = (
        IndexSet._trusted(guarded(make_set("half", n, rng).indices, at_end), n)
        for n in (n_in, n_out)
    )
    x, w = operands("gathered_matmul", dtype, shape, rows, cols, rng)
    x, w, b, y, whole = (
        guarded(a, at_end)
        for a in (
            x, w, np.ones(n_out, dtype), np.empty((batch, len(cols)), dtype),
            np.ones((batch, n_in), dtype),
        )
    )
    kernels.gathered_linear(x, w, b, rows, cols, slope=0.5, out=y)
    kernels.rectifier_gradient(y, y, slope=0.5)
    kernels.take_columns(whole, rows)
    labels = guarded(np.zeros(batch, np.int64), at_end)
    kernels.cross_entropy(whole, labels)
    kernels.cross_entropy_gradient(whole, labels)
""",
    )
