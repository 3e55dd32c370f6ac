"""Winograd's convolution: exact on whole numbers, and within the bound of its own rounding."""

from __future__ import annotations

from itertools import product

import numba
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
from numbadrop.kernels import convolution, direct, patches, reference, task, winograd
from numbadrop.kernels.elements import MACHINE, WIDEST
from numbadrop.kernels.geometry import Geometry
from numbadrop.kernels.squares import first_pixel_square, last_pixel_square, most_pixel_squares

every_convolution = pytest.mark.parametrize("name", CONVOLUTIONS)
kinds = st.sampled_from(SETS)
dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 2**32 - 1)

DEFAULTS = {name: getattr(winograd, name) for name in ("_CHANNELS", "_SQUARES", "_GAIN")}
DEFAULT_STRETCHES = winograd.long_stretches
# More squares, channels and columns than a block, a panel and a tile hold.
LARGE = [
    Convolution(2, (31, 34), (70, 100), (3, 3), padding=(1, 1)),
    Convolution(2, (31, 34), (40, 100), (7, 5), padding=(3, 2)),
]


@pytest.fixture(scope="module", autouse=True)
def always():
    with winograd_from(0):
        yield


@st.composite
def convolutions(draw, channels=(1, 3, 15, 16, 17, 33, 50)):
    """Draw sizes: odd and even images, and padding that is wider than they are."""
    kernel = draw(st.sampled_from([(3, 3), (5, 5), (3, 5), (7, 3), (7, 5)]))
    padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    size = tuple(
        max(1, k - 2 * p) + draw(st.integers(0, 9)) for k, p in zip(kernel, padding, strict=True)
    )
    pair = draw(st.tuples(*[st.sampled_from(channels)] * 2))
    return Convolution(draw(st.sampled_from([1, 2, 5])), size, pair, kernel, padding=padding)


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
        ("kernel", "stride", "dilation"),
        [(5, 2, 1), (6, 2, 1), (9, 2, 1), (3, 2, 2), (5, 2, 2), (8, 3, 1)],
    )
    @settings(max_examples=25)
    @given(
        size=st.tuples(st.integers(9, 16), st.integers(9, 16)),
        padding=st.integers(0, 3),
        sets=st.tuples(kinds, kinds),
        seed=seeds,
    )
    def test_gradients_of_strided_kernels(
        self, kernel, stride, dilation, size, padding, sets, seed
    ):
        """Of every such kernel, three or five neighbouring taps meet some inputs."""
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
            Convolution(2, (5, 4), (0, 5), (5, 5), padding=(2, 2)),
        ],
    )
    def test_nothing_to_add_up(self, name, of):
        rng = np.random.default_rng(0)
        operands = convolution_operands(name, np.float64, of, None, None, rng, whole_numbers=True)
        out = np.ones(of.shapes(None, None)[name])
        assert_convolution(name, of, *operands, out=out, exact=True)

    @every_convolution
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("of", LARGE)
    @pytest.mark.parametrize("number", [1, 3])
    def test_many_blocks(self, name, dtype, of, number, monkeypatch):
        monkeypatch.setattr(convolution, "stretches", lambda units, weights_bytes: number)
        size = np.dtype(dtype).itemsize
        squares = of.batch * 16 * 17
        assert squares * 16 * of.channels[0] * size > 4 * winograd._BLOCK_BYTES
        assert squares > 2 * winograd._LEAST_LINES * (of.kernel[0] // 2 - 1) * 17
        assert squares * 16 * sum(of.channels) * size > 2 * number * winograd._LONG_BLOCK_BYTES
        assert of.channels[1] * size > WIDEST * MACHINE.vector_bytes
        rng = np.random.default_rng(0)
        operands = convolution_operands(name, dtype, of, None, None, rng, whole_numbers=True)
        left, right = (np.sign(a) * (abs(a) % 4) for a in operands)  # sums stay below 2**22
        out = np.ones(of.shapes(None, None)[name], dtype)
        assert_convolution(name, of, left, right, out=out, wide=np.float64, exact=True)

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
            options = dict(kernel_size=of.kernel) | of.geometry
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
    first = [-p for p in of.padding]
    if name == "conv2d_at":
        gradients = sandwiched(RESULT.T, squares(right, (0, 0), count, 2))
        magnitude = np.empty((*of.kernel, left.shape[3], right.shape[3]))
        depth = of.batch * count[0] * count[1]
    else:
        w = abs(right[:, :, *block(of.channels, ins, outs)].astype(float)).transpose(2, 3, 0, 1)
        if name == "gathered_conv2d_t":
            w = w.transpose(1, 0, 2, 3)[..., ::-1, ::-1]
            first = [p - k + 1 for p, k in zip(of.padding, of.kernel, strict=True)]
        magnitude = np.zeros((len(left), *size, w.shape[1]))
        depth = w.shape[0] * (of.kernel[0] // 2) * (of.kernel[1] // 2)
    # Later pieces come first: a tap that two share belongs to the one before.
    for i, j in product(*(range(k - 3, -1, -2) for k in of.kernel)):
        images = sandwiched(IMAGE, squares(left, (first[0] + i, first[1] + j), count, 4))
        if name == "conv2d_at":
            sums = np.einsum("nyxcab,nyxoab->coab", images, gradients)
            piece = sandwiched(WEIGHTS.T, sums)
            magnitude[i : i + 3, j : j + 3] = piece.transpose(2, 3, 0, 1)
            continue
        piece = w[..., i : i + 3, j : j + 3].copy()
        piece[..., : int(i > 0), :] = 0
        piece[..., : int(j > 0)] = 0
        sums = np.einsum("nyxcab,coab->nyxoab", images, sandwiched(WEIGHTS, piece))
        whole = sandwiched(RESULT, sums).transpose(0, 1, 4, 2, 5, 3)
        shape = (len(left), 2 * count[0], 2 * count[1], w.shape[1])
        magnitude += whole.reshape(shape)[:, : size[0], : size[1]]
    # Pieces count as channels do. An element of a transform of both sides is rounded at most four
    # times: three transforms.
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
    @pytest.mark.parametrize("reach", [1, 2, 3])
    @pytest.mark.parametrize("at", [(5, 6), (6, 5)])
    def test_what_is_not_finite_meets_the_results_that_see_it(self, value, reach, at):
        rng = np.random.default_rng(4)
        x = rng.standard_normal((1, 12, 12, 24))
        w = rng.standard_normal((2 * reach + 1, 2 * reach + 1, 24, 24))
        expected = kernels.gathered_conv2d(x, w, padding=reach)
        x[0, *at, 7] = value
        y = kernels.gathered_conv2d(x, w, padding=reach)
        seen = np.zeros((12, 12), np.bool_)
        seen[tuple(slice(n - reach, n + reach + 1) for n in at)] = True
        assert_same_bits(y[:, ~seen], expected[:, ~seen])
        assert not np.isfinite(y[:, seen]).any()

    def test_zeros_make_zeros(self):
        rng = np.random.default_rng(5)
        x, w = rng.standard_normal((1, 12, 12, 24)), rng.standard_normal((3, 3, 24, 24))
        x[:, 3:7, 4:9] = 0
        y = kernels.gathered_conv2d(x, w)
        assert not y[:, 3:5, 4:7].any()


@pytest.mark.parametrize("of", LARGE)
def test_any_number_of_threads_gives_the_same_bits(of, monkeypatch):
    monkeypatch.setattr(convolution, "_SERIAL_BELOW", 0)
    rng = np.random.default_rng(0)
    x, w = convolution_operands("gathered_conv2d", np.float32, of, None, None, rng)
    before = kernels.get_num_threads()
    results = set()
    try:
        for threads in (1, 2, 3, 5, 6):
            kernels.set_num_threads(threads)
            y = kernels.gathered_conv2d(x, w, slope=0.5, bias=w[0, 0, 0], **of.geometry)
            dx = kernels.gathered_conv2d_t(y, w, input_size=of.size, **of.geometry)
            dw = kernels.conv2d_at(x, y, kernel_size=of.kernel, **of.geometry)
            results.add(b"".join([y, dx, dw]))
    finally:
        kernels.set_num_threads(before)
    assert len(results) == 1


def test_any_number_of_threads_shares_small_images(monkeypatch):
    monkeypatch.setattr(convolution, "_SERIAL_BELOW", 0)
    before = kernels.get_num_threads()
    results = set()
    try:
        for threads in (1, 2, 3, 5, 6):
            kernels.set_num_threads(threads)
            results.add(check_winograd(guard=copied))
    finally:
        kernels.set_num_threads(before)
    assert len(results) == 1


@numba.njit
def _span_and_bound(p, count, squares):
    longest = 0
    for first in range(squares - count + 1):
        last = last_pixel_square(p, first + count - 1)
        longest = max(longest, last + 1 - first_pixel_square(p, first))
    return longest, most_pixel_squares(p, count)


@pytest.mark.parametrize("reach", [(2, 2), (4, 4), (6, 4), (2, 6)])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (6, 1), (5, 9)])
def test_room_for_squares_of_pixels_is_what_a_block_needs(reach, size):
    zeros = patches.Patches(*[0] * patches.PATCHES_WORDS)
    p = zeros._replace(lines=size[0], columns=size[1], reach_y=reach[0], reach_x=reach[1])
    of_one = -(-size[0] // 2) * -(-size[1] // 2)
    for count in range(1, 2 * of_one + 2):
        longest, bound = _span_and_bound(p, count, 5 * of_one)
        assert longest == bound


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
        (Convolution(1, (20, 20), (64, 64), (5, 5), padding=(2, 2)), True),
        (Convolution(1, (20, 20), (64, 64), (3, 7), padding=(1, 3)), True),
        (Convolution(1, (20, 20), (12, 13), (5, 7), padding=(2, 3)), True),
        (Convolution(1, (20, 20), (11, 64), (5, 5), padding=(2, 2)), False),
        (Convolution(1, (20, 20), (64, 16), (5, 3), padding=(2, 1)), False),
        (Convolution(1, (20, 20), (64, 64), (4, 4)), False),
        (Convolution(1, (20, 20), (64, 64), (9, 3), padding=(4, 1)), False),
        (Convolution(1, (6, 400), (64, 64), (5, 3), padding=(2, 1)), False),  # long lines
        (Convolution(1, (20, 20), (64, 64), (5, 5), dilation=(2, 2)), False),
        (Convolution(1, (20, 20), (64, 64), (1, 3), padding=(0, 1)), False),
    ],
)
def test_when_it_is_used(of, wanted, monkeypatch):
    for name, value in DEFAULTS.items():
        monkeypatch.setattr(winograd, name, value)
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
    whole = {direct.convolve_part, direct.correlate_part}
    squares = {
        winograd.transform_part, winograd.convolve_part, winograd.correlate_part,
        winograd.weights_part,
    }  # fmt: skip
    assert set(ran) == (squares if wanted else whole)


def test_no_stretch_is_empty_or_short():
    square = Geometry(5, 1, 2, 1)
    for batch, height, width in product((1, 2, 64), (1, 3, 6, 32), (1, 9, 100, 600)):
        found = DEFAULT_STRETCHES(batch, square.forward(height), square.forward(width))
        lines, along = batch * -(-height // 2), -(-width // 2)
        assert found <= lines
        assert found * winograd._LEAST_DEPTH <= lines * along
