"""What becomes of the kernels: PTX for compute capability 9.0, made and read without a GPU."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator
from struct import Struct, calcsize
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from numbadrop.index_set import IndexSet
from numbadrop.kernels.geometry import check_geometry
from numbadrop.kernels.pooling import Window
from numbadrop.kernels.update import Update
from numbadrop.optim import rules

pytest.importorskip("numba_cuda", reason='numba-cuda is missing: pip install "numbadrop[cuda]"')
from numba import config

if config.ENABLE_CUDASIM:
    pytest.skip("the simulator compiles nothing", allow_module_level=True)

from numba.core.typing.typeof import typeof
from numba.cuda import dispatcher
from numba.cuda.cudadrv import devices

from numbadrop.kernels.cuda import (
    array,
    convolution,
    driver,
    elements,
    elementwise,
    gather,
    launch,
    masks,
    matmul,
    normalization,
    pooling,
    product,
    softmax,
    update,
)
from numbadrop.kernels.cuda.array import DeviceArray
from numbadrop.kernels.cuda.tile import Tile

try:  # numba-cuda comes without NVVM and NVRTC, which "numbadrop[cuda]" brings.
    driver.cuda.compile_ptx(lambda: None, (), cc=(9, 0))
except Exception as error:
    pytest.skip(f"no CUDA toolkit to compile with: {error}", allow_module_level=True)

CAPABILITY = (9, 0)


def check_parameters(ptx: str, layout: Struct) -> None:
    """Compare the numbers that a kernel expects with those that it is started with."""
    entry = re.search(r"\.entry [^(]*\(([^)]*)\)", ptx)
    assert entry is not None
    sizes = [int(bits) // 8 for bits in re.findall(r"\.param \.[a-z](\d+)", entry[1])]
    assert sizes == [calcsize(letter) for letter in layout.format]


class Compiled:
    """The PTX of each kernel that was started, by its name."""

    def __init__(self) -> None:
        self.ptx: dict[str, list[str]] = {}
        self._seen: set[Any] = set()

    def start(self, kernel: launch.Kernel, arguments: tuple[Any, ...]) -> None:
        signature = tuple(typeof(kernel.sample(one)) for one in arguments)
        if (kernel.function, signature) in self._seen:
            return
        self._seen.add((kernel.function, signature))
        text, _ = driver.cuda.compile_ptx(
            kernel.function, signature, cc=CAPABILITY, launch_bounds=kernel.bounds
        )
        check_parameters(text, launch._layout(signature))
        self.ptx.setdefault(kernel.function.__name__, []).append(text)

    def one(self, name: str) -> str:
        (text,) = self.ptx[name]
        return text


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiled]:
    """Stand in for a GPU on which memory is not there and kernels are compiled, not run."""
    found = Compiled()
    device = SimpleNamespace(compute_capability=CAPABILITY)
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: device)
    monkeypatch.setattr(
        launch.Kernel, "__call__", lambda kernel, grid, *arguments: found.start(kernel, arguments)
    )
    monkeypatch.setattr(driver, "_take", lambda shape, dtype: (1 << 20, None))
    monkeypatch.setattr(array, "send", lambda *to: None)
    monkeypatch.setattr(product, "_multiprocessors", lambda: 132)
    yield found
    tables = convolution._forward, convolution._backward, convolution._depth
    for cached in (*tables, product._prepared):
        cached.cache_clear()


def test_a_kernel_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By us: of Numba, which loads what it compiles, we want the machine code alone."""
    device = SimpleNamespace(compute_capability=CAPABILITY)
    monkeypatch.setattr(driver.cuda, "get_current_device", lambda: device)
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: device)
    monkeypatch.setattr(devices, "get_context", lambda: SimpleNamespace(device=device))
    monkeypatch.setattr(launch, "enter", lambda: None)
    loaded: list[tuple[str, bytes]] = []
    monkeypatch.setattr(launch, "_loaded", lambda *code: loaded.append(code))
    monkeypatch.setattr(launch, "load", lambda name: None)
    monkeypatch.setattr(launch, "save", lambda *kept: None)
    _, layout = launch.kernel(32)(lambda number: None)._compile((1.0,))
    ((entry, code),) = loaded
    assert "lambda" in entry
    assert code.startswith(b"\x7fELF")
    assert layout.format == "d"


def new(*shape: int, dtype: str = "float32") -> DeviceArray:
    return DeviceArray.empty(shape, dtype)


def half(size: int) -> IndexSet:
    return IndexSet(np.arange(0, size, 2), size)


def check_clean(ptx: str) -> None:
    """Refuse arrays in local memory: a register tile that is not in registers."""
    assert not re.search(r"\.local|\bst\.local|\bld\.local", ptx)


def main_loop(ptx: str) -> str:
    """Return the block of PTX with most multiply-adds."""
    blocks = re.split(r"^\$L\w+:", ptx, flags=re.MULTILINE)
    return max(blocks, key=lambda block: block.count("fma.rn"))


def run_products(dtype: str, kept: bool) -> None:
    n_in, n_out, batch = 2048, 1024, 1024
    rows, cols = (half(n_in), half(n_out)) if kept else (None, None)
    k_in, k_out = (n // 2 if kept else n for n in (n_in, n_out))
    x, g = new(batch, k_in, dtype=dtype), new(batch, k_out, dtype=dtype)
    w, b = new(n_in, n_out, dtype=dtype), new(n_out, dtype=dtype)
    matmul.gathered_linear(x, w, b, rows, cols, slope=0.0, scale=2.0, out=g)
    matmul.gathered_matmul_t(g, w, rows, cols, out=x)
    matmul.matmul_at(x, g, out=new(k_in, k_out, dtype=dtype))
    matmul.scatter_matmul(x, g, rows, cols, out=w, alpha=-1.0)


@pytest.mark.parametrize("kept", [False, True], ids=["dense", "gathered"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_main_loop_of_the_products(
    dtype: str, kept: bool, compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    tile = product.TILES[np.dtype(dtype)][0]
    monkeypatch.setattr(product, "_plan", lambda *_: (tile, 1 << 20))
    run_products(dtype, kept)
    assert len(compiled.ptx["product"]) == 4
    bits, lanes = dtype.removeprefix("float"), 128 // int(dtype.removeprefix("float"))
    sums = tile.thread_rows * tile.thread_cols
    for number, ptx in enumerate(compiled.ptx["product"]):
        check_clean(ptx)
        loop = main_loop(ptx)
        assert loop.count(f"fma.rn.f{bits}") == sums * tile.depth
        # Each step of the depth reads a row of A and one of B, in vectors and nothing else.
        vectors = (tile.thread_rows + tile.thread_cols) // lanes * tile.depth
        assert loop.count(f"ld.shared.v{lanes}.f{bits}") == vectors
        assert not re.search(r"ld\.shared\.f", loop)
        # Data passes by the registers. In vectors, what is neither gathered nor transposed.
        in_vectors = number >= 2, number >= 2 or (number == 0 and not kept)
        shares = [n * tile.depth // tile.threads for n in (tile.rows, tile.cols)]
        pairs = list(zip(shares, in_vectors, strict=True))
        assert loop.count("cp.async.cg") == sum(n // lanes for n, vector in pairs if vector)
        assert loop.count("cp.async.ca") == sum(n for n, vector in pairs if not vector)
        assert not re.search(r"st\.shared|ld\.global\S*\.f", loop)
        # And an index is read for the turn that follows: behind the copies of this one.
        gathered = kept and number < 2
        assert ("ld.global" in loop) == gathered
        if gathered:
            assert loop.rindex("cp.async.ca") < loop.index("ld.global")
        assert loop.index("cp.async.wait_group") < loop.index("bar.sync") < loop.index("cp.async.c")


def test_a_small_tile_and_a_split(compiled: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    tile = product.TILES[np.dtype("float32")][-1]
    monkeypatch.setattr(product, "_plan", lambda *_: (tile, 16 * tile.depth))
    run_products("float32", kept=True)
    for name in ("product", "add_partial_products"):
        for ptx in compiled.ptx[name]:
            check_clean(ptx)


def forget_the_products() -> None:
    """Device functions are compiled once, for the capability that was asked for first."""
    product.product_kernel.cache_clear()
    gather.loader.cache_clear()


def test_a_gpu_that_copies_nothing_by_itself(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "CAPABILITY", (7, 5))
    forget_the_products()
    compiled = request.getfixturevalue("compiled")
    try:
        run_products("float32", kept=True)
    finally:
        forget_the_products()
    for ptx in compiled.ptx["product"]:
        check_clean(ptx)
        assert "cp.async" not in ptx
        assert "st.shared" in ptx


@pytest.mark.parametrize("dtype", list(product.TILES), ids=str)
def test_threads_share_every_tile(dtype: np.dtype[Any]) -> None:
    for tile in product.TILES[dtype]:
        for outer, way in itertools.product(
            (tile.rows, tile.cols), [(True,), (False,), (False, True)]
        ):
            gather.loader(gather.Layout(*way), dtype, outer, tile.depth, tile.threads)


def test_a_local_array_is_seen(compiled: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    # Sums of this many for each thread are not unrolled, and their index is no constant.
    tile = Tile(256, 256, 4, thread_rows=32, thread_cols=32, warp_rows=4, warp_cols=8)
    monkeypatch.setattr(product, "_plan", lambda *_: (tile, 1 << 20))
    x = new(256, 256)
    matmul.matmul_at(x, x, out=new(256, 256))
    with pytest.raises(AssertionError):
        check_clean(compiled.one("product"))


@pytest.mark.parametrize("channels", [64, 3], ids=["vectors", "three"])
def test_convolutions(channels: int, compiled: Compiled) -> None:
    axes = check_geometry(3, 1, 1, 1)
    x, g, w = new(32, 16, 16, channels), new(32, 16, 16, 32), new(3, 3, channels, 64)
    outs = half(64)
    convolution.gathered_conv2d(x, w, None, outs, axes=axes, bias=None, slope=0.0, scale=1.0, out=g)
    convolution.gathered_conv2d_t(g, w, None, outs, axes=axes, out=x)
    convolution.conv2d_at(x, g, axes=axes, out=new(3, 3, channels, 32))
    for ptx in compiled.ptx["product"]:
        check_clean(ptx)
    # A pixel's channels are copied in vectors, where they are not transposed.
    assert ("cp.async.ca" in compiled.ptx["product"][-1]) == (channels % 4 != 0)


def test_the_other_kernels_are_in_registers_and_in_the_dtype_of_the_arrays(
    compiled: Compiled,
) -> None:
    x, y, cols = new(1000, 96), new(1000, 96), half(96)
    elementwise.rectifier_gradient(x, y, slope=0.0, scale=2.0)
    elementwise.take_columns(x, cols, 2.0)
    window, images, small = Window.of(2), new(8, 6, 6, 32), new(8, 3, 3, 32)
    pooling.max_pool2d_gradient(small, images, pooling.max_pool2d(images, window), window)
    pooling.avg_pool2d_gradient(pooling.avg_pool2d(images, window), images.shape, window)
    for rule, slots in (
        (rules.SGDRule(0.1, 0.0), 0),
        (rules.NAGRule(0.9, 0.1, 1.9), 1),
        (rules.AdamRule(0.9, 0.1, 0.99, 0.01, 0.1, 1.0, 1e-8, 0.0, 1.0), 2),
    ):
        w = new(96, 50)
        one = Update(rule, w, new(slots, 96, 50), new(48, 50), cols, None)
        update.update_blocks([one] * 3)
    for texts in compiled.ptx.values():
        for ptx in texts:
            check_clean(ptx)
            assert not re.search(r"(add|mul|fma|div|sqrt)\.\S*f64", ptx)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_masks(dtype: str, compiled: Compiled) -> None:
    masks.dropout_mask((1000, 99), np.dtype(dtype), 2.0, 1 << 31, 3, 4)
    ptx = compiled.one("mask")
    check_clean(ptx)
    # All that is drawn is there to be seen: two products a round, in registers, without a call.
    assert ptx.count("mul.hi.u64") == 20
    assert "call" not in ptx
    assert dtype == "float64" or "f64" not in ptx


def test_those_that_sum_in_float64(compiled: Compiled) -> None:
    x, units = new(1000, 96), new(96)
    moments = normalization.batch_moments(x)
    normalization.batch_norm(x, *moments, units, units, eps=0.1)
    normalization.batch_norm_gradient(x, x, *moments, units, eps=0.1, training=True)
    running = units, new(96)
    normalization.track_moments(*running, *moments, half(192), unbiased=1.1, momentum=0.1)
    softmax.cross_entropy(x, new(1000, dtype="int64"))
    softmax.cross_entropy_gradient(x, new(1000, dtype="int64"), 1.0)
    for texts in compiled.ptx.values():
        for ptx in texts:
            check_clean(ptx)
    assert any("add.f64" in ptx for ptx in compiled.ptx["sums"])


@pytest.mark.parametrize("dtype", ["bool", "int8", "int32", "uint8", "uint16", "float16"])
def test_numpy_code_of_other_numbers(compiled: Compiled, dtype: str) -> None:
    x = new(3, 4, dtype=dtype)
    x.copy()
    x.transpose(1, 0)
    x.astype(np.int32)
    x.astype(np.float32)
    assert (x + x).dtype == dtype
    x[...] = 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numpy_code(compiled: Compiled, dtype: str) -> None:
    x, row = new(3, 2, 4, dtype=dtype), new(4, dtype=dtype)
    units = IndexSet([0, 3], 4)
    for function in elements.FUNCTIONS:
        function(*(x, row)[: function.nin])
        function(*(x, 2.0)[: function.nin])
    np.where(x > 0, x, x * 0.1)
    np.where(x.transpose(2, 0, 1) < 0, 1, x.reshape(4, 3, 2))
    x *= x > 0
    x[..., units] = x[..., units].sum(axis=0)
    x[np.ix_([0, 2], [1], [0, 3])] = 1.0
    texts = compiled.ptx["run"]
    # A double in a kernel of floats would run at a fraction of the speed.
    if dtype == "float32":
        assert not [text for text in texts if ".f64" in text]
