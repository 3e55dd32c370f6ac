"""Winograd's convolution: exact on whole numbers, and within the bound of its own rounding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import (
    CONVOLUTIONS,
    DTYPES,
    SETS,
    Convolution,
    answer,
    assert_convolution,
    assert_same_bits,
    block,
    check_winograd,
    convolution_operands,
    copied,
    gamma,
    make_set,
    winograd_from,
)
from test_convolution import LAYOUTS, OUT_LAYOUTS, placed, room

from numbadrop import kernels
from numbadrop.kernels import convolution, patches, reference, task, winograd
from numbadrop.kernels.elements import MACHINE

every_convolution = pytest.mark.parametrize("name", CONVOLUTIONS)
kinds = st.sampled_from(SETS)
dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 2**32 - 1)

DEFAULTS = {
    name: getattr(convolution, name)
    for name in ("_WINOGRAD_CHANNELS", "_WINOGRAD_SQUARES", "_WINOGRAD_GAIN")
}
# More squares, channels and columns than a block, a panel and a tile hold.
LARGE = Convolution(2, (31, 34), (70, 100), (3, 3), padding=(1, 1))


@pytest.fixture(scope="module", autouse=True)
def always():
    with winograd_from(0):
        yield


@st.composite
def convolutions(draw, channels=(1, 3, 15, 16, 17, 33, 50)):
    """Draw sizes: odd and even images, and padding that is wider than they are."""
    padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    size = tuple(max(1, 3 - 2 * p) + draw(st.integers(0, 9)) for p in padding)
    pair = draw(st.tuples(*[st.sampled_from(channels)] * 2))
    return Convolution(draw(st.sampled_from([1, 2, 5])), size, pair, (3, 3), padding=padding)


class TestAgainstReference:
    @every_convolution
    @settings(max_examples=150)
    @given(
        of=convolutions(),
        sets=st.tuples(kinds, kinds),
        layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 2),
        out_layout=st.sampled_from(OUT_LAYOUTS),
        dtype=dtypes,
        bias=st.booleans(),
        slope=st.sampled_from([0.0, 0.25, 1.0, 2.5]),
        scale=st.sampled_from([1.0, 0.75, 3.0]),
        seed=seeds,
    )
    def test_whole_numbers_are_exact(
        self, name, of, sets, layouts, out_layout, dtype, bias, slope, scale, seed
    ):
        rng = np.random.default_rng(seed)
        ins, outs = map(make_set, sets, of.channels, (rng, rng))
        operands = convolution_operands(name, dtype, of, ins, outs, rng, whole_numbers=True)
        left, right = map(placed, operands, layouts)
        shape = of.shapes(ins, outs)[name]
        out, memory = room(shape, dtype, "C" if name == "scatter_conv2d" else out_layout)
        options = dict(out=out)
        if name == "gathered_conv2d":
            b = rng.integers(-9, 10, of.channels[1]).astype(dtype)
            b = b if outs is None else np.where(outs.mask(), b, dtype(np.nan))
            options |= dict(bias=b if bias else None, slope=slope, scale=scale)
        elif name == "scatter_conv2d":
            out[...] = rng.integers(-9, 10, shape)
        assert_convolution(name, of, left, right, ins, outs, wide=np.float64, exact=True, **options)
        # What lies around the result has stayed NaN.
        assert np.isnan(memory).sum() == memory.size - out.size

    @pytest.mark.parametrize(
        ("kernel", "stride", "dilation"), [(5, 2, 1), (6, 2, 1), (3, 2, 2), (8, 3, 1)]
    )
    @settings(max_examples=25)
    @given(
        size=st.tuples(st.integers(8, 16), st.integers(8, 16)),
        padding=st.integers(0, 3),
        sets=st.tuples(kinds, kinds),
        seed=seeds,
    )
    def test_gradients_of_strided_kernels(
        self, kernel, stride, dilation, size, padding, sets, seed
    ):
        """Of every such number of inputs, three neighbouring taps meet some."""
        of = Convolution(
            2, size, (17, 30), *[(n, n) for n in (kernel, stride, padding, dilation)]
        )  # fmt: skip
        rng = np.random.default_rng(seed)
        ins, outs = map(make_set, sets, of.channels, (rng, rng))
        name = "gathered_conv2d_t"
        operands = convolution_operands(name, np.float64, of, ins, outs, rng, whole_numbers=True)
        assert_convolution(name, of, *operands, ins, outs, wide=np.float64, exact=True)

    @every_convolution
    @pytest.mark.parametrize(
        "of",
        [
            Convolution(2, (5, 4), (0, 5), (3, 3), padding=(1, 1)),
            Convolution(2, (5, 4), (5, 0), (3, 3), padding=(1, 1)),
            Convolution(0, (5, 4), (5, 6), (3, 3), padding=(1, 1)),
            Convolution(2, (0, 4), (5, 6), (3, 3), padding=(2, 1)),
        ],
    )
    def test_nothing_to_add_up(self, name, of):
        rng = np.random.default_rng(0)
        operands = convolution_operands(name, np.float64, of, None, None, rng, whole_numbers=True)
        out = np.ones(of.shapes(None, None)[name])
        assert_convolution(name, of, *operands, out=out, exact=True)

    @every_convolution
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_many_blocks(self, name, dtype):
        size = np.dtype(dtype).itemsize
        squares = LARGE.batch * 16 * 17
        assert squares * 16 * LARGE.channels[0] * size > 4 * winograd._BLOCK_BYTES
        assert squares * 16 * sum(LARGE.channels) * size > 2 * winograd._LONG_BLOCK_BYTES
        assert LARGE.channels[1] * size > MACHINE.tile_vectors * MACHINE.vector_bytes
        rng = np.random.default_rng(0)
        operands = convolution_operands(name, dtype, LARGE, None, None, rng, whole_numbers=True)
        left, right = (np.sign(a) * (abs(a) % 4) for a in operands)  # sums stay below 2**22
        out = np.ones(LARGE.shapes(None, None)[name], dtype)
        assert_convolution(name, LARGE, left, right, out=out, wide=np.float64, exact=True)

    @pytest.mark.parametrize("name", CONVOLUTIONS[:3])
    @settings(max_examples=60)
    @given(of=convolutions(), sets=st.tuples(kinds, kinds), dtype=dtypes, seed=seeds)
    def test_within_the_bound_of_rounding(self, name, of, sets, dtype, seed):
        rng = np.random.default_rng(seed)
        ins, outs = map(make_set, sets, of.channels, (rng, rng))
        left, right = convolution_operands(name, dtype, of, ins, outs, rng)
        wide = [a.astype(np.longdouble) for a in (left, right)]
        options = dict(in_channels=ins, out_channels=outs) | of.geometry
        if name == "gathered_conv2d_t":
            options["input_size"] = of.size
        elif name == "conv2d_at":
            options = dict(kernel_size=(3, 3)) | of.geometry
        result = getattr(kernels, name)(left, right, **options)
        expected = getattr(reference, name)(*wide, **options)
        bound = rounding_bound(name, of, ins, outs, left, right)
        assert np.all(abs(result - expected) <= bound)


IMAGE, WEIGHTS, RESULT = (
    abs(np.array(m, float)) for m in (winograd._IMAGE, winograd._WEIGHTS, winograd._RESULT)
)


def rounding_bound(name, of, ins, outs, left, right):
    """Bound the error: every sum over magnitudes, as Higham 2002, section 3.1, has it."""

    def squares(images, first, count, side):
        """Return squares of pixels two apart, zeros around: batch, down, along, c, side, side."""
        margin = 16
        padded = np.pad(abs(images.astype(float)), ((0, 0), *[(margin, margin + 4)] * 2, (0, 0)))
        ends = [
            slice(margin + f, margin + f + 2 * (n + 1)) for f, n in zip(first, count, strict=True)
        ]
        windows = np.lib.stride_tricks.sliding_window_view(padded[:, *ends], (side, side), (1, 2))
        return windows[:, ::2, ::2][:, : count[0], : count[1]]

    def sandwiched(matrix, x):
        return np.einsum("ai,bj,...ij->...ab", matrix, matrix, x)

    size = of.size if name == "gathered_conv2d_t" else of.out_size
    count = [-(-n // 2) for n in size]
    if name == "conv2d_at":
        images = sandwiched(IMAGE, squares(left, [-p for p in of.padding], count, 4))
        gradients = sandwiched(RESULT.T, squares(right, (0, 0), count, 2))
        sums = np.einsum("nyxcab,nyxoab->coab", images, gradients)
        depth = of.batch * count[0] * count[1]
        magnitude = sandwiched(WEIGHTS.T, sums).transpose(2, 3, 0, 1)
    else:
        w = abs(right[:, :, *block(of.channels, ins, outs)].astype(float)).transpose(2, 3, 0, 1)
        first = [-p for p in of.padding]
        if name == "gathered_conv2d_t":
            w, first = w.transpose(1, 0, 2, 3)[..., ::-1, ::-1], [p - 2 for p in of.padding]
        images = sandwiched(IMAGE, squares(left, first, count, 4))
        sums = np.einsum("nyxcab,coab->nyxoab", images, sandwiched(WEIGHTS, w))
        depth = w.shape[0]
        whole = sandwiched(RESULT, sums).transpose(0, 1, 4, 2, 5, 3)
        shape = (len(left), 2 * count[0], 2 * count[1], w.shape[1])
        magnitude = whole.reshape(shape)[:, : size[0], : size[1]]
    # An element of a transform of both sides is rounded at most four times: three transforms.
    return gamma(depth + 12, left.dtype) * magnitude


class TestValues:
    def test_weights_outside_the_sets_may_be_anything(self):
        rng = np.random.default_rng(3)
        of = Convolution(2, (6, 5), (40, 50), (3, 3), padding=(1, 1))
        ins, outs = make_set("half", 40, rng), make_set("sparse", 50, rng)
        for dtype in DTYPES:
            x, w = convolution_operands("gathered_conv2d", dtype, of, ins, outs, rng)
            g, _ = convolution_operands("gathered_conv2d_t", dtype, of, ins, outs, rng)
            outside = np.isnan(w)
            results = []
            for poison in (0.0, np.inf, np.nan, np.finfo(dtype).tiny / 4):
                w[outside] = poison
                y = kernels.gathered_conv2d(x, w, ins, outs, **of.geometry)
                dx = kernels.gathered_conv2d_t(g, w, ins, outs, input_size=of.size, **of.geometry)
                results.append(y.tobytes() + dx.tobytes())
            assert len(set(results)) == 1

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_what_is_not_finite_meets_the_results_that_see_it(self, value):
        rng = np.random.default_rng(4)
        x, w = rng.standard_normal((1, 12, 12, 24)), rng.standard_normal((3, 3, 24, 24))
        expected = kernels.gathered_conv2d(x, w, padding=1)
        x[0, 5, 6, 7] = value
        y = kernels.gathered_conv2d(x, w, padding=1)
        seen = np.zeros((12, 12), np.bool_)
        seen[4:7, 5:8] = True
        assert_same_bits(y[:, ~seen], expected[:, ~seen])
        assert not np.isfinite(y[:, seen]).any()

    def test_zeros_make_zeros(self):
        rng = np.random.default_rng(5)
        x, w = rng.standard_normal((1, 12, 12, 24)), rng.standard_normal((3, 3, 24, 24))
        x[:, 3:7, 4:9] = 0
        y = kernels.gathered_conv2d(x, w)
        assert not y[:, 3:5, 4:7].any()


def test_any_number_of_threads_gives_the_same_bits(monkeypatch):
    monkeypatch.setattr(convolution, "_SERIAL_BELOW", 0)
    rng = np.random.default_rng(0)
    x, w = convolution_operands("gathered_conv2d", np.float32, LARGE, None, None, rng)
    before = kernels.get_num_threads()
    results = set()
    try:
        for threads in (1, 2, 3, 5):
            kernels.set_num_threads(threads)
            y = kernels.gathered_conv2d(x, w, padding=1, slope=0.5, bias=w[0, 0, 0])
            dx = kernels.gathered_conv2d_t(y, w, input_size=LARGE.size, padding=1)
            dw = kernels.conv2d_at(x, y, kernel_size=3, padding=1)
            results.add(b"".join([check_winograd(guard=copied).encode(), y, dx, dw]))
    finally:
        kernels.set_num_threads(before)
    assert len(results) == 1


def test_no_byte_outside_an_operand():
    answer("-c", "from kernel_checks import *; check_winograd()")


@pytest.mark.parametrize(
    ("of", "wanted"),
    [
        (Convolution(1, (16, 16), (17, 17), (3, 3), padding=(1, 1)), True),
        (Convolution(1, (16, 16), (17, 16), (3, 3), padding=(1, 1)), False),
        (Convolution(1, (16, 16), (16, 17), (3, 3), padding=(1, 1)), False),
        (Convolution(1, (14, 14), (64, 64), (3, 3), padding=(1, 1)), False),  # few squares
        (Convolution(9, (3, 3), (64, 64), (3, 3), padding=(1, 1)), False),  # most of them cut
        (Convolution(1, (16, 16), (64, 64), (3, 3), (2, 2), (1, 1)), False),
        (Convolution(1, (20, 20), (64, 64), (3, 3), (1, 1), (2, 2), (2, 2)), False),
        (Convolution(1, (20, 20), (64, 64), (5, 5), padding=(2, 2)), False),
        (Convolution(1, (20, 20), (64, 64), (1, 3), padding=(0, 1)), False),
    ],
)
def test_when_it_is_used(of, wanted, monkeypatch):
    for name, value in DEFAULTS.items():
        monkeypatch.setattr(convolution, name, value)
    ran = []

    def run_task(function, *arguments, **options):
        ran.append(function)
        task.run_task(function, *arguments, **options)

    monkeypatch.setattr(convolution, "run_task", run_task)
    shapes = of.shapes(None, None)
    x, w, g = (np.zeros(shapes[name], np.float32) for name in "xwg")
    kernels.gathered_conv2d(x, w, **of.geometry)
    kernels.gathered_conv2d_t(g, w, input_size=of.size, **of.geometry)
    kernels.conv2d_at(x, g, kernel_size=of.kernel, **of.geometry)
    direct = {patches.convolve_part, patches.correlate_part}
    squares = {winograd.transform_part, winograd.convolve_part, winograd.correlate_part}
    assert set(ran) == (squares if wanted else direct)
