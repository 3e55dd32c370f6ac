"""The kernels for a GPU against the reference; under the simulator, or on a GPU if there is one."""

from __future__ import annotations

import os
import sys
from subprocess import run
from typing import Any, NamedTuple

import numpy as np
import pytest

from numbadrop.index_set import IndexSet
from numbadrop.kernels import (
    BlockUpdate,
    batch_norm,
    batch_norm_gradient,
    dropout_mask,
    reference,
    track_moments,
    update_blocks,
)
from numbadrop.kernels.geometry import check_geometry, out_size
from numbadrop.kernels.pooling import Window
from numbadrop.kernels.update import Update
from numbadrop.optim import rules

pytest.importorskip("numba_cuda", reason='numba-cuda is missing: pip install "numbadrop[cuda]"')
from numba import cuda
from numba.core.typing.typeof import typeof

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
if not SIMULATED and not cuda.is_available():
    pytest.skip("no GPU, and NUMBA_ENABLE_CUDASIM is not 1", allow_module_level=True)

from numbadrop.kernels.cuda import (  # noqa: E402
    convolution,
    cubins,
    driver,
    elements,
    elementwise,
    launch,
    matmul,
    normalization,
    pooling,
    product,
    softmax,
    update,
)
from numbadrop.kernels.cuda.array import DeviceArray  # noqa: E402
from numbadrop.kernels.cuda.gather import Layout, loader  # noqa: E402
from numbadrop.kernels.cuda.launch import Kernel  # noqa: E402
from numbadrop.kernels.cuda.pool import Pool, rounded  # noqa: E402
from numbadrop.kernels.cuda.tile import Tile  # noqa: E402

DTYPES = ("float32", "float64")
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}

device = DeviceArray.from_host


@pytest.fixture(autouse=True, scope="module")
def _short_turns() -> Any:
    """The simulator's main thread spins until its turn is over, at each barrier."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(autouse=True)
def _no_plans_of_other_tests() -> Any:
    yield
    product._prepared.cache_clear()


def agree(got: Any, wanted: Any, dtype: str) -> None:
    assert got.dtype == wanted.dtype
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(got.to_host(), wanted, rtol=tolerance, atol=tolerance)


def some(rng: np.random.Generator, size: int, kept: int | None) -> IndexSet | None:
    if kept is None or kept == size:
        return None
    return IndexSet(np.sort(rng.choice(size, kept, replace=False)), size)


class Product:
    """Operands of the products, with NaN in every weight that must not be read."""

    def __init__(
        self, dtype: str, batch: int, n_in: int, n_out: int, kept_in: int | None = None,
        kept_out: int | None = None,
    ) -> None:  # fmt: skip
        rng = np.random.default_rng(0)
        self.dtype = dtype
        self.rows, self.cols = some(rng, n_in, kept_in), some(rng, n_out, kept_out)
        k_in, k_out = kept_in or n_in, kept_out or n_out
        self.w = np.full((n_in, n_out), np.nan, dtype)
        block = reference._block(self.w.shape, self.rows, self.cols)
        self.w[block] = rng.standard_normal((k_in, k_out))
        self.b = np.full(n_out, np.nan, dtype)
        self.b[block[1]] = rng.standard_normal(k_out)
        self.x = rng.standard_normal((batch, k_in)).astype(dtype)
        self.g = rng.standard_normal((batch, k_out)).astype(dtype)

    def empty(self, *shape: int) -> DeviceArray:
        return device(np.full(shape, np.nan, self.dtype))

    def check_all(self) -> None:
        self.check_forward()
        self.check_gradients()

    def check_forward(self, **factors: float) -> None:
        factors = {"slope": 0.0, "scale": 2.0, **factors}
        y = matmul.gathered_linear(
            device(self.x), device(self.w), device(self.b), self.rows, self.cols,
            out=self.empty(*self.g.shape), **factors,
        )  # fmt: skip
        wanted = reference.gathered_linear(self.x, self.w, self.b, self.rows, self.cols, **factors)
        agree(y, wanted, self.dtype)

    def check_gradients(self) -> None:
        sets = self.rows, self.cols
        x, g, w = device(self.x), device(self.g), device(self.w)
        dx = matmul.gathered_matmul_t(g, w, *sets, out=self.empty(*self.x.shape))
        agree(dx, reference.gathered_matmul_t(self.g, self.w, *sets), self.dtype)
        dw = matmul.matmul_at(x, g, out=self.empty(self.x.shape[1], self.g.shape[1]))
        agree(dw, reference.matmul_at(self.x, self.g), self.dtype)
        out = device(self.w)
        matmul.scatter_matmul(x, g, *sets, out=out, alpha=-0.5)
        wanted = reference.scatter_matmul(self.x, self.g, *sets, out=self.w.copy(), alpha=-0.5)
        agree(out, wanted, self.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "sizes",
    [
        (5, 11, 9, 4, 5),
        (9, 12, 8),  # everything in vectors
        (3, 12, 8, 7, None),
        (3, 12, 8, 8, 3),  # vectors of the batch alone
        (1, 5, 12, None, 1),
        (1, 1, 1),
        (17, 7, 18, 7, 17),  # one more than a tile, in each direction
        (0, 5, 12, None, 3),
        (3, 0, 4),
        (3, 4, 0),
    ],
    ids=str,
)
def test_products(dtype: str, sizes: tuple[int, ...]) -> None:
    Product(dtype, *sizes).check_all()


@pytest.mark.parametrize("slope", [0.0, 0.25, 1.0])
def test_the_rectifier_keeps_nan_and_makes_no_other(slope: float) -> None:
    case = Product("float32", 4, 5, 6)
    case.x[0, 0], case.x[1, 0], case.x[2, 0] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        case.check_forward(slope=slope, scale=0.5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_without_bias(dtype: str) -> None:
    case = Product(dtype, 3, 7, 5, 4, 3)
    y = matmul.gathered_matmul(
        device(case.x), device(case.w), case.rows, case.cols, out=case.empty(3, 3)
    )
    agree(y, reference.gathered_matmul(case.x, case.w, case.rows, case.cols), dtype)


@pytest.mark.parametrize("share", [4, 8])
def test_a_product_split_along_its_depth(share: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tile = product.TILES[np.dtype("float32")][-1]
    share = max(share, tile.depth)
    monkeypatch.setattr(product, "_plan", lambda *_: (tile, share))
    Product("float32", 2 * share + 1, 3 * share + 1, 2 * share, 2 * share + 3, None).check_all()


def test_a_split_adds_in_order_and_with_one_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    # 1 + 1e8 - 1e8, in float32: 0 in this order, 1 in the other.
    tile = product.TILES[np.dtype("float32")][-1]
    monkeypatch.setattr(product, "_plan", lambda *_: (tile, tile.depth))
    x = np.zeros((1, 3 * tile.depth), np.float32)
    x[0, :: tile.depth] = 1, 1e8, -1e8
    y = DeviceArray.empty((1, 1), x.dtype)
    ones, bias = device(np.ones((x.size, 1), x.dtype)), device(np.array([-3], x.dtype))
    matmul.gathered_linear(device(x), ones, bias, None, None, slope=0.5, scale=2.0, out=y)
    assert y.to_host() == -3


def test_a_plan_covers_the_depth_with_whole_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "_multiprocessors", lambda: 132)
    for dtype, tiles in product.TILES.items():
        for sizes in ((100, 400, 400), (1024, 2048, 2048), (1, 1, 10**6), (8, 8, 0)):
            tile, share = product._plan(dtype, *sizes)
            assert tile in tiles
            assert share % tile.depth == 0
            assert share > 0 or sizes[2] == 0
    _, share = product._plan(np.dtype("float32"), 4, 4, 10**5)
    assert share < 10**5  # one tile alone would leave all multiprocessors but one idle


@pytest.mark.parametrize(
    ("dtype", "tile"),
    [
        ("float32", Tile(128, 128, 8, 8, 8, warp_rows=4, warp_cols=8)),
        ("float64", Tile(64, 64, 8, 8, 4, warp_rows=4, warp_cols=8)),
    ],
    ids=DTYPES,
)
def test_the_tile_of_a_real_device(dtype: str, tile: Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "_plan", lambda *_: (tile, 64))
    Product(dtype, 3, 18, tile.cols + 2, 9, None).check_forward()


@pytest.mark.parametrize("stages", [2, 3, 5])
def test_stages(stages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tile = product.TILES[np.dtype("float32")][0]._replace(stages=stages)
    monkeypatch.setattr(product, "_plan", lambda *_: (tile, 1 << 20))
    for slices in (1, stages - 1, stages, 2 * stages + 1):
        Product("float32", 3, 2 * slices * tile.depth, 5, slices * tile.depth - 1, 3).check_all()


def test_threads_that_cannot_share_a_tile_are_refused() -> None:
    with pytest.raises(ValueError, match="48 threads cannot share a tile of 16 x 4 evenly"):
        loader(Layout(True), np.dtype("float32"), 16, 4, 48)


CONVOLUTIONS = [
    # batch, size, in, out, kept, kernel, stride, padding, dilation
    (2, (5, 4), 5, 6, (3, 2), 3, 1, 1, 1),
    (2, (5, 4), 4, 8, (None, None), 3, 1, 1, 1),
    (1, (7, 6), 3, 4, (None, 3), (3, 2), (2, 3), (1, 0), (1, 2)),
    (2, (6, 5), 8, 5, (4, None), 1, 2, 0, 1),
    (1, (4, 4), 8, 4, (4, None), 2, 2, 0, 1),
    (1, (4, 4), 2, 2, (1, 1), 2, 3, 1, 1),
    (0, (4, 4), 2, 2, (1, 1), 2, 1, 0, 1),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolutions(dtype: str, case: Any) -> None:
    batch, size, n_in, n_out, kept, kernel, stride, padding, dilation = case
    rng = np.random.default_rng(0)
    ins, outs = some(rng, n_in, kept[0]), some(rng, n_out, kept[1])
    axes = check_geometry(kernel, stride, padding, dilation)
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    places, taps = out_size(axes, size), tuple(axis.kernel for axis in axes)
    k_in, k_out = kept[0] or n_in, kept[1] or n_out
    w, bias = np.full((*taps, n_in, n_out), np.nan, dtype), np.full(n_out, np.nan, dtype)
    rows, cols = reference._block(w.shape[2:], ins, outs)
    w[:, :, rows, cols] = rng.standard_normal((*taps, k_in, k_out))
    bias[cols] = rng.standard_normal(k_out)
    x = rng.standard_normal((batch, *size, k_in)).astype(dtype)
    g = rng.standard_normal((batch, *places, k_out)).astype(dtype)

    ending = {"slope": 0.1, "scale": 2.0}
    y = convolution.gathered_conv2d(
        device(x), device(w), ins, outs, axes=axes, bias=device(bias), **ending,
        out=device(np.full(g.shape, np.nan, dtype)),
    )  # fmt: skip
    wanted = reference.gathered_conv2d(x, w, ins, outs, bias=bias, **geometry, **ending)
    agree(y, wanted, dtype)
    dx = convolution.gathered_conv2d_t(
        device(g), device(w), ins, outs, axes=axes, out=device(np.full(x.shape, np.nan, dtype))
    )
    wanted = reference.gathered_conv2d_t(g, w, ins, outs, input_size=size, **geometry)
    agree(dx, wanted, dtype)
    dw = convolution.conv2d_at(
        device(x), device(g), axes=axes, out=device(np.full((*taps, k_in, k_out), np.nan, dtype))
    )
    agree(dw, reference.conv2d_at(x, g, kernel_size=taps, **geometry), dtype)


def test_images_beyond_32_bits_are_refused() -> None:
    axes = check_geometry(1, 1, 0, 1)
    with pytest.raises(ValueError, match="at most 2\\*\\*29 elements"):
        convolution._forward((2**11, 2**10, 2**9, 2), axes)


def test_weights_beyond_32_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 2\\*\\*29"):
        convolution._depth((0, 8), 2**26, None, 4)


def test_no_gradient_passes_where_nothing_does() -> None:
    g, y = np.full((2, 3), np.inf), np.array([[0.0, 1.0, -1.0]] * 2)
    h, sums = elementwise.rectifier_gradient(device(g), device(y), slope=0.0, scale=1.0)
    np.testing.assert_array_equal(h.to_host(), [[0, np.inf, 0]] * 2)
    np.testing.assert_array_equal(sums.to_host(), [0, np.inf, 0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 3), (0, 3), (300, 1), (4, 0)])
@pytest.mark.parametrize("factors", [(0.0, 2.0), (1.0, 1.0), (0.25, 1.0)])
def test_rectifier_gradient(
    dtype: str, shape: tuple[int, int], factors: tuple[float, float]
) -> None:
    rng = np.random.default_rng(0)
    g, y = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    named = dict(zip(("slope", "scale"), factors, strict=True))
    wanted = reference.rectifier_gradient(g, y, **named)
    for got, right in zip(
        elementwise.rectifier_gradient(device(g), device(y), **named), wanted, strict=True
    ):
        agree(got, right.astype(dtype), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_take_columns(dtype: str) -> None:
    x = np.full((4, 7), np.nan, dtype)
    kept = IndexSet([0, 3, 6], 7)
    x[:, kept.indices] = np.arange(12).reshape(4, 3)
    y = elementwise.take_columns(device(x), kept, 2.0)
    agree(y, reference.take_columns(x, kept, 2.0).astype(dtype), dtype)


MASKS = [(), (0,), (1,), (7,), (8,), (9,), (3, 5), (2, 1, 1, 4), (0, 3), (40, 70)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.0, 1e-10, 0.1, 0.5, 0.9, 1 - 2.0**-53])
def test_a_mask_has_the_bits_of_the_host(dtype: str, p: float) -> None:
    ours, host = np.random.default_rng(0), np.random.default_rng(0)
    here = np.empty(0, dtype)
    there = device(here)
    for shape in MASKS:
        mask = dropout_mask(shape, p, ours, there)
        assert isinstance(mask, DeviceArray)
        assert mask.shape == shape
        wanted = dropout_mask(shape, p, host, here)
        assert mask.dtype == wanted.dtype
        assert mask.to_host().tobytes() == wanted.tobytes()
    if p >= 0.1 and p <= 0.9:
        # 2,800 draws: four standard deviations are at most 0.038.
        np.testing.assert_allclose((mask.to_host() == 0).mean(), p, atol=0.038)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy(dtype: str) -> None:
    rng = np.random.default_rng(0)
    logits = 100 * rng.standard_normal((6, 7)).astype(dtype)
    labels = rng.integers(7, size=6)
    loss = softmax.cross_entropy(device(logits), device(labels))
    agree(loss, reference.cross_entropy(logits, labels), dtype)
    gradient = softmax.cross_entropy_gradient(device(logits), device(labels), 0.5)
    agree(gradient, reference.cross_entropy_gradient(logits, labels, 0.5), dtype)


def test_a_label_out_of_range_gives_nan_in_its_row_alone() -> None:
    logits, labels = np.ones((4, 3), np.float32), np.array([0, 3, -1, 2])
    loss = softmax.cross_entropy(device(logits), device(labels)).to_host()
    gradient = softmax.cross_entropy_gradient(device(logits), device(labels), 1.0).to_host()
    assert np.isnan(loss).tolist() == [False, True, True, False]
    assert np.isnan(gradient).all(axis=1).tolist() == [False, True, True, False]
    assert np.isfinite(gradient[[0, 3]]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [(2,), (3, 2, 1), ((2, 3), (1, 2), (1, 1)), ((3, 2), 1)])
def test_pooling(dtype: str, window: tuple[Any, ...]) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(3, size=(2, 6, 5, 3)).astype(dtype)  # many are equal
    mean, sums = reference.avg_pool2d(x, *window), Window.of(*window)
    agree(pooling.avg_pool2d(device(x), sums), mean.astype(dtype), dtype)
    g = rng.standard_normal(mean.shape).astype(dtype)
    dx = reference.avg_pool2d_gradient(g, x.shape, *window).astype(dtype)
    agree(pooling.avg_pool2d_gradient(device(g), x.shape, sums), dx, dtype)
    x[0, 0, 0, 0] = x[1, 3, 2, 1] = np.nan
    y = reference.max_pool2d(x, *window)
    agree(pooling.max_pool2d(device(x), sums), y, dtype)
    dx = pooling.max_pool2d_gradient(device(g), device(x), device(y), sums)
    agree(dx, reference.max_pool2d_gradient(g, x, y, *window), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 7, 300])
def test_batch_norm(dtype: str, rows: int) -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((rows, 3)) + np.array([0, 1e4, 1])).astype(dtype)
    g, w, b = (rng.standard_normal(n).astype(dtype) for n in ((rows, 3), 3, 3))
    mean, variance = normalization.batch_moments(device(x))
    right = reference.batch_moments(x.astype(np.float64))
    np.testing.assert_allclose(mean.to_host(), right[0], rtol=1e-13)
    np.testing.assert_allclose(variance.to_host(), right[1], rtol=1e-9, atol=1e-12)
    moments = device(right[0]), device(right[1])
    for weight, bias in ((w, b), (None, None)):
        factors = [None if a is None else device(a) for a in (weight, bias)]
        y = normalization.batch_norm(device(x), *moments, *factors, eps=0.1)
        plain = (1, 0) if weight is None else (weight, bias)
        agree(y, reference.batch_norm(x, *right, *plain, eps=0.1).astype(dtype), dtype)
        for training in (True, False):
            got = normalization.batch_norm_gradient(
                device(g), device(x), *moments, factors[0], eps=0.1, training=training
            )
            wanted = reference.batch_norm_gradient(
                g.astype(float), x.astype(float), *right, plain[0], eps=0.1, training=training
            )
            for one, other in zip(got, wanted, strict=True):
                agree(one, other.astype(dtype), dtype)


def test_the_numbers_of_batch_norm_have_one_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel is compiled for the types that it is first started with."""
    started: list[Any] = []
    monkeypatch.setattr(
        Kernel, "__call__",
        lambda self, grid, *numbers: started.append([*map(type, launch._flat(numbers))]),
    )  # fmt: skip
    x, units, found = device(np.ones((2, 3))), device(np.ones(3)), []
    for eps, training in ((1, 1), (0.5, True), (np.float32(1), np.bool_(False))):
        batch_norm(x, units, units, eps=eps)
        batch_norm_gradient(x, x, units, units, eps=eps, training=training)
        found.append(started.copy())
        started.clear()
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kept", [3, 7])
def test_running_statistics_take_one_kernel(
    dtype: str, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    units = IndexSet(np.sort(rng.permutation(7)[:kept]), 7)
    running = [rng.standard_normal(7).astype(dtype) for _ in range(2)]
    moments = [rng.standard_normal(kept) for _ in range(2)]
    sent = [device(array) for array in (*running, *moments)]
    starts: list[Any] = []
    start = Kernel.__call__
    monkeypatch.setattr(Kernel, "__call__", lambda *call: (starts.append(call), start(*call)))
    track_moments(*sent, units, count=5, momentum=0.25)
    assert len(starts) == 1
    reference.track_moments(*running, *moments, units, count=5, momentum=0.25)
    for got, wanted in zip(sent, running, strict=False):
        agree(got, wanted, dtype)


RULES = [
    (rules.SGDRule(0.1, 0.2), rules.sgd, 0),
    (rules.MomentumRule(0.9, 1.0, 0.1, 0.1, 0.2), rules.momentum, 1),
    (rules.NAGRule(0.9, 0.1, 1.9), rules.nag, 1),
    (rules.AdamRule(0.9, 0.1, 0.99, 0.01, 0.1, 1.0, 1e-8, 0.1, 1.0), rules.adam, 2),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kept", [(2, 3), (None, 3), (2, None), (None, None)], ids=str)
@pytest.mark.parametrize(("rule", "element", "count"), RULES, ids=lambda value: str(value)[:3])
def test_update_block(dtype: str, kept: Any, rule: Any, element: Any, count: int) -> None:
    rng = np.random.default_rng(0)
    rows, cols = some(rng, 4, kept[0]), some(rng, 5, kept[1])
    value = rng.standard_normal((4, 5)).astype(dtype)
    slots = rng.random((count, 4, 5)).astype(dtype)
    grad = rng.standard_normal((kept[0] or 4, kept[1] or 5)).astype(dtype)
    ours, ours_slots = device(value), device(slots)
    before = value.copy()
    update.update_blocks([Update(rule, ours, ours_slots, device(grad), rows, cols)])
    reference.update_block(element, rule, value, slots, grad, rows, cols)
    agree(ours, value, dtype)
    agree(ours_slots, slots, dtype)
    outside = np.ones((4, 5), np.bool_)
    outside[reference._block(outside.shape, rows, cols)] = False
    np.testing.assert_array_equal(ours.to_host()[outside], before[outside])


def test_update_of_a_vector() -> None:
    value, cols = np.arange(5.0), IndexSet([1, 4], 5)
    ours = device(value)
    slots = device(np.empty((0, 5)))
    rule = rules.SGDRule(1.0, 0.0)
    update.update_blocks([Update(rule, ours, slots, device(np.ones(2)), None, cols)])
    np.testing.assert_array_equal(ours.to_host(), [0, 0, 2, 3, 3])


def test_the_numbers_of_a_rule_are_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel is compiled for the types that it is first started with."""
    started = []
    call = Kernel.__call__

    def start(self: Kernel, grid: Any, *numbers: Any) -> None:
        started.append(numbers)
        call(self, grid, *numbers)

    monkeypatch.setattr(Kernel, "__call__", start)
    for rule in (rules.SGDRule(1, False), rules.SGDRule(np.float32(1), 0)):
        value = device(np.array([1.0, 2.0]))
        slots, grad = device(np.empty((0, 2))), device(np.array([1.0, 0.5]))
        update.update_blocks([Update(rule, value, slots, grad, None, None)])
        np.testing.assert_array_equal(value.to_host(), [0, 1.5])
    assert {type(number) for rule, *_ in started for number in rule} == {float}


def test_a_value_is_updated_once() -> None:
    value, slots, grad = device(np.ones(2)), device(np.empty((0, 2))), device(np.ones(2))
    one = BlockUpdate(rules.SGDRule, value, slots)
    due = one.check(rules.SGDRule(1.0, 0.0), grad)
    with pytest.raises(ValueError, match="must be of different values"):
        update_blocks([due, due])
    np.testing.assert_array_equal(value.to_host(), [1, 1])


def test_axes_that_32_bits_do_not_hold_are_refused() -> None:
    small = device(np.ones((1, 1), np.float32))
    for shape in ((1, 1 << 29), (1 << 29, 1)):
        large = DeviceArray(shape, small.dtype, small.address, None)
        with pytest.raises(ValueError, match=r"must be below 2\*\*29, got shape"):
            matmul.matmul_at(large, large, out=small)
        with pytest.raises(ValueError, match=r"must be below 2\*\*29, got shape"):
            matmul.gathered_matmul(small, large, None, None, out=small)


@pytest.mark.parametrize("most", [1, 2, 16])
def test_many_parameters_are_updated_together(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update, "_MOST", most)
    rng = np.random.default_rng(0)
    shapes = (3, 5), (5,), (0, 2), (70, 3), (1, 9)
    of_shape = [rules.NAGRule(0.9, 0.1, 1.9)] * 3 + [rules.NAGRule(0.5, 0.2, 1.5)] * 2
    updates, wanted = [], []
    for shape, rule in zip(shapes, of_shape, strict=True):
        rows = some(rng, shape[0], 2) if shape in ((3, 5), (70, 3)) else None
        cols = some(rng, shape[-1], 2)
        kept = (*([] if len(shape) == 1 else [len(rows or range(shape[0]))]), 2)
        value, slots, grad = (rng.standard_normal(s) for s in (shape, (1, *shape), kept))
        updates.append(Update(rule, device(value), device(slots), device(grad), rows, cols))
        matrix, its_slots = (np.atleast_2d(value), slots.reshape(1, -1, shape[-1]))
        block = grad.reshape(-1, 2), rows, cols
        reference.update_block(rules.nag, rule, matrix, its_slots, *block)
        wanted.append((value, slots))
    update.update_blocks(updates)
    for one, (value, slots) in zip(updates, wanted, strict=True):
        agree(one.value, value, "float64")
        agree(one.slots, slots, "float64")


def test_a_full_memory_changes_no_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    updates = [
        Update(rules.SGDRule(lr, 0.0), device(np.ones((2, 3))), device(np.ones((0, 2, 3))),
               device(np.ones((2, 1))), None, IndexSet([at], 3))
        for lr, at in ((0.1, 0), (0.2, 2))
    ]  # fmt: skip
    left = iter(["one set of indices"])

    def full(shape: Any, dtype: Any) -> Any:
        if not next(left, None):
            raise MemoryError
        return take(shape, dtype)

    take = driver._take
    monkeypatch.setattr(driver, "_take", full)
    with pytest.raises(MemoryError):
        update.update_blocks(updates)
    for one in updates:
        np.testing.assert_array_equal(one.value.to_host(), np.ones((2, 3)))


def test_a_pool_gives_what_was_given_back() -> None:
    new = iter((1, 2, 3))
    pool = Pool(lambda size: next(new), lambda address: None)
    assert pool.take(512) == 1
    pool.give_back(512, 1)
    assert pool.take(1024) == 2
    assert pool.take(512) == 1
    assert pool.take(512) == 3


def test_a_pool_lets_go_of_what_is_free() -> None:
    new, released = iter((1, 2, 3)), list[int]()
    pool = Pool(lambda size: next(new), released.append)
    for size in (512, 512, 1024):
        pool.take(size)
    assert not pool.let_go()
    pool.give_back(1024, 3)
    pool.give_back(512, 1)
    assert pool.let_go()
    assert sorted(released) == [1, 3]
    assert not pool.let_go()


def test_sizes_of_blocks() -> None:
    for nbytes in (1, 511, 512, 513, 5000, 123_457, 1 << 20, (1 << 20) + 1):
        size = rounded(nbytes)
        assert size % 512 == 0
        assert nbytes <= size <= max(nbytes * 9 // 8 + 1, nbytes + 511)
        assert rounded(size) == size


# ------------------------------------------------------------------------- code kept on disk

NAMES = """
import numpy as np
from numbadrop.kernels.cuda import cubins, product, update
from numbadrop.kernels.cuda.gather import Layout
from numbadrop.optim.rules import AdamRule

for dtype in map(np.dtype, ("float32", "float64")):
    for tile in product.TILES[dtype]:
        for layout in (Layout(True), Layout(False, depth_gathered=True)):
            run = product.product_kernel(tile, dtype, layout, layout, product.Ending())
            print(cubins.name_of(run.function, ("int64",), run.bounds, (9, 0)))
    run = update._update_kernel(AdamRule, dtype, 3)
    print(cubins.name_of(run.function, ("int64",), run.bounds, (9, 0)))
    print(cubins.name_of(run.function, ("int64",), run.bounds, (8, 0)))
    print(cubins.name_of(run.function, ("float32",), run.bounds, (9, 0)))
"""


def test_a_kernel_has_one_name_in_all_processes() -> None:
    first, second = (
        run([sys.executable, "-c", NAMES], env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, timeout=120, check=True).stdout.split()
        for seed in ("1", "2")
    )  # fmt: skip
    assert first == second
    assert len(set(first)) == len(first)
    assert all(name.endswith(".cubin") for name in first)


def test_code_that_is_not_ours_is_not_kept() -> None:
    def make(own: Any) -> Any:
        def kernel(out):
            own(out)

        kernel.__module__ = "numbadrop.kernels.cuda.elements"
        return kernel

    assert cubins.name_of(make(rules.sgd), (), (1, 1), (9, 0)) is not None
    assert cubins.name_of(make(lambda out: None), (), (1, 1), (9, 0)) is None
    assert cubins.name_of(make(object()), (), (1, 1), (9, 0)) is None


class SGDRule(NamedTuple):
    """Not the one of `rules`, whose numbers stand in another order."""

    decay: float
    lr: float


def test_classes_of_one_name_are_two() -> None:
    def named(*kinds: Any) -> Any:
        return cubins.name_of(rules.sgd, kinds, (1, 1), (9, 0))

    ours, theirs = typeof(rules.SGDRule(0.1, 0.2)), typeof(SGDRule(0.2, 0.1))
    assert named(ours) is not None
    assert named(ours) != named(typeof(rules.NAGRule(0.1, 0.2, 0.3)))
    assert named(theirs) is None
    assert named(typeof((1, SGDRule(0.2, 0.1)))) is None


@pytest.mark.skipif(SIMULATED, reason="the simulator loads no machine code")
def test_kept_code_that_does_not_load_is_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "load", lambda name: ("entry", bytes(4096)))
    monkeypatch.setattr(launch, "save", lambda *kept: None)
    elements._elementwise.cache_clear()
    elements._prepared.cache_clear()
    x = device(np.ones(3))
    np.testing.assert_array_equal((x + x).to_host(), [2, 2, 2])


def test_kept_code_is_whole_or_not_there(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cubins, "cache_folder", lambda: tmp_path)
    assert cubins.load("a.cubin") is None
    code = bytes(range(256)) * 3
    cubins.save("a.cubin", "entry", b"old")
    cubins.save("a.cubin", "entry", code)
    assert [path.name for path in tmp_path.iterdir()] == ["a.cubin"]
    assert cubins.load("a.cubin") == ("entry", code)
    whole = (tmp_path / "a.cubin").read_bytes()
    for broken in (b"", whole[:40], whole[:-1], whole[:-1] + b"x"):
        (tmp_path / "a.cubin").write_bytes(broken)
        assert cubins.load("a.cubin") is None
    (tmp_path / "a.cubin").write_bytes(whole)
    monkeypatch.setattr(cubins, "_stamp", lambda: b"of other sources".ljust(32))
    assert cubins.load("a.cubin") is None
    monkeypatch.setattr(cubins, "cache_folder", lambda: tmp_path / "missing")
    cubins.save("a.cubin", "entry", code)  # Nobody minds.
    monkeypatch.setattr(cubins, "cache_folder", lambda: None)
    cubins.save("a.cubin", "entry", code)
    assert cubins.load("a.cubin") is None
