"""Convolutions against the reference, and against PyTorch.

Rounding, every layout in memory, memory that must not be touched, threads, and bad input.
"""

from __future__ import annotations

import itertools
import sys

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import (
    CONVOLUTIONS,
    DTYPES,
    GEOMETRIES,
    SETS,
    Convolution,
    answer,
    assert_convolution,
    assert_same_bits,
    block,
    canary,
    check_convolutions,
    convolution_operands,
    copied,
    make_set,
    winograd_from,
)

from numbadrop import kernels
from numbadrop.index_set import IndexSet
from numbadrop.kernels import convolution, direct, reference, stretches
from numbadrop.kernels.elements import MACHINE, WIDEST
from numbadrop.kernels.memory import CACHE_LINE

every_convolution = pytest.mark.parametrize("name", CONVOLUTIONS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
kinds = st.sampled_from(SETS)
dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 2**32 - 1)
slopes = st.sampled_from([0.0, 0.25, 1.0, 2.5])
scales = st.sampled_from([1.0, 0.75, 3.0])


@pytest.fixture(scope="module", autouse=True)
def without_winograd():
    """Let Winograd's convolution, which has its own tests, never be used."""
    with winograd_from(sys.maxsize):
        yield


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def convolutions(draw, channels=(1, 3, 15, 16, 17, 31, 33, 50), most=10):
    """Draw sizes: kernels of even and odd size, images that are smaller than their padding too."""
    kernel, stride, dilation = draw(pairs(1, 5)), draw(pairs(1, 3)), draw(pairs(1, 3))
    padding = draw(st.just((0, 0)) | pairs(0, 4))
    least = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    size = tuple(max(1, n) + more for n, more in zip(least, draw(pairs(0, most)), strict=True))
    channels = draw(st.tuples(*[st.sampled_from(channels)] * 2))
    batch = draw(st.sampled_from([0, 1, 2, 5]))
    return Convolution(batch, size, channels, kernel, stride, padding, dilation)


LAYOUTS = ("C", "F", "channels first", "cut", "flipped", "ones reversed", "reversed", "spread",
           "unaligned", "wide")  # fmt: skip
OUT_LAYOUTS = [layout for layout in LAYOUTS if layout != "unaligned"]


def placed(values, layout):
    """Return a read-only copy with a layout in memory; all other elements there are NaN."""
    if layout == "unaligned":
        memory = np.zeros(values.nbytes + 1, np.uint8)
        array = memory[1:].view(values.dtype).reshape(values.shape)
    else:
        array, _ = room(values.shape, values.dtype, layout)
    array[...] = values
    array.flags.writeable = False
    return array


def room(shape, dtype, layout):
    """Return an array with a layout in memory, and all the memory that it lies in."""
    b, h, w, c = shape
    memory_shape, view = {
        "C": (shape, lambda m: m),
        "F": (shape[::-1], lambda m: m.T),
        "channels first": ((b, c, h, w), lambda m: m.transpose(0, 2, 3, 1)),
        "cut": ((b + 1, h + 2, w + 3, c + 1), lambda m: m[1:, 1:-1, 2:-1, :-1]),
        "flipped": (shape, lambda m: m[::-1, ::-1, ::-1]),
        "ones reversed": (shape, lambda m: m[*(np.s_[:: -1 if n == 1 else 1] for n in shape)]),
        "reversed": (shape, lambda m: m[::-1, ::-1, ::-1, ::-1]),
        "spread": ((2 * b, 2 * h, 3 * w, 2 * c), lambda m: m[::2, 1::2, ::3, 1::2]),
        "wide": ((b, 2 * h, 3 * w, c), lambda m: m[:, ::2, 1::3]),
    }[layout]
    memory = np.full(memory_shape, np.nan, dtype)
    return view(memory), memory


class TestAgainstReference:
    @every_convolution
    @settings(max_examples=400)
    @given(
        of=convolutions(),
        sets=st.tuples(kinds, kinds),
        layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 2),
        dtype=dtypes,
        alpha=st.sampled_from([1.0, -0.5]),
        bias=st.booleans(),
        slope=st.sampled_from([0.0, 0.25, 1.0, 2.5]),
        scale=st.sampled_from([1.0, 0.75, 3.0]),
        given_out=st.booleans(),
        seed=seeds,
    )
    def test_whole_numbers_are_exact(
        self, name, of, sets, layouts, dtype, alpha, bias, slope, scale, given_out, seed
    ):
        rng = np.random.default_rng(seed)
        ins, outs = map(make_set, sets, of.channels, (rng, rng))
        operands = convolution_operands(name, dtype, of, ins, outs, rng, whole_numbers=True)
        left, right = map(placed, operands, layouts)
        shape = of.shapes(ins, outs)[name]
        options = dict(wide=np.float64, exact=True)
        if name == "gathered_conv2d":
            b = rng.integers(-9, 10, of.channels[1]).astype(dtype)
            b = b if outs is None else np.where(outs.mask(), b, dtype(np.nan))
            options |= dict(bias=b if bias else None, slope=slope, scale=scale)
        elif name == "scatter_conv2d":
            options |= dict(alpha=alpha, out=rng.integers(-9, 10, shape).astype(dtype))
        if given_out and name != "scatter_conv2d":
            options["out"] = np.full(shape, np.nan, dtype)
        assert_convolution(name, of, left, right, ins, outs, **options)
        for array, values in zip((left, right), operands, strict=True):
            assert_same_bits(array.copy(), values)

    @every_convolution
    @pytest.mark.parametrize("of", GEOMETRIES)
    def test_chosen_geometries(self, name, of):
        rng = np.random.default_rng(0)
        operands = convolution_operands(name, np.float64, of, None, None, rng)
        out = rng.standard_normal(of.shapes(None, None)[name])
        assert_convolution(name, of, *operands, out=out)

    @every_convolution
    @settings(max_examples=100)
    @given(
        of=convolutions(channels=(1, 3, 16, 17), most=6),
        sets=st.tuples(kinds, kinds),
        dtype=dtypes,
        slope=slopes,
        scale=scales,
        seed=seeds,
    )
    def test_within_the_bound_of_rounding(self, name, of, sets, dtype, slope, scale, seed):
        rng = np.random.default_rng(seed)
        ins, outs = map(make_set, sets, of.channels, (rng, rng))
        left, right = convolution_operands(name, dtype, of, ins, outs, rng)
        options = {}
        if name == "gathered_conv2d":
            bias = rng.standard_normal(of.channels[1]).astype(dtype)
            options = dict(bias=bias, slope=slope, scale=scale)
        elif name == "scatter_conv2d":
            out = rng.standard_normal((*of.kernel, *of.channels)).astype(dtype)
            options = dict(alpha=scale, out=out)
        assert_convolution(name, of, left, right, ins, outs, **options)

    @pytest.mark.parametrize("layout", OUT_LAYOUTS)
    @pytest.mark.parametrize("name", CONVOLUTIONS[:3])
    @settings(max_examples=12)
    @given(of=convolutions(channels=(1, 16, 17, 33)), kind=kinds, dtype=dtypes, seed=seeds)
    def test_out_of_any_layout(self, name, layout, of, kind, dtype, seed):
        rng = np.random.default_rng(seed)
        sets = ("none", "none") if name == "conv2d_at" else (kind, kind)
        ins, outs = map(make_set, sets, of.channels, (rng, rng))
        left, right = convolution_operands(name, dtype, of, ins, outs, rng)
        options = of.geometry
        options |= {"conv2d_at": {"kernel_size": of.kernel}}.get(
            name, dict(in_channels=ins, out_channels=outs)
        )
        if name == "gathered_conv2d_t":
            options["input_size"] = of.size
        kernel = getattr(kernels, name)
        expected = kernel(left, right, **options)
        out, memory = room(expected.shape, dtype, layout)
        memory[...] = canary(memory.shape, dtype)
        around = memory.copy()
        assert kernel(left, right, out=out, **options) is out
        assert_same_bits(out.copy(), expected)
        # What lies around it has kept its bits.
        written = np.lib.stride_tricks.as_strided
        shift = out.ctypes.data - memory.ctypes.data
        if out.size:
            place = np.frombuffer(around.data, dtype, offset=shift)
            written(place, out.shape, out.strides)[...] = expected
        assert_same_bits(memory, around)


def lines_of_a_band(of, band_bytes, dtype=np.float32):
    """Return how many lines have their patches in a band, at the least width of a row."""
    pixels = (of.out_size[1] - 1) * of.stride[1] + of.dilation[1] * (of.kernel[1] - 1) + 1
    row = pixels * of.channels[0] * np.dtype(dtype).itemsize * of.stride[0]
    return max(1, band_bytes // row)


# What each reaches is checked by the test, in terms of the constants of `direct`.
LARGE = {
    # One group of panels after another: the packed weights are larger than `_PACKED_BYTES`.
    "groups": Convolution(2, (5, 6), (210, 200), (3, 3), padding=(1, 1)),
    # Many bands, each over the ends of images, both padded and read where they lie.
    "bands, padded": Convolution(3, (40, 41), (67, 50), (3, 3), padding=(1, 1)),
    "bands, in place": Convolution(3, (43, 40), (64, 50), (2, 3)),
    "bands, strided": Convolution(3, (61, 60), (40, 35), (3, 3), (2, 2), (1, 1)),
    # Lines of one band from many small images.
    "images": Convolution(150, (4, 4), (40, 48), (3, 3), padding=(1, 1)),
    # So many columns of G that they, and not the patches, say how long a band of it is.
    "wide": Convolution(2, (40, 40), (8, 400), (1, 2)),
    # Few tiles of rows that ask for the next band of a large G.
    "far": Convolution(2, (106, 105), (3, 100), (3, 3), padding=(1, 1)),
    # The same by the widest tiles of AVX2 and of AVX-512.
    **{
        f"far, {columns} columns": Convolution(6, (60, 61), (3, columns), (3, 3), padding=(1, 1))
        for columns in (24, 64)
    },
}  # fmt: skip


class TestLarge:
    def test_what_is_reached(self):
        of = LARGE["groups"]
        assert np.prod(of.kernel) * of.channels[0] * of.channels[1] * 4 > direct._PACKED_BYTES
        columns = -(-of.channels[1] // (MACHINE.vector_bytes // 4))
        assert columns > 2 * WIDEST
        for name in ("bands, padded", "bands, in place", "bands, strided"):
            of = LARGE[name]
            columns = -(-of.channels[1] * 4 // MACHINE.vector_bytes) * MACHINE.vector_bytes
            gradient_lines = direct._LONG_GRADIENT_BYTES // (of.out_size[1] * columns)
            gradient_lines = min(lines_of_a_band(of, direct._LONG_BAND_BYTES), gradient_lines)
            all_lines = of.batch * of.out_size[0]
            pieces = -(-all_lines // gradient_lines)
            for lines in (lines_of_a_band(of, direct._BAND_BYTES), -(-all_lines // pieces)):
                assert 2 * lines < all_lines
                assert of.out_size[0] % lines
        of = LARGE["images"]
        assert lines_of_a_band(of, direct._BAND_BYTES) > 3 * of.out_size[0]
        assert 2 * lines_of_a_band(of, direct._BAND_BYTES) < of.batch * of.out_size[0]
        of = LARGE["wide"]
        assert lines_of_a_band(of, direct._LONG_BAND_BYTES) > of.batch * of.out_size[0]
        gradient_bytes = of.batch * np.prod(of.out_size) * of.channels[1] * 4
        assert gradient_bytes > 2 * direct._LONG_GRADIENT_BYTES
        for name in LARGE:
            if name.startswith("far"):
                of = LARGE[name]
                assert of.batch * np.prod(of.out_size) * of.channels[1] * 4 > direct._FAR_BYTES
                rows = np.prod(of.kernel) * of.channels[0]
                assert MACHINE.tile_rows <= rows <= direct._FEW_ROWS
        # Stretches of several bands.
        for name, number in (("far", 8), ("wide", 8), ("groups", 1)):
            of = LARGE[name]
            w_bytes = int(np.prod(of.shapes(None, None)["w"])) * 4
            assert stretches.stretches(of.batch * of.out_size[0], w_bytes) == number

    @every_convolution
    @pytest.mark.parametrize("large", LARGE)
    def test_whole_numbers(self, name, large, monkeypatch):
        of = LARGE[large]
        if large.startswith("bands"):
            monkeypatch.setattr(stretches, "_MOST_STRETCHES", 1)
        rng = np.random.default_rng(0)
        sets = ("none", "none") if large == "groups" or name == "conv2d_at" else ("most", "most")
        if large.startswith("bands") and name == "gathered_conv2d":
            sets = ("none", "most")
        ins, outs = map(make_set, sets, of.channels, (rng, rng))
        operands = convolution_operands(name, np.float32, of, ins, outs, rng, whole_numbers=True)
        # Sums stay below 2**24.
        left, right = (np.sign(a) * (abs(a) % 4) for a in operands)
        out = np.full(of.shapes(ins, outs)[name], np.nan, np.float32)
        if name == "scatter_conv2d":
            out[...] = 1
        assert_convolution(name, of, left, right, ins, outs, out=out, wide=np.float64, exact=True)


@every_dtype
def test_every_height_and_width_of_a_remainder(dtype):
    """Tiles of every height and width, with as many positions and columns, in exact arithmetic."""
    rng = np.random.default_rng(0)
    lanes = MACHINE.vector_bytes // np.dtype(dtype).itemsize
    widths = [
        width
        for vectors in range(MACHINE.tile_vectors + 2)
        for width in (vectors * lanes, vectors * lanes + 1, vectors * lanes + lanes - 1)
        if width
    ]
    for width, positions in itertools.product(widths, range(1, 2 * MACHINE.tile_rows + 2)):
        of = Convolution(1, (1, positions), (3, width), (1, 3), padding=(0, 1))
        for name in CONVOLUTIONS[:3]:
            operands = convolution_operands(name, dtype, of, None, None, rng, whole_numbers=True)
            assert_convolution(name, of, *operands, wide=np.float64, exact=True)


class TestValues:
    def test_weights_outside_the_sets_may_be_anything(self):
        rng = np.random.default_rng(3)
        of = Convolution(2, (6, 5), (40, 50), (3, 2), (2, 1), (1, 1))
        ins, outs = make_set("half", 40, rng), make_set("sparse", 50, rng)
        for dtype in DTYPES:
            x, w = convolution_operands("gathered_conv2d", dtype, of, ins, outs, rng)
            g, _ = convolution_operands("gathered_conv2d_t", dtype, of, ins, outs, rng)
            outside = np.isnan(w)
            results = []
            for poison in (0.0, np.inf, -np.inf, np.nan, np.finfo(dtype).tiny / 4):
                w[outside] = poison
                y = kernels.gathered_conv2d(x, w, ins, outs, **of.geometry)
                dx = kernels.gathered_conv2d_t(g, w, ins, outs, input_size=of.size, **of.geometry)
                results.append(y.tobytes() + dx.tobytes())
            assert len(set(results)) == 1

    @every_dtype
    def test_nan_and_infinity_spread_to_the_outputs_that_see_them(self, dtype):
        x, w = np.ones((1, 5, 6, 2), dtype), np.ones((3, 3, 2, 4), dtype)
        x[0, 2, 3, 1], w[0, 0, 0, 3] = np.nan, np.inf
        y = kernels.gathered_conv2d(x, w)
        np.testing.assert_array_equal(y, reference.gathered_conv2d(x, w))
        # The frame of a gradient is zeros, which an infinite weight would make NaN.
        w[0, 0, 0, 3] = 1
        dx = kernels.gathered_conv2d_t(y, w, input_size=(5, 6))
        np.testing.assert_array_equal(dx, reference.gathered_conv2d_t(y, w, input_size=(5, 6)))

    @pytest.mark.parametrize("channels", [(0, 5), (5, 0), (0, 0)])
    @every_convolution
    def test_no_channels(self, name, channels):
        of = Convolution(2, (5, 4), channels, (3, 2), padding=(1, 0))
        operands = convolution_operands(name, np.float64, of, None, None, np.random.default_rng(0))
        out = np.full(of.shapes(None, None)[name], np.nan)
        if name == "scatter_conv2d":
            out[...] = 1
        assert_convolution(name, of, *operands, out=out, exact=True)

    def test_images_without_pixels(self):
        y = kernels.gathered_conv2d(np.ones((2, 0, 3, 4)), np.ones((3, 3, 4, 5)), padding=2)
        np.testing.assert_array_equal(y, np.zeros((2, 2, 5, 5)))
        dx = kernels.gathered_conv2d_t(y, np.ones((3, 3, 4, 5)), input_size=(0, 3), padding=2)
        assert dx.shape == (2, 0, 3, 4)

    def test_a_stride_that_is_never_made_takes_no_memory(self):
        x = np.arange(16.0).reshape(1, 4, 4, 1)
        y = kernels.gathered_conv2d(x, np.ones((3, 3, 1, 1)), padding=1, stride=2**31 - 1)
        np.testing.assert_array_equal(y, [[[[0.0 + 1 + 4 + 5]]]])

    def test_inputs_that_no_tap_reaches_take_no_kernel(self, monkeypatch):
        calls = []
        convolve = convolution._convolve
        monkeypatch.setattr(
            convolution, "_convolve", lambda *args: (calls.append(1), convolve(*args))
        )
        g, w = np.full((1, 2, 1, 1), 3.0), np.ones((1, 2, 1, 1))
        out = np.full((1, 400, 300, 1), np.nan)
        kernels.gathered_conv2d_t(g, w, input_size=(400, 300), stride=(399, 299), out=out)
        expected = np.zeros_like(out)
        expected[0, ::399, :2] = 3
        np.testing.assert_array_equal(out, expected)
        assert len(calls) == 2

    @pytest.mark.parametrize(
        "form", [lambda s: s, lambda s: s.indices, lambda s: s.indices.tolist(), lambda s: s.mask()]
    )
    def test_index_sets_in_every_form(self, form):
        rng = np.random.default_rng(5)
        of = Convolution(2, (5, 5), (20, 30), (3, 3))
        ins, outs = make_set("half", 20, rng), make_set("half", 30, rng)
        for name in ("gathered_conv2d", "gathered_conv2d_t", "scatter_conv2d"):
            left, right = convolution_operands(name, np.float64, of, ins, outs, rng)
            results = []
            for sets in ((ins, outs), (form(ins), form(outs))):
                more = {"input_size": (5, 5)} if name == "gathered_conv2d_t" else {}
                more |= {"out": np.zeros((3, 3, 20, 30))} if name == "scatter_conv2d" else {}
                results.append(getattr(kernels, name)(left, right, *sets, **more))
            assert_same_bits(*results)

    def test_lists_are_arrays_of_float64(self):
        y = kernels.gathered_conv2d([[[[1.0], [2.0]]]], [[[[3.0]], [[4.0]]]], bias=[0.5])
        np.testing.assert_array_equal(y, [[[[11.5]]]])

    def test_one_number_is_both_of_a_pair(self):
        x, w = np.random.default_rng(0).standard_normal((2, 1, 9, 9, 3))
        x, w = x[..., None, :][..., 0, :], w[:, :3, :3, :, None][0]
        one = kernels.gathered_conv2d(x, w, stride=2, padding=3, dilation=2)
        pair = kernels.gathered_conv2d(x, w, stride=(2, 2), padding=[3, 3], dilation=(2, 2))
        assert_same_bits(one, pair)


def test_any_number_of_threads_gives_the_same_bits(monkeypatch):
    monkeypatch.setattr(convolution, "_SERIAL_BELOW", 0)
    rng = np.random.default_rng(0)
    # Gradients of weights are cut across lines, channels, or channels and columns, and have several
    # bands.
    large = [
        convolution_operands("conv2d_at", np.float32, of, None, None, rng)
        for of in (
            Convolution(2, (90, 91), (3, 70), (3, 3), padding=(1, 1)),
            Convolution(2, (61, 60), (40, 70), (3, 3), (1, 1), (1, 1)),
            LARGE["far"],
        )
    ]
    before = kernels.get_num_threads()
    results = set()
    try:
        for threads in (1, 2, 3, 5, 6):
            kernels.set_num_threads(threads)
            found = [check_convolutions(GEOMETRIES[:-1], guard=copied).encode()]
            for x, g in large:
                w = kernels.conv2d_at(x, g, kernel_size=3, padding=1)
                y = kernels.gathered_conv2d(x, w, padding=1, slope=0.5, bias=w[0, 0, 0])
                dx = kernels.gathered_conv2d_t(y, w, input_size=x.shape[1:3], padding=1)
                kernels.scatter_conv2d(x, g, padding=1, out=w)
                found += [a.tobytes() for a in (w, y, dx)]
            results.add(b"".join(found))
    finally:
        kernels.set_num_threads(before)
    assert len(results) == 1


@pytest.mark.parametrize("size", [(1, 9), (5, 4), (13, 3)])
def test_few_channels_share_out_lines(size, monkeypatch):
    """Fewer lines than threads, fewer than stretches could be, and not a multiple of them."""
    monkeypatch.setattr(convolution, "_SERIAL_BELOW", 0)
    of = Convolution(1, size, (3, 17), (3, 2), padding=(1, 1))
    rng = np.random.default_rng(0)
    before = kernels.get_num_threads()
    try:
        for threads in (1, 3, 6):
            kernels.set_num_threads(threads)
            for name in ("conv2d_at", "scatter_conv2d"):
                left, right = convolution_operands(
                    name, np.float32, of, None, None, rng, whole_numbers=True
                )
                out = rng.integers(-9, 9, of.shapes(None, None)[name]).astype(np.float32)
                assert_convolution(name, of, left, right, out=out, wide=np.float64, exact=True)
    finally:
        kernels.set_num_threads(before)


def test_sums_of_stretches_are_as_silent_as_others():
    x, g = np.ones((8, 32, 32, 4)), np.ones((8, 32, 32, 8))
    x[0], x[-1] = np.inf, -np.inf
    with np.errstate(all="raise"):
        assert np.isnan(kernels.conv2d_at(x, g, kernel_size=1)).all()


@numba.njit
def _do_all(done, least, parts):
    number, channels, vectors = done.shape
    for part in range(parts):
        own = stretches.part_of_gradient(number, channels, vectors, least, parts, part)
        done[
            own.first_stretch : own.last_stretch,
            own.first_channel : own.first_channel + own.channels,
            own.first_vector : own.first_vector + own.vectors,
        ] += 1


@pytest.mark.parametrize("number", [1, 2, 3, 8])
@pytest.mark.parametrize("channels", [1, 3, 16, 70])
def test_every_part_of_a_gradient_is_somebody_s(number, channels):
    for vectors, least, parts in itertools.product((1, 2, 5), (8, 16), range(1, 25)):
        done = np.zeros((number, channels, vectors), np.int64)
        _do_all(done, least, parts)
        assert (done == 1).all(), (vectors, least, parts)


def test_positions_of_whole_cache_lines_give_the_same_bits():
    """Where G may be read as it lies, and where it begins elsewhere and is packed."""
    of = Convolution(3, (9, 8), (40, 32), (2, 3), padding=(1, 0))
    assert np.prod(of.kernel) * of.channels[0] > direct._FEW_ROWS
    x, g = convolution_operands("conv2d_at", np.float32, of, None, None, np.random.default_rng(0))
    memory = np.empty(g.size + 2 * CACHE_LINE, np.float32)
    begin = -memory.ctypes.data % CACHE_LINE // g.itemsize
    results = []
    for at in (begin, begin + 4):
        moved = memory[at : at + g.size].reshape(g.shape)
        moved[...] = g
        assert (moved.ctypes.data % CACHE_LINE == 0) == (at == begin)
        results.append(kernels.conv2d_at(x, moved, kernel_size=of.kernel, padding=(1, 0)))
    assert_same_bits(*results)


def test_no_byte_outside_an_operand():
    program = "from kernel_checks import *\nwith winograd_from(sys.maxsize): check_convolutions()"
    answer("-c", program)


F4, F8 = np.float32, np.float64


def full(shape, dtype=F8):
    return np.full(shape, 3.0, dtype)


def read_only(shape):
    array = full(shape)
    array.flags.writeable = False
    return array


def forward(**changes):
    """Call the forward pass of x (2, 5, 6, 3), w (3, 2, 4, 5) with in_channels [0, 1, 3]."""
    return (
        dict(name="gathered_conv2d", x=(2, 5, 6, 3), w=(3, 2, 4, 5), in_channels=[0, 1, 3],
             out=(2, 3, 5, 5)) | changes
    )  # fmt: skip


def backward(**changes):
    return (
        dict(name="gathered_conv2d_t", g=(2, 3, 5, 2), w=(3, 2, 4, 5), out_channels=[0, 3],
             input_size=(5, 6), out=(2, 5, 6, 4)) | changes
    )  # fmt: skip


def compact(**changes):
    return (
        dict(name="conv2d_at", x=(2, 5, 6, 3), g=(2, 3, 5, 4), kernel_size=(3, 2),
             out=(3, 2, 3, 4)) | changes
    )  # fmt: skip


def scatter(**changes):
    return (
        dict(name="scatter_conv2d", x=(2, 5, 6, 2), g=(2, 3, 5, 5), in_channels=[0, 2],
             out=(3, 2, 4, 5)) | changes
    )  # fmt: skip


BAD = [
    # rank
    (forward(x=(5, 6, 3)), ValueError, r"^x must have shape \(batch, height, width, units\)"),
    (forward(w=(2, 4, 5)), ValueError, r"^w must have shape \(kernel height.*got \(2, 4, 5\)"),
    (forward(w=(0, 2, 4, 5)), ValueError, r"^w must have shape .*got \(0, 2, 4, 5\)"),
    (backward(g=(3, 5, 2)), ValueError, r"^g must have shape \(batch, .*got \(3, 5, 2\)"),
    (backward(w=(3, 2, 4, 5, 1)), ValueError, r"^w must have shape .*got \(3, 2, 4, 5, 1\)"),
    (compact(x=(5, 6)), ValueError, r"^x must have shape \(batch, .*got \(5, 6\)"),
    (compact(g=()), ValueError, r"^g must have shape \(batch, .*got \(\)"),
    (scatter(g=(2, 15, 5)), ValueError, r"^g must have shape \(batch, .*got \(2, 15, 5\)"),
    (scatter(out=(6, 4, 5)), ValueError, r"^out must have shape \(kernel height.*\(6, 4, 5\)"),
    (scatter(out=(3, 0, 4, 5)), ValueError, r"^out must have shape .*\(3, 0, 4, 5\)"),
    # size
    (forward(x=(2, 5, 6, 4)), ValueError, r"^x must have 3 entries on axis 3.* in_channels, got 4"),
    (forward(in_channels=None), ValueError, r"^x must have 4 entries on axis 3.* got 3"),
    (forward(bias=(4,)), ValueError, r"^bias must have shape \(5,\), got \(4,\)"),
    (forward(bias=(1, 5)), ValueError, r"^bias must have shape \(5,\), got \(1, 5\)"),
    (forward(bias=3.0), ValueError, r"^bias must have shape \(5,\), got \(\)"),
    (backward(g=(2, 3, 5, 5)), ValueError, r"^g must have 2 entries.* out_channels, got 5"),
    (backward(g=(2, 5, 3, 2)), ValueError, r"^g must have height and width \(3, 5\), got \(5, 3\)"),
    (backward(input_size=(5, 7)), ValueError, r"^g must have height and width \(3, 6\), got"),
    (backward(stride=2), ValueError, r"^g must have height and width \(2, 3\), got \(3, 5\)"),
    (backward(input_size=(-1, 6)), ValueError, r"^input_size must be at least 0, got \(-1, 6\)"),
    (backward(input_size=5.0), TypeError, r"^input_size must be an int or a pair.*got 5.0"),
    (compact(g=(3, 3, 5, 4)), ValueError, r"^x and g must have the same batch, got 2 and 3"),
    (compact(g=(2, 3, 6, 4)), ValueError, r"^g must have height and width \(3, 5\), got \(3, 6\)"),
    (compact(kernel_size=0), ValueError, r"^kernel_size must be at least 1.*got 0"),
    (compact(kernel_size=(3, 2, 1)), TypeError, r"^kernel_size must be .*got \(3, 2, 1\)"),
    (compact(kernel_size=(3, 3)), ValueError, r"^g must have height and width \(3, 4\), got"),
    (scatter(x=(2, 5, 6, 4)), ValueError, r"^x must have 2 entries.* in_channels, got 4"),
    (scatter(g=(2, 3, 5, 4)), ValueError, r"^g must have 5 entries.* out_channels, got 4"),
    (scatter(g=(1, 3, 5, 5)), ValueError, r"^x and g must have the same batch, got 2 and 1"),
    (scatter(g=(2, 3, 4, 5)), ValueError, r"^g must have height and width \(3, 5\), got \(3, 4\)"),
    # geometry
    (
        forward(w=(3, 9, 4, 5), padding=1),
        ValueError,
        r"^the kernel is larger than the padded image: width 6 with padding 1 on both sides, "
        r"kernel size 9 with dilation 1$",
    ),
    (forward(dilation=(3, 1)), ValueError, r"larger than .*height 5 .* size 3 with dilation 3$"),
    (backward(dilation=(3, 1)), ValueError, r"larger than .*height 5 .* size 3 with dilation 3$"),
    (compact(dilation=(1, 6)), ValueError, r"larger than .*width 6 .* size 2 with dilation 6$"),
    (scatter(dilation=(1, 6)), ValueError, r"larger than .*width 6 .* size 2 with dilation 6$"),
    (forward(stride=0), ValueError, r"^stride must be at least 1.*got 0"),
    (forward(stride=(1, -2)), ValueError, r"^stride must be at least 1.*got \(1, -2\)"),
    (forward(stride=1.5), TypeError, r"^stride must be an int or a pair of .*got 1.5"),
    (forward(stride=2**64), ValueError, r"^stride must be .*below 2\*\*31, got"),
    (forward(padding=-1), ValueError, r"^padding must be at least 0.*got -1"),
    (forward(padding="same"), TypeError, r"^padding must be .*got 'same'"),
    (forward(padding=(1, 1, 1)), TypeError, r"^padding must be .*got \(1, 1, 1\)"),
    (forward(dilation=(0, 1)), ValueError, r"^dilation must be at least 1.*got \(0, 1\)"),
    (forward(padding=2**20, dilation=(2**20, 2**21), out=None), ValueError, r"^padding or dil"),
    (forward(padding=2**20, dilation=(2**20, 2**21), out=(2, 5, 6, 5)), ValueError, r"^padding or"),
    (compact(padding=2**20, dilation=(2**20, 2**21), g=(2, 5, 6, 4)), ValueError, r"^padding or"),
    (scatter(padding=2**20, dilation=(2**20, 2**21), g=(2, 5, 6, 5)), ValueError, r"^padding or"),
    (
        dict(name="gathered_conv2d_t", g=(1, 1, 1, 64), w=(2, 2, 1, 64), input_size=(10000, 10000),
             dilation=9999, out=None),
        ValueError, r"^padding or dilation is too large: .* 10000 x 19999 pixels",
    ),
    (backward(stride=0), ValueError, r"^stride must be at least 1.*got 0"),
    (compact(padding=-1), ValueError, r"^padding must be at least 0.*got -1"),
    (scatter(dilation=None), TypeError, r"^dilation must be .*got None"),
    # index sets
    (forward(in_channels=[0, 1, 4]), ValueError, r"^in_channels must be in \[0, 4\), got 4"),
    (forward(in_channels=[-1, 1, 2]), ValueError, r"^in_channels must be in \[0, 4\), got -1"),
    (forward(in_channels=[]), ValueError, r"^in_channels is empty"),
    (forward(out_channels=[2, 1]), ValueError, r"^out_channels must be ascending.* 2 .* by 1"),
    (forward(out_channels=[1, 1]), ValueError, r"^out_channels must be ascending.* 1 .* by 1"),
    (forward(out_channels=[0.0]), TypeError, r"^out_channels must hold integers or .* float64"),
    (forward(out_channels=IndexSet([0], 4)), ValueError, r"^out_channels is a set of 4 .* 5"),
    (backward(in_channels=[True]), ValueError, r"^in_channels is a boolean mask of length 1.* 4"),
    (backward(out_channels=[0, 5]), ValueError, r"^out_channels must be in \[0, 5\), got 5"),
    (scatter(in_channels=[2, 0]), ValueError, r"^in_channels must be ascending.* 2 .* by 0"),
    (scatter(out_channels=[]), ValueError, r"^out_channels is empty"),
    # dtypes
    (forward(x=full((2, 5, 6, 3), F4)), TypeError, r"^x and w must have one dtype.*float32"),
    (forward(x=full((2, 5, 6, 3), int)), TypeError, r"^x must be float32 or float64, got int64"),
    (forward(w=full((3, 2, 4, 5), "f2")), TypeError, r"^w must be float32 or .* got float16"),
    (forward(w=full((3, 2, 4, 5), ">f8")), TypeError, r"^w must be float32 or .* got >f8"),
    (forward(bias=full(5, F4)), TypeError, r"^bias and w must have one dtype.*float32"),
    (forward(out=full((2, 3, 5, 5), F4)), TypeError, r"^out must have dtype float64, got float32"),
    (backward(g=full((2, 3, 5, 2), F4)), TypeError, r"^g and w must have one dtype.*float32"),
    (backward(out=full((2, 5, 6, 4), F4)), TypeError, r"^out must have dtype float64"),
    (compact(g=full((2, 3, 5, 4), F4)), TypeError, r"^x and g must have one dtype.*float32"),
    (compact(out=full((3, 2, 3, 4), F4)), TypeError, r"^out must have dtype float64"),
    (scatter(g=full((2, 3, 5, 5), F4)), TypeError, r"^x and g must have one dtype.*float32"),
    (scatter(out=full((3, 2, 4, 5), F4)), TypeError, r"^out must have dtype float64"),
    # out
    (forward(out=(2, 3, 5, 4)), ValueError, r"^out must have shape \(2, 3, 5, 5\), got \(2, 3"),
    (forward(out=read_only((2, 3, 5, 5))), ValueError, r"^out is read-only"),
    (forward(out=[[0.0]]), TypeError, r"^out must be a NumPy array.*, got list"),
    (backward(out=(2, 5, 5, 4)), ValueError, r"^out must have shape \(2, 5, 6, 4\), got"),
    (backward(out=read_only((2, 5, 6, 4))), ValueError, r"^out is read-only"),
    (compact(out=(3, 2, 4, 3)), ValueError, r"^out must have shape \(3, 2, 3, 4\), got"),
    (compact(out=read_only((3, 2, 3, 4))), ValueError, r"^out is read-only"),
    (scatter(out=read_only((3, 2, 4, 5))), ValueError, r"^out is read-only"),
    (scatter(out=[[0.0]]), TypeError, r"^out must be a NumPy array.*, got list"),
    (scatter(out=full((5, 4, 2, 3)).T), ValueError, r"^out must be C-contiguous"),
    # numbers
    (forward(slope=-1.0), ValueError, r"^slope must be in .*got -1"),
    (forward(scale=0.0), ValueError, r"^scale must be in .*got 0"),
    (forward(scale="1"), TypeError, r"^scale must be a real number, got '1'"),
    (scatter(alpha="1"), TypeError, r"^alpha must be a real number, got '1'"),
]  # fmt: skip


class TestSize:
    @given(
        size=pairs(0, 30), kernel=pairs(1, 5), stride=pairs(1, 4), padding=pairs(0, 9),
        dilation=pairs(1, 4),
    )  # fmt: skip
    def test_counts_the_positions(self, size, kernel, stride, padding, dilation):
        geometry = dict(stride=stride, padding=padding, dilation=dilation)
        expected = tuple(
            len(range(-p, n + p - d * (k - 1), s))
            for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
        )
        if 0 in expected:
            with pytest.raises(ValueError, match="larger than the padded image"):
                kernels.conv2d_size(size, kernel, **geometry)
        else:
            assert kernels.conv2d_size(size, kernel, **geometry) == expected

    def test_bad_input(self):
        with pytest.raises(TypeError, match=r"^size must be .*got \(3,\)"):
            kernels.conv2d_size((3,), 1)
        with pytest.raises(ValueError, match=r"^size must be .*got \(3, -1\)"):
            kernels.conv2d_size((3, -1), 1)


class TestBadInput:
    @pytest.mark.parametrize(("call", "error", "message"), BAD)
    def test_is_refused_before_anything_is_written(self, call, error, message):
        pairs = "input_size", "kernel_size", "stride", "padding", "dilation"
        call = {
            name: full(value) if isinstance(value, tuple) and name not in pairs else value
            for name, value in call.items()
        }
        kernel = getattr(kernels, call.pop("name"))
        before = np.copy(call["out"])
        with pytest.raises(error, match=message):
            kernel(**call)
        assert_same_bits(np.copy(call["out"]), before)

    def test_nothing_is_wrong_with_the_calls_themselves(self):
        for call in (forward(), backward(), compact(), scatter()):
            arrays = {name: full(call[name]) for name in "xgw" if name in call}
            call |= arrays | {"out": full(call["out"])}
            getattr(kernels, call.pop("name"))(**call)

    @pytest.mark.parametrize("which", [0, 1])
    @every_convolution
    def test_out_that_overlaps_an_operand(self, name, which):
        # A kernel of 1 x 1, so that images, gradient and weights have one size.
        names = {"gathered_conv2d": "xw", "gathered_conv2d_t": "gw"}.get(name, "xg")
        memory = np.arange(200.0)
        shared = memory[50:66].reshape(1, 1, 4, 4)
        other = np.ones((1, 1, 4, 4))
        left, right = (other, shared) if which else (shared, other)
        more = {"gathered_conv2d_t": {"input_size": (1, 4)}, "conv2d_at": {"kernel_size": 1}}
        for start in (50, 35, 65):
            before = memory.copy()
            out = memory[start : start + 16].reshape(1, 1, 4, 4)
            with pytest.raises(ValueError, match=f"^out overlaps {names[which]}"):
                getattr(kernels, name)(left, right, out=out, **more.get(name, {}))
            assert_same_bits(memory, before)

    def test_out_that_overlaps_the_bias_or_itself(self):
        x, w = np.ones((1, 1, 3, 2)), np.ones((1, 1, 2, 4))
        memory = np.zeros(20)
        with pytest.raises(ValueError, match=r"^out overlaps bias"):
            kernels.gathered_conv2d(x, w, bias=memory[:4], out=memory[3:15].reshape(1, 1, 3, 4))
        out = np.lib.stride_tricks.as_strided(memory, (1, 1, 3, 4), (96, 96, 24, 8))
        with pytest.raises(ValueError, match=r"^out overlaps itself"):
            kernels.gathered_conv2d(x, w, out=out)
        assert_same_bits(memory, np.zeros(20))


@pytest.mark.parametrize("part", range(4))
def test_against_pytorch(part):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(part)
    for _ in range(80):
        kernel, stride, dilation, padding = (
            tuple(map(int, rng.integers(low, high, 2)))
            for low, high in ((1, 6), (1, 4), (1, 4), (0, 6))
        )
        size = tuple(
            max(1, d * (k - 1) + 1 - 2 * p) + int(rng.integers(12))
            for d, k, p in zip(dilation, kernel, padding, strict=True)
        )
        channels = tuple(int(rng.choice([1, 2, 3, 8, 17, 30])) for _ in range(2))
        of = Convolution(int(rng.integers(1, 4)), size, channels, kernel, stride, padding, dilation)
        ins, outs = (make_set(str(rng.choice(SETS)), n, rng) for n in channels)
        shapes = of.shapes(ins, outs)
        x, g = rng.standard_normal(shapes["x"]), rng.standard_normal(shapes["g"])
        w, bias = rng.standard_normal(shapes["w"]), rng.standard_normal(channels[1])

        kept = w[:, :, *block(channels, ins, outs)]
        theirs = [torch.tensor(a, requires_grad=True)
                  for a in (x.transpose(0, 3, 1, 2), kept.transpose(3, 2, 0, 1))]  # fmt: skip
        y = torch.nn.functional.conv2d(
            *theirs, torch.tensor(bias if outs is None else bias[outs.indices]), **of.geometry
        )
        y.backward(torch.tensor(g.transpose(0, 3, 1, 2)))

        options = dict(in_channels=ins, out_channels=outs, **of.geometry)
        ours = (
            kernels.gathered_conv2d(x, w, bias=bias, **options),
            kernels.gathered_conv2d_t(g, w, input_size=size, **options),
            kernels.conv2d_at(x, g, kernel_size=kernel, **of.geometry),
        )
        expected = (
            y.detach().numpy().transpose(0, 2, 3, 1),
            theirs[0].grad.numpy().transpose(0, 2, 3, 1),
            theirs[1].grad.numpy().transpose(2, 3, 1, 0),
        )
        for one, other in zip(ours, expected, strict=True):
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-11, err_msg=str(of))
