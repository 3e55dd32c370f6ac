"""Pooling: kernels against the reference, gradients, and PyTorch as a second oracle."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_checks import DTYPES, WIDE, answer, assert_same_bits, gamma, in_layout

from numbadrop import kernels, ops
from numbadrop.autograd import check_grads
from numbadrop.kernels import pooling, reference

LAYOUTS = ("C", "channels first", "reversed", "spread", "unaligned", "read-only")
seeds = st.integers(0, 2**32 - 1)
pairs = st.integers(1, 4) | st.tuples(st.integers(1, 4), st.integers(1, 4))


@st.composite
def windows(draw):
    """Draw (size, stride, padding), each an int or a pair."""
    size = draw(pairs)
    sizes = (size, size) if isinstance(size, int) else size
    padding = draw(
        st.integers(0, min(sizes) // 2) | st.tuples(*(st.integers(0, n // 2) for n in sizes))
    )
    return size, draw(st.none() | pairs), padding


@st.composite
def shapes(draw, batch=4):
    units = draw(st.sampled_from([1, 3, 8, 31, 33]))
    return (*draw(st.tuples(st.integers(0, batch), *[st.integers(1, 9)] * 2)), units)


def fits(shape, window):
    try:
        pooling.Window.of(*window).positions(*shape[1:3])
    except ValueError:
        return False
    return True


def integers(shape, dtype, rng):
    """Return few different numbers, so that windows have several largest ones."""
    return rng.integers(-3, 4, shape).astype(dtype)


class TestKernels:
    @settings(max_examples=150)
    @given(
        shape=shapes(), window=windows(), layout=st.sampled_from(LAYOUTS),
        dtype=st.sampled_from(DTYPES), seed=seeds,
    )  # fmt: skip
    def test_against_reference(self, shape, window, layout, dtype, seed):
        assume(fits(shape, window))
        rng = np.random.default_rng(seed)
        x = integers(shape, dtype, rng)
        laid = in_layout(x, layout)
        y = kernels.max_pool2d(laid, *window)
        assert_same_bits(y, reference.max_pool2d(x, *window))
        # Sums of small whole numbers are exact, in whatever order.
        g = integers(y.shape, dtype, rng)
        dx = kernels.max_pool2d_gradient(in_layout(g, layout), laid, in_layout(y, layout), *window)
        np.testing.assert_array_equal(dx, reference.max_pool2d_gradient(g, x, y, *window))
        assert dx.dtype == dtype

        mean = kernels.avg_pool2d(laid, *window)
        expected = reference.avg_pool2d(x.astype(WIDE), *window)
        assert mean.dtype == dtype
        assert (abs(mean - expected) <= gamma(2, dtype) * abs(expected)).all()
        dx = kernels.avg_pool2d_gradient(in_layout(g, layout), shape, *window)
        expected = reference.avg_pool2d_gradient(g.astype(WIDE), shape, *window)
        largest = reference.avg_pool2d_gradient(abs(g).astype(WIDE), shape, *window)
        assert dx.dtype == dtype
        assert (abs(dx - expected) <= gamma(18, dtype) * largest).all()

    def test_nan_is_the_largest(self):
        x = np.zeros((1, 2, 6, 2))
        x[0, 1, 1, 0] = np.nan
        x[0, 0, 4] = np.inf
        y = kernels.max_pool2d(x, 2)
        np.testing.assert_array_equal(y[0, 0], [[np.nan, 0], [0, 0], [np.inf, np.inf]])
        dx = kernels.max_pool2d_gradient(np.ones_like(y), x, y, 2)
        np.testing.assert_array_equal(np.argwhere(dx[0, ..., 0]), [[0, 2], [0, 4], [1, 1]])
        assert np.isnan(kernels.avg_pool2d(x, 2)[0, 0, 0, 0])

    def test_windows_of_minus_infinity(self):
        x = np.full((1, 3, 3, 1), -np.inf)
        y = kernels.max_pool2d(x, 2, 1, 1)
        assert (y == -np.inf).all()
        # Never to the padding.
        assert kernels.max_pool2d_gradient(np.ones_like(y), x, y, 2, 1, 1).sum() == y.size

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ((0,), ValueError, r"^size must be at least 1, got 0"),
            (((2, -1),), ValueError, r"^size must be at least 1, got \(2, -1\)"),
            ((2, 0), ValueError, r"^stride must be at least 1, got 0"),
            ((3, 1, 2), ValueError, r"^padding must be in \[0, size / 2\], got 2 with size 3"),
            ((3, 1, -1), ValueError, r"^padding must be at least 0, got -1"),
            (((4, 1), 1, 1), ValueError, r"^padding must be in .*, got 1 with size \(4, 1\)"),
            ((2.0,), TypeError, r"^size must be an int or a pair of ints, got 2.0"),
            (((1, 2, 3),), TypeError, r"^size must be an int or a pair of ints, got \(1, 2, 3\)"),
            ((2, "2"), TypeError, r"^stride must be an int or a pair of ints, got '2'"),
            ((2, 1, (0, None)), TypeError, r"^padding must be an int or .*, got \(0, None\)"),
            (
                ((6, 2), 1, (1, 0)),
                ValueError,
                r"^x must have images that hold a window of 6 x 2 pixels, got 3 x 4, padded to 5",
            ),
        ],
    )
    @pytest.mark.parametrize("pool", [kernels.max_pool2d, kernels.avg_pool2d])
    def test_bad_geometry(self, pool, arguments, error, message):
        with pytest.raises(error, match=message):
            pool(np.ones((2, 3, 4, 5)), *arguments)

    def test_bad_input(self):
        x, y = np.ones((2, 4, 4, 5)), np.ones((2, 2, 2, 5))
        with pytest.raises(ValueError, match=r"^x must have shape \(batch, height, width, units\)"):
            kernels.max_pool2d(x[0], 2)
        with pytest.raises(ValueError, match=r"^x must have images .*, got 0 x 4, padded to 2 x 6"):
            kernels.max_pool2d(x[:, :0], 2, 1, 1)
        with pytest.raises(TypeError, match=r"^x must be float32 or float64, got int64"):
            kernels.avg_pool2d(x.astype(int), 2)
        with pytest.raises(ValueError, match=r"^g must have shape \(2, 2, 2, 5\), got \(2, 1, 2"):
            kernels.avg_pool2d_gradient(y[:, :1], x.shape, 2)
        with pytest.raises(ValueError, match=r"^g must have shape \(2, 4, 4, 5\), got \(2, 2, 2"):
            kernels.max_pool2d_gradient(y, x, y, 1)
        with pytest.raises(ValueError, match=r"^g must have the shape of y, \(2, 2, 2, 5\), got"):
            kernels.max_pool2d_gradient(y[1:], x, y, 2)
        with pytest.raises(TypeError, match=r"^g and x must have one dtype, got float64 and fl"):
            kernels.max_pool2d_gradient(y, x.astype(np.float32), y, 2)
        with pytest.raises(ValueError, match=r"^shape must be \(batch, height, width, units\)"):
            kernels.avg_pool2d_gradient(y, (2, 4, 4), 2)

    def test_any_number_of_threads_gives_the_same_bits(self, monkeypatch):
        monkeypatch.setattr(pooling, "_SERIAL_BELOW", 0)
        rng = np.random.default_rng(0)
        x = rng.standard_normal((3, 11, 7, 5)).astype(np.float32)
        results = set()
        before = kernels.get_num_threads()
        try:
            for threads in (1, 2, 3, 4, 5):
                kernels.set_num_threads(threads)
                arrays = []
                for window in ((2,), (3, 1, 1), (3, 2), (2, 5)):
                    y, mean = kernels.max_pool2d(x, *window), kernels.avg_pool2d(x, *window)
                    arrays += [
                        y,
                        mean,
                        kernels.max_pool2d_gradient(mean, x, y, *window),
                        kernels.avg_pool2d_gradient(mean, x.shape, *window),
                    ]
                results.add(b"".join(a.tobytes() for a in arrays))
        finally:
            kernels.set_num_threads(before)
        assert len(results) == 1

    def test_no_byte_outside_an_operand(self):
        answer(
            "-c",
            """
from kernel_checks import *
windows = [(1,), (2,), (3, 2, 1), (3, 1, 1), ((2, 3), (1, 4))]
for dtype, shape, at_end, window in itertools.product(
    DTYPES, [(1, 3, 3, 1), (2, 7, 5, 31), (2, 40, 40, 33)], (True, False), windows
):
    x = guarded(np.random.default_rng(0).standard_normal(shape).astype(dtype), at_end)
    y = guarded(kernels.max_pool2d(x, *window), at_end)
    kernels.max_pool2d_gradient(y, x, y, *window)
    kernels.avg_pool2d(x, *window)
    kernels.avg_pool2d_gradient(y, shape, *window)
""",
        )


class TestGradients:
    @settings(max_examples=40)
    @given(shape=shapes(batch=2), window=windows(), seed=seeds)
    def test_against_differences(self, shape, window, seed):
        shape = (*shape[:3], min(shape[3], 2))
        assume(fits(shape, window))
        rng = np.random.default_rng(seed)
        # All different, far from each other: no step of a difference changes which is the largest.
        x = rng.permutation(float(np.prod(shape)) - np.arange(np.prod(shape))).reshape(shape)
        for op in (ops.max_pool2d, ops.avg_pool2d):
            if x.size:
                check_grads(op, [x / 10, *window], rtol=1e-5)


def test_against_pytorch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    checked = 0
    while checked < 150:
        shape = (*rng.integers(1, (4, 12, 12)), rng.choice([1, 3, 31, 33]))
        size = rng.integers(1, 5, 2)
        window = [
            tuple(map(int, pair))
            for pair in (size, rng.integers(1, 5, 2), [rng.integers(0, n // 2 + 1) for n in size])
        ]
        if not fits(shape, window):
            continue
        checked += 1
        x = rng.integers(-3, 4, shape).astype(float)
        theirs = torch.tensor(x.transpose(0, 3, 1, 2).copy(), requires_grad=True)
        for name in ("max_pool2d", "avg_pool2d"):
            theirs.grad = None
            expected = getattr(torch.nn.functional, name)(theirs, *window)
            y = getattr(kernels, name)(x, *window)
            np.testing.assert_allclose(
                y, expected.detach().numpy().transpose(0, 2, 3, 1), rtol=1e-15
            )
            g = rng.integers(-3, 4, y.shape).astype(float)
            expected.backward(torch.tensor(g.transpose(0, 3, 1, 2).copy()))
            dx = (
                kernels.max_pool2d_gradient(g, x, y, *window)
                if name == "max_pool2d"
                else kernels.avg_pool2d_gradient(g, shape, *window)
            )
            np.testing.assert_allclose(dx, theirs.grad.numpy().transpose(0, 2, 3, 1), atol=1e-14)


def test_pytorch_refuses_the_same():
    torch = pytest.importorskip("torch")
    x = np.zeros((1, 4, 3, 1))
    numbers = itertools.product([1, 2, 4, 5, 6], [0, 1, 2], [0, 1, 2, 3])
    for size, stride, padding in numbers:
        try:
            torch.nn.functional.max_pool2d(
                torch.tensor(x.transpose(0, 3, 1, 2)), size, stride, padding
            )
        except RuntimeError:
            with pytest.raises(ValueError, match="must"):
                kernels.max_pool2d(x, size, stride, padding)
        else:
            kernels.max_pool2d(x, size, stride, padding)
