"""The four products against the reference, over shapes, layouts, index sets and dtypes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import (
    DTYPES,
    LAYOUTS,
    PRODUCTS,
    SETS,
    assert_product,
    assert_same_bits,
    block,
    canary,
    count,
    laid_out,
    make_set,
    operands,
)

from numbadrop import kernels
from numbadrop.index_set import IndexSet
from numbadrop.kernels import reference
from numbadrop.kernels.blocking import _DEPTH_BLOCK
from numbadrop.kernels.elements import MACHINE

small = st.integers(0, 20) | st.integers(0, 110)
depths = st.sampled_from([1, 2, *(_DEPTH_BLOCK * k + d for k in (1, 2) for d in (-1, 0, 1))])
OUT_LAYOUTS = [layout for layout in LAYOUTS if layout != "unaligned"]


@st.composite
def product_cases(draw, names=PRODUCTS):
    """Draw everything about one product but its numbers."""
    name = draw(st.sampled_from(names))
    sizes = [draw(small), draw(small), draw(small)]
    if draw(st.booleans()):  # several blocks of the depth
        sizes[{"gathered_matmul": 1, "gathered_matmul_t": 2}.get(name, 0)] = draw(depths)
    kinds = ["none", "none"]
    if name != "matmul_at":
        kinds = [draw(st.sampled_from(SETS)), draw(st.sampled_from(SETS))]
    layouts = [draw(st.sampled_from(LAYOUTS)), draw(st.sampled_from(LAYOUTS))]
    dtype = draw(st.sampled_from(DTYPES))
    return name, tuple(sizes), kinds, layouts, dtype, draw(st.integers(0, 2**32 - 1))


def build(case, whole_numbers=False):
    """Return name, the two operands, the two index sets and the shape of the result."""
    name, sizes, kinds, layouts, dtype, seed = case
    rng = np.random.default_rng(seed)
    rows, cols = (make_set(kind, size, rng) for kind, size in zip(kinds, sizes[1:], strict=True))
    left, right = operands(name, dtype, sizes, rows, cols, rng, whole_numbers)
    left, right = (
        laid_out(array, layout)[0] for array, layout in zip((left, right), layouts, strict=True)
    )
    batch, n_in, n_out = sizes
    shape = {
        "gathered_matmul": (batch, count(cols, n_out)),
        "gathered_matmul_t": (batch, count(rows, n_in)),
    }.get(name, (n_in, n_out))
    return name, left, right, rows, cols, shape


class TestAgainstReference:
    @settings(max_examples=150)
    @given(case=product_cases(), layout=st.sampled_from([None, *OUT_LAYOUTS]), data=st.data())
    def test_within_the_bound_of_rounding(self, case, layout, data):
        name, left, right, rows, cols, shape = build(case)
        alpha = 1.0
        start = np.full(shape, np.nan, left.dtype)
        if name == "scatter_matmul":
            layout = layout or "C"
            alpha = data.draw(st.sampled_from([1.0, -0.375, 0.0, 2.0**-20]))
            start = canary(shape, left.dtype)  # what is around the block keeps its bits
            numbers = np.random.default_rng(0).standard_normal(shape).astype(left.dtype)
            inside = block(shape, rows, cols)
            start[inside] = numbers[inside]
        out = memory = None
        if layout is not None:
            out, memory = laid_out(start, layout, fill=-7.25)
            around = memory.copy()
        result = assert_product(name, left, right, rows, cols, out=out, alpha=alpha)
        if memory is not None:
            plain = result.copy()
            result[...] = start
            assert_same_bits(memory, around)  # nothing around `out` was written
            if name == "scatter_matmul":
                again = kernels.scatter_matmul(left, right, rows, cols, out=start, alpha=alpha)
            else:
                again = assert_product(name, left, right, rows, cols)
            assert_same_bits(plain, again)  # the layout of `out` does not change a bit

    @settings(max_examples=60)
    @given(case=product_cases())
    def test_whole_numbers_are_exact(self, case):
        name, left, right, rows, cols, shape = build(case, whole_numbers=True)
        if name == "scatter_matmul":
            start = np.random.default_rng(0).integers(-99, 99, shape).astype(left.dtype)
            expected = start.copy()
            kernels.scatter_matmul(left, right, rows, cols, out=start, alpha=-3.0)
            reference.scatter_matmul(left, right, rows, cols, out=expected, alpha=-3.0)
            np.testing.assert_array_equal(start, expected)
        else:
            sets = () if name == "matmul_at" else (rows, cols)
            np.testing.assert_array_equal(
                getattr(kernels, name)(left, right, *sets),
                getattr(reference, name)(left, right, *sets),
            )

    @settings(max_examples=30)
    @given(
        name=st.sampled_from(PRODUCTS),
        broadcast=st.tuples(st.sampled_from([(1, 0), (0, 1), (0, 0)]), st.booleans()),
        sizes=st.tuples(small, small, small),
        dtype=st.sampled_from(DTYPES),
    )
    def test_broadcast_operands(self, name, broadcast, sizes, dtype):
        rng = np.random.default_rng(0)
        pair = list(operands(name, dtype, sizes, None, None, rng))
        (keep_rows, keep_cols), second = broadcast
        array = pair[second]
        rows, cols = array.shape
        array = array[: rows if keep_rows else min(rows, 1), : cols if keep_cols else min(cols, 1)]
        pair[second] = np.broadcast_to(array, (rows, cols))
        assert_product(name, *pair, out=np.zeros(sizes[1:], dtype) if "scatter" in name else None)


class TestIdentity:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("kind", SETS)
    def test_is_exact(self, dtype, kind):
        rng = np.random.default_rng(1)
        rows, cols = make_set(kind, 150, rng), make_set(kind, 90, rng)
        n = min(count(rows, 150), count(cols, 90))
        rows = IndexSet((rows or IndexSet.all(150)).indices[:n], 150)
        cols = IndexSet((cols or IndexSet.all(90)).indices[:n], 90)
        w = np.full((150, 90), np.nan, dtype)
        w[block(w.shape, rows, cols)] = np.eye(n)
        x = rng.standard_normal((40, n)).astype(dtype)
        np.testing.assert_array_equal(kernels.gathered_matmul(x, w, rows, cols), x)
        np.testing.assert_array_equal(kernels.gathered_matmul_t(x, w, rows, cols), x)
        np.testing.assert_array_equal(kernels.matmul_at(x, np.eye(40, dtype=dtype)), x.T)
        out = np.zeros((150, 90), dtype)
        kernels.scatter_matmul(np.eye(n, dtype=dtype), np.eye(n, dtype=dtype), rows, cols, out=out)
        np.testing.assert_array_equal(out, np.nan_to_num(w))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_height_and_width_of_a_remainder(dtype):
    """Each product that is smaller than two register tiles, in exact arithmetic."""
    rng = np.random.default_rng(2)
    lanes = MACHINE.vector_bytes // np.dtype(dtype).itemsize
    widths = [
        width
        for vectors in range(2 * MACHINE.tile_vectors + 1)
        for width in (vectors * lanes, vectors * lanes + 1, vectors * lanes + lanes - 1)
    ]
    w = rng.integers(-9, 9, (5, 2 * max(widths) + 2)).astype(dtype)
    for width in widths:
        columns = w[:, :width]
        for height in range(2 * MACHINE.tile_rows + 2):
            x = rng.integers(-9, 9, (height, 5)).astype(dtype)
            out = np.full((height, width), np.nan, dtype)
            np.testing.assert_array_equal(
                kernels.gathered_matmul(x, columns, out=out), x @ columns, f"{height} x {width}"
            )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pitch", [64, 67])
def test_a_block_that_begins_anywhere_in_a_register_is_added_to(dtype, pitch):
    """Where rows are whole registers apart all begin alike in one, else each somewhere else."""
    rng = np.random.default_rng(4)
    lanes = MACHINE.vector_bytes // np.dtype(dtype).itemsize
    x, g = (rng.integers(-9, 9, (3, n)).astype(dtype) for n in (11, 40))
    rows, some = np.arange(0, 22, 2), np.sort(rng.permutation(46)[:40])
    for first in range(lanes + 1):
        for cols, width in ((None, 40), (some, 46)):
            out = rng.integers(-9, 9, (22, pitch)).astype(dtype)
            expected = out.copy()
            block = expected[:, first : first + width]
            reference.scatter_matmul(x, g, rows, cols, out=block)
            kernels.scatter_matmul(x, g, rows, cols, out=out[:, first : first + width])
            np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    ("shape", "share"),
    [
        ((1500, 1100, 1000), 0.95),  # several groups of rows; panels packed ahead, in blocks
        ((512, 2400, 300), 0.95),  # of a gradient's too, whose strips are packed
        ((40, 9000, 3000), 0.02),  # units far apart, scattered one by one
    ],
)
@pytest.mark.parametrize("name", PRODUCTS)
def test_large_operands(name, shape, share):
    """Whole numbers, so that every order of the sums gives the same."""
    rng = np.random.default_rng(0)
    rows, cols = (kernels.sample_units(IndexSet.all(n), int(share * n), rng) for n in shape[1:])
    if name == "matmul_at":
        rows = cols = None
        shape = (shape[0], 600, 500)
    left, right = operands(name, np.float32, shape, rows, cols, rng, whole_numbers=True)
    left64, right64 = left.astype(np.float64), right.astype(np.float64)
    if name == "scatter_matmul":
        out = np.ones(shape[1:], np.float32)
        kernels.scatter_matmul(left, right, rows, cols, out=out, alpha=2.0)
        expected = reference.scatter_matmul(
            left64, right64, rows, cols, out=np.ones(shape[1:]), alpha=2.0
        )
        np.testing.assert_array_equal(out, expected)
    else:
        sets = () if name == "matmul_at" else (rows, cols)
        np.testing.assert_array_equal(
            getattr(kernels, name)(left, right, *sets),
            getattr(reference, name)(left64, right64, *sets),
        )


class TestValues:
    def test_weights_outside_the_sets_may_be_anything(self):
        rng = np.random.default_rng(3)
        rows, cols = make_set("half", 80, rng), make_set("sparse", 120, rng)
        for dtype in DTYPES:
            x, w = operands("gathered_matmul", dtype, (9, 80, 120), rows, cols, rng)
            g, _ = operands("gathered_matmul_t", dtype, (9, 80, 120), rows, cols, rng)
            outside = np.isnan(w)
            results = []
            for poison in (0.0, np.inf, -np.inf, np.nan, np.finfo(dtype).tiny / 4):
                w[outside] = poison
                results.append(
                    kernels.gathered_matmul(x, w, rows, cols).tobytes()
                    + kernels.gathered_matmul_t(g, w, rows, cols).tobytes()
                )
            assert len(set(results)) == 1

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_nan_and_infinity_inside_spread_as_in_numpy(self, dtype):
        x = np.ones((20, 30), dtype)
        w = np.ones((30, 40), dtype)
        x[3, 4], w[5, 6], w[7, 8] = np.nan, np.inf, -np.inf
        np.testing.assert_array_equal(kernels.gathered_matmul(x, w), x @ w)
        np.testing.assert_array_equal(kernels.gathered_matmul_t(x, w.T), x @ w)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_alpha_zero_adds_nothing(self, dtype):
        out = np.arange(12, dtype=dtype).reshape(3, 4)
        expected = out.copy()
        kernels.scatter_matmul(np.ones((5, 3), dtype), np.ones((5, 4), dtype), out=out, alpha=0.0)
        np.testing.assert_array_equal(out, expected)

    @pytest.mark.parametrize(
        ("sizes", "expected"), [((0, 3, 4), (0, 4)), ((2, 0, 4), (2, 4)), ((2, 3, 0), (2, 0))]
    )
    def test_empty_operands(self, sizes, expected):
        for dtype in DTYPES:
            batch, n_in, n_out = sizes
            x, w = np.ones((batch, n_in), dtype), np.ones((n_in, n_out), dtype)
            y = kernels.gathered_matmul(x, w, out=np.full(expected, np.nan, dtype))
            assert y.shape == expected
            np.testing.assert_array_equal(y, x @ w)
            out = np.ones((n_in, n_out), dtype)
            kernels.scatter_matmul(x, np.ones((batch, n_out), dtype), out=out)
            np.testing.assert_array_equal(out, 1 + batch)

    def test_operands_are_never_changed(self):
        rng = np.random.default_rng(4)
        for name in PRODUCTS:
            left, right = operands(name, np.float32, (70, 90, 80), None, None, rng)
            before = left.copy(), right.copy()
            for array in (left, right):
                array.flags.writeable = False  # read-only operands are welcome
            assert_product(
                name, left, right, out=np.zeros((90, 80), "f") if "scatter" in name else None
            )
            assert_same_bits(left, before[0])
            assert_same_bits(right, before[1])

    @pytest.mark.parametrize(
        "form",
        [
            lambda s: s,
            lambda s: s.indices,
            lambda s: s.indices.astype(np.uint8),
            lambda s: s.indices.tolist(),
            lambda s: tuple(s.indices),
            lambda s: s.mask(),
            lambda s: np.repeat(s.indices, 2)[::2],
            lambda s: s.indices.astype(">i4"),
        ],
    )
    def test_index_sets_in_every_form(self, form):
        rng = np.random.default_rng(5)
        rows, cols = make_set("half", 40, rng), make_set("half", 50, rng)
        x, w = operands("gathered_matmul", np.float64, (6, 40, 50), rows, cols, rng)
        g, _ = operands("gathered_matmul_t", np.float64, (6, 40, 50), rows, cols, rng)
        r, c = form(rows), form(cols)
        assert_same_bits(
            kernels.gathered_matmul(x, w, r, c), kernels.gathered_matmul(x, w, rows, cols)
        )
        assert_same_bits(
            kernels.gathered_matmul_t(g, w, r, c), kernels.gathered_matmul_t(g, w, rows, cols)
        )
        one, other = np.zeros((40, 50)), np.zeros((40, 50))
        kernels.scatter_matmul(x, g, r, c, out=one)
        kernels.scatter_matmul(x, g, rows, cols, out=other)
        assert_same_bits(one, other)

    def test_lists_are_arrays_of_float64(self):
        y = kernels.gathered_matmul([[1.0, 2.0]], [[3.0], [4.0]])
        np.testing.assert_array_equal(y, [[11.0]])

    def test_out_may_share_a_base_with_an_operand(self):
        memory = np.ones((20, 60))
        x, out = memory[:, :20], memory[:, 20:50]
        w = np.ones((20, 30))
        kernels.gathered_matmul(x, w, out=out)
        np.testing.assert_array_equal(out, 20.0)
        np.testing.assert_array_equal(memory[:, 50:], 1.0)


F4, F8 = np.float32, np.float64


def forward(**changes):
    """Call the forward product of x (2, 3), w (4, 5) with rows [0, 1, 3], out (2, 5)."""
    return dict(name="gathered_matmul", x=(2, 3), w=(4, 5), rows=[0, 1, 3], out=(2, 5)) | changes


def backward(**changes):
    return dict(name="gathered_matmul_t", g=(2, 2), w=(4, 5), cols=[0, 3], out=(2, 4)) | changes


def compact(**changes):
    return dict(name="matmul_at", x=(2, 3), g=(2, 4), out=(3, 4)) | changes


def scatter(**changes):
    return (
        dict(name="scatter_matmul", x=(2, 2), g=(2, 5), rows=[0, 2], cols=None, out=(4, 5))
        | changes
    )


def full(shape, dtype=F8):
    return np.ones(shape, dtype)


def read_only(shape):
    array = full(shape)
    array.flags.writeable = False
    return array


BAD = [
    # rank
    (forward(x=(3,)), ValueError, r"^x must be two-dimensional, got shape \(3,\)"),
    (forward(w=(4, 5, 1)), ValueError, r"^w must be two-dimensional, got shape \(4, 5, 1\)"),
    (forward(x=()), ValueError, r"^x must be two-dimensional, got shape \(\)"),
    (backward(g=(2,)), ValueError, r"^g must be two-dimensional, got shape \(2,\)"),
    (compact(x=(2, 3, 1)), ValueError, r"^x must be two-dimensional"),
    (compact(g=(2,)), ValueError, r"^g must be two-dimensional"),
    (scatter(x=(2,)), ValueError, r"^x must be two-dimensional"),
    (scatter(out=(20,)), ValueError, r"^out must be .*two-dimensional.* got .*\(20,\)"),
    # size
    (forward(x=(2, 4)), ValueError, r"^x must have 3 entries on axis 1.* rows, got 4"),
    (forward(rows=None), ValueError, r"^x must have 4 entries on axis 1.* rows, got 3"),
    (backward(g=(2, 5)), ValueError, r"^g must have 2 entries on axis 1.* cols, got 5"),
    (compact(g=(3, 4)), ValueError, r"^x and g must have the same number of rows, got 2 and 3"),
    (scatter(g=(1, 5)), ValueError, r"^x and g must have the same number of rows, got 2 and 1"),
    (scatter(x=(2, 3)), ValueError, r"^x must have 2 entries on axis 1.* rows, got 3"),
    (scatter(g=(2, 4)), ValueError, r"^g must have 5 entries on axis 1.* cols, got 4"),
    # index sets
    (forward(rows=[0, 1, 4]), ValueError, r"^rows must be in \[0, 4\), got 4 at position 2"),
    (forward(rows=[-1, 1, 2]), ValueError, r"^rows must be in \[0, 4\), got -1 at position 0"),
    (forward(cols=[2, 1]), ValueError, r"^cols must be ascending and unique, got 2 .* by 1"),
    (forward(cols=[1, 1]), ValueError, r"^cols must be ascending and unique, got 1 .* by 1"),
    (forward(rows=[0.0, 1.0, 2.0]), TypeError, r"^rows must hold integers or .* float64"),
    (forward(rows=[]), ValueError, r"^rows is empty"),
    (forward(cols=[False] * 5), ValueError, r"^cols is empty"),
    (forward(rows=[True, True, True]), ValueError, r"^rows is a boolean mask of length 3.* 4"),
    (forward(rows=[[0, 1, 2]]), ValueError, r"^rows must be one-dimensional.*\(1, 3\)"),
    (forward(rows=1), ValueError, r"^rows must be one-dimensional"),
    (forward(rows=IndexSet([0, 1, 3], 9)), ValueError, r"^rows is a set of 9 units.* 4"),
    (backward(rows=[5]), ValueError, r"^rows must be in \[0, 4\), got 5"),
    (backward(cols=[0, 5]), ValueError, r"^cols must be in \[0, 5\), got 5"),
    (backward(cols=IndexSet([0, 1], 4)), ValueError, r"^cols is a set of 4 units.* 5"),
    (scatter(rows=[2, 0]), ValueError, r"^rows must be ascending and unique, got 2 .* by 0"),
    (scatter(cols=[0, 5]), ValueError, r"^cols must be in \[0, 5\), got 5"),
    (scatter(rows=[]), ValueError, r"^rows is empty"),
    # dtypes
    (forward(x=full((2, 3), F4)), TypeError, r"^x and w must have one dtype.*float32.*float64"),
    (forward(x=full((2, 3), int)), TypeError, r"^x must be float32 or float64, got int64"),
    (forward(w=full((4, 5), np.float16)), TypeError, r"^w must be float32 or .* got float16"),
    (forward(w=full((4, 5), complex)), TypeError, r"^w must be float32 or .* got complex128"),
    (forward(w=full((4, 5), ">f8")), TypeError, r"^w must be float32 or float64, got >f8"),
    (forward(out=full((2, 5), F4)), TypeError, r"^out must have dtype float64, got float32"),
    (backward(w=full((4, 5), F4)), TypeError, r"^g and w must have one dtype"),
    (backward(out=full((2, 4), F4)), TypeError, r"^out must have dtype float64, got float32"),
    (compact(x=full((2, 3), F4)), TypeError, r"^x and g must have one dtype"),
    (compact(out=full((3, 4), F4)), TypeError, r"^out must have dtype float64, got float32"),
    (scatter(g=full((2, 5), F4)), TypeError, r"^x and g must have one dtype"),
    (scatter(out=full((4, 5), F4)), TypeError, r"^out must have dtype float64, got float32"),
    # out
    (forward(out=full((2, 4))), ValueError, r"^out must have shape \(2, 5\), got \(2, 4\)"),
    (forward(out=full((10,))), ValueError, r"^out must have shape \(2, 5\), got \(10,\)"),
    (forward(out=read_only((2, 5))), ValueError, r"^out is read-only"),
    (forward(out=[[0.0] * 5] * 2), TypeError, r"^out must be a NumPy array.*, got list"),
    (forward(out=laid_out(full((2, 5)), "unaligned")[0]), ValueError, r"^out is not aligned"),
    (backward(out=full((4, 2))), ValueError, r"^out must have shape \(2, 4\), got \(4, 2\)"),
    (backward(out=read_only((2, 4))), ValueError, r"^out is read-only"),
    (compact(out=full((4, 3))), ValueError, r"^out must have shape \(3, 4\), got \(4, 3\)"),
    (compact(out=read_only((3, 4))), ValueError, r"^out is read-only"),
    (scatter(out=read_only((4, 5))), ValueError, r"^out is read-only"),
    (scatter(out=[[0.0] * 5] * 4), TypeError, r"^out must be a NumPy array.*, got list"),
    (scatter(out=laid_out(full((4, 5)), "unaligned")[0]), ValueError, r"^out is not aligned"),
    # alpha
    (scatter(alpha="1"), TypeError, r"^alpha must be .*, got '?(1|str)"),
    (scatter(alpha=10**400), ValueError, r"^alpha must be a number of float64, got a larger one"),
    (scatter(alpha=1j), TypeError, r"^alpha must be .*, got \(?(1j|complex)"),
]  # fmt: skip


class TestBadInput:
    @pytest.mark.parametrize(("call", "error", "message"), BAD)
    def test_is_refused_before_anything_is_written(self, call, error, message):
        call = {
            name: np.full(value, 3.0) if isinstance(value, tuple) else value
            for name, value in call.items()
        }
        kernel = getattr(kernels, call.pop("name"))
        out = call["out"]
        before = np.copy(out)
        with pytest.raises(error, match=message):
            kernel(**call)
        assert_same_bits(np.asarray(out), before)

    @pytest.mark.parametrize("which", [0, 1])
    @pytest.mark.parametrize("name", PRODUCTS)
    def test_out_that_overlaps_an_operand(self, name, which):
        names = {"gathered_matmul": "xw", "gathered_matmul_t": "gw"}.get(name, "xg")
        memory = np.arange(200.0).reshape(10, 20)
        pair = [memory[:8, :8], np.ones((8, 8))]
        if which:
            pair.reverse()
        for out in (memory[:8, :8], memory[2:, 1:9], memory[7::-1, 7::-1], memory[:8, :16:2]):
            before = memory.copy()
            with pytest.raises(ValueError, match=f"^out overlaps {names[which]}"):
                getattr(kernels, name)(*pair, out=out)
            assert_same_bits(memory, before)

    def test_out_that_overlaps_itself(self):
        memory = np.zeros(12)
        out = np.lib.stride_tricks.as_strided(memory, (3, 4), (8, 8))
        for kernel in (kernels.gathered_matmul, kernels.scatter_matmul):
            x, w = (np.ones((3, 2)), np.ones((2, 4)))
            if kernel is kernels.scatter_matmul:
                x = x.T
            with pytest.raises(ValueError, match=r"^out overlaps itself"):
                kernel(x, w, out=out)
            np.testing.assert_array_equal(memory, 0)


@pytest.mark.parametrize("alpha", [1e300, -1e300])
def test_a_factor_that_float32_does_not_have(alpha):
    out = np.ones((2, 2), np.float32)
    with pytest.raises(ValueError, match=r"^alpha must be at most 3.4.* for float32, got"):
        kernels.scatter_matmul(out, out.copy(), out=np.ones_like(out), alpha=alpha)
    kernels.scatter_matmul(np.ones((1, 1)), np.ones((1, 1)), out=np.ones((1, 1)), alpha=alpha)
