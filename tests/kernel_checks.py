"""What the tests of kernels share.

Arrays laid out in memory in every way, index sets of every kind, and products that are compared
with `numbadrop.kernels.reference` in a wider type, within the bound that the theory of rounding
gives (Higham 2002, section 3.1) and no other. Fresh processes import this module too, so that it
needs NumPy and numbadrop alone.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import mmap
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from numpy.typing import NDArray

import numbadrop
from numbadrop import kernels
from numbadrop.index_set import IndexSet
from numbadrop.kernels import convolution, reference, winograd
from numbadrop.kernels.geometry import Taps

Array = NDArray[Any]

PRODUCTS = ("gathered_matmul", "gathered_matmul_t", "matmul_at", "scatter_matmul")
DTYPES = (np.float32, np.float64)
LAYOUTS = ("C", "F", "offset", "padded", "padded F", "reversed", "spread", "unaligned")
SETS = ("none", "all", "one", "run", "sparse", "half", "most")
WIDE = np.longdouble


def laid_out(values: Array, layout: str, fill: float = np.nan) -> tuple[Array, Array]:
    """Return a copy of a matrix with a layout in memory, and all the memory that it lies in.

    Every other element of that memory holds `fill`.
    """
    rows, cols = values.shape
    if layout == "unaligned":
        memory = np.zeros(values.nbytes + 1, np.uint8)
        array = memory[1:].view(values.dtype).reshape(rows, cols)
    else:
        shape, view = {
            "C": ((rows, cols), np.s_[:, :]),
            "F": ((cols, rows), np.s_[:, :]),
            "offset": ((1, rows * cols + 1), np.s_[:, 1:]),
            "padded": ((rows + 2, cols + 5), np.s_[1:-1, 2:-3]),
            "padded F": ((cols + 2, rows + 5), np.s_[1:-1, 2:-3]),
            "reversed": ((rows, cols), np.s_[::-1, ::-1]),
            "spread": ((3 * rows, 2 * cols), np.s_[::3, 1::2]),
        }[layout]
        memory = np.full(shape, fill, values.dtype)
        array = memory[view]
        if layout in ("F", "padded F"):
            array = array.T
        array = array.reshape(rows, cols) if layout == "offset" else array
    array[...] = values
    return array, memory


def in_layout(values: Array, layout: str) -> Array:
    """Return a copy of images with a layout in memory; NaN is what lies between their elements."""
    if layout == "channels first":
        return values.transpose(0, 3, 1, 2).copy().transpose(0, 2, 3, 1)
    if layout == "reversed":
        return values[::-1, ::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1, ::-1]
    if layout == "spread":
        memory = np.full([2 * n for n in values.shape], np.nan, values.dtype)
        memory[::2, 1::2, ::2, 1::2] = values
        return memory[::2, 1::2, ::2, 1::2]
    if layout == "unaligned":
        memory = np.zeros(values.nbytes + 1, np.uint8)
        memory[1:] = np.frombuffer(values.tobytes(), np.uint8)
        return memory[1:].view(values.dtype).reshape(values.shape)
    copy = values.copy()
    copy.flags.writeable = layout != "read-only"
    return copy


def make_set(kind: str, size: int, rng: np.random.Generator) -> IndexSet | None:
    """Return an index set on an axis of `size` units; an empty axis has none."""
    if kind == "none" or size == 0:
        return None
    if kind == "all":
        return IndexSet.all(size)
    if kind == "run":
        start, stop = sorted(rng.choice(size + 1, 2, replace=False))
        return IndexSet(np.arange(start, stop), size)
    kept = {"one": 1, "sparse": size // 9, "half": size // 2, "most": size - size // 9}[kind]
    return kernels.sample_units(IndexSet.all(size), max(1, kept), rng)


def count(units: IndexSet | None, size: int) -> int:
    return size if units is None else len(units)


def block(shape: tuple[int, int], rows: IndexSet | None, cols: IndexSet | None) -> Any:
    return np.ix_(
        np.arange(shape[0]) if rows is None else rows.indices,
        np.arange(shape[1]) if cols is None else cols.indices,
    )


def gamma(depth: int, dtype: Any) -> Any:
    """Return the greatest relative error of a sum of `depth` products, of the sum of magnitudes."""
    unit = WIDE(np.finfo(dtype).eps) / 2
    return depth * unit / (1 - depth * unit) + depth * WIDE(np.finfo(WIDE).eps)


def assert_product(
    name: str,
    left: Array,
    right: Array,
    rows: IndexSet | None = None,
    cols: IndexSet | None = None,
    *,
    out: Array | None = None,
    alpha: float = 1.0,
) -> Array:
    """Check one product of any operands against the reference; return the result.

    `left` and `right` are the first two arguments. A scatter needs `out`, which it adds to.
    """
    sets = {} if name == "matmul_at" else {"rows": rows, "cols": cols}
    wide = left.astype(WIDE), right.astype(WIDE)
    size = abs(wide[0]), abs(wide[1])
    oracle = getattr(reference, name)
    if name == "scatter_matmul":
        assert out is not None
        before = out.copy()
        depth = left.shape[0] + 2
        expected = oracle(*wide, **sets, out=out.astype(WIDE), alpha=WIDE(alpha))
        largest = oracle(*size, **sets, out=abs(out.astype(WIDE)), alpha=abs(WIDE(alpha)))
        result = kernels.scatter_matmul(left, right, **sets, out=out, alpha=alpha)
        touched = np.zeros(out.shape, np.bool_)
        touched[block(out.shape, rows, cols)] = True
        assert_same_bits(out[~touched], before[~touched])
        assert result is out
        result, expected, largest = result[touched], expected[touched], largest[touched]
    else:
        depth = left.shape[0 if name == "matmul_at" else 1]
        expected = oracle(*wide, **sets)
        largest = oracle(*size, **sets)
        result = getattr(kernels, name)(left, right, **sets, out=out)
        assert out is None or result is out
        assert result.shape == expected.shape
        assert result.dtype == left.dtype
    error = abs(result - expected)
    assert np.all(error <= gamma(depth, left.dtype) * largest), (
        f"error {np.max(error - gamma(depth, left.dtype) * largest)} over the bound"
    )
    return out if name == "scatter_matmul" and out is not None else result


def operands(
    name: str,
    dtype: Any,
    sizes: tuple[int, int, int],
    rows: IndexSet | None,
    cols: IndexSet | None,
    rng: np.random.Generator,
    whole_numbers: bool = False,
) -> tuple[Array, Array]:
    """Return the first two arguments of a product; weights that take no part are NaN."""
    batch, n_in, n_out = sizes

    def draw(*shape: int) -> Array:
        if whole_numbers:
            return rng.integers(-9, 10, shape).astype(dtype)
        return rng.standard_normal(shape).astype(dtype)

    x, g = draw(batch, count(rows, n_in)), draw(batch, count(cols, n_out))
    if name in ("matmul_at", "scatter_matmul"):
        return x, g
    w = np.full((n_in, n_out), np.nan, dtype)
    inside = block(w.shape, rows, cols)
    w[inside] = draw(*w[inside].shape)
    return (x if name == "gathered_matmul" else g), w


def assert_same_bits(one: Array, other: Array) -> None:
    """Check two arrays bit by bit: NaNs and signed zeros count."""
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    assert one.tobytes() == other.tobytes()


def canary(shape: tuple[int, ...], dtype: Any) -> Array:
    """Return elements in which every change is seen, by turns a number and a NaN.

    Arithmetic changes a number, but what a NaN is added to is lost; no two are the same bits.
    """
    words = {4: (np.uint32, 0x7FC00000), 8: (np.uint64, 0x7FF8000000000000)}
    word, nan = words[np.dtype(dtype).itemsize]
    places = np.arange(1, 1 + int(np.prod(shape)))
    elements = places.astype(dtype)
    payloads = (places.astype(word) & word(0xFFFFF)) | word(nan)
    elements[::2] = payloads.view(dtype)[::2]
    return elements.reshape(shape)


def guarded(values: Array, at_end: bool, order: Any = "C") -> Array:
    """Return a copy of an array that touches a page which may not be read or written.

    That page lies right behind the array's last byte, or right before its first.
    """
    page = mmap.PAGESIZE
    size = -(-max(values.nbytes, 1) // page) * page
    region = mmap.mmap(-1, size + 2 * page)
    if hasattr(os, "fork"):  # elsewhere memory is protected by other means
        address = ctypes.addressof(ctypes.c_char.from_buffer(region))
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        for guard in (address, address + page + size):
            if protect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0):
                raise OSError(ctypes.get_errno(), "mprotect")
    start = page + (size - values.nbytes if at_end else 0)
    array: Array = np.ndarray(values.shape, values.dtype, region, start, order=order)
    array[...] = values
    return array


# Batch, inputs, outputs: around the widths of registers and tiles, and several blocks deep.
SHAPES = [
    (1, 1, 1), (2, 3, 5), (8, 16, 16), (9, 1, 15), (1, 17, 47), (6, 32, 33), (17, 47, 33),
    (64, 65, 50), (3, 515, 40), (3, 40, 515), (516, 20, 30), (130, 70, 90), (20, 60, 10),
    (20, 7, 60), (70, 600, 3), (9, 2, 530),
]  # fmt: skip


def check_many(
    shapes: Any = SHAPES,
    layouts: Any = ("C", "F", "spread"),
    guard: Any = guarded,
    sets: Any = SETS,
) -> str:
    """Check products of every kind on guarded operands; return a digest of the results."""
    digest = hashlib.sha256()
    kinds = itertools.cycle(itertools.product(sets, sets))
    for number, (dtype, shape, at_end, layout) in enumerate(
        itertools.product(DTYPES, shapes, (True, False), layouts)
    ):
        rng = np.random.default_rng(number)

        def place(array: Array, at_end: bool = at_end, layout: str = layout) -> Array:
            if layout != "spread" or array.size == 0:
                return guard(array, at_end, "C" if layout == "spread" else layout)
            rows, cols = array.shape
            spread = guard(np.zeros((2 * rows - 1, 2 * cols - 1), array.dtype), at_end)[::2, ::2]
            spread[...] = array
            return spread

        for name in PRODUCTS:
            pair = ("none", "none") if name == "matmul_at" else next(kinds)
            # The memory of the sets is guarded as well; only the class itself can arrange that.
            rows, cols = (
                kept and IndexSet._trusted(guard(kept.indices, at_end), kept.size)
                for kept in map(make_set, pair, shape[1:], (rng, rng))
            )
            left, right = (place(a) for a in operands(name, dtype, shape, rows, cols, rng))
            batch, n_in, n_out = shape
            wanted = {
                "gathered_matmul": (batch, count(cols, n_out)),
                "gathered_matmul_t": (batch, count(rows, n_in)),
            }.get(name, (n_in, n_out))
            out = place(rng.standard_normal(wanted).astype(dtype))
            result = assert_product(name, left, right, rows, cols, out=out, alpha=-0.5)
            digest.update(result.tobytes())
    return digest.hexdigest()


# --------------------------------------------------------------------------- convolutions

CONVOLUTIONS = ("gathered_conv2d", "gathered_conv2d_t", "conv2d_at", "scatter_conv2d")


class Convolution(NamedTuple):
    """The sizes of a convolution; pairs are height and width."""

    batch: int
    size: tuple[int, int]
    channels: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def geometry(self) -> dict[str, Any]:
        return dict(stride=self.stride, padding=self.padding, dilation=self.dilation)

    @property
    def out_size(self) -> tuple[int, int]:
        return kernels.conv2d_size(self.size, self.kernel, **self.geometry)

    def shapes(self, ins: IndexSet | None, outs: IndexSet | None) -> dict[str, tuple[int, ...]]:
        """Return the shapes of images, weights and gradient, and of the result of each kernel."""
        n_in, n_out = self.channels
        x = (self.batch, *self.size, count(ins, n_in))
        g = (self.batch, *self.out_size, count(outs, n_out))
        w = (*self.kernel, n_in, n_out)
        return dict(
            x=x, w=w, g=g, gathered_conv2d=g, gathered_conv2d_t=x,
            conv2d_at=(*self.kernel, x[3], g[3]), scatter_conv2d=w,
        )  # fmt: skip


def convolution_operands(
    name: str,
    dtype: Any,
    of: Convolution,
    ins: IndexSet | None,
    outs: IndexSet | None,
    rng: np.random.Generator,
    whole_numbers: bool = False,
) -> tuple[Array, Array]:
    """Return the first two arguments of a convolution; weights that take no part are NaN."""
    shapes = of.shapes(ins, outs)

    def draw(*shape: int) -> Array:
        if whole_numbers:
            return rng.integers(-9, 10, shape).astype(dtype)
        return rng.standard_normal(shape).astype(dtype)

    if name in ("conv2d_at", "scatter_conv2d"):
        return draw(*shapes["x"]), draw(*shapes["g"])
    w = np.full(shapes["w"], np.nan, dtype)
    inside = np.s_[:, :, *block(of.channels, ins, outs)]
    w[inside] = draw(*w[inside].shape)
    return draw(*shapes["x" if name == "gathered_conv2d" else "g"]), w


def assert_convolution(
    name: str,
    of: Convolution,
    left: Array,
    right: Array,
    ins: IndexSet | None = None,
    outs: IndexSet | None = None,
    *,
    out: Array | None = None,
    alpha: float = 1.0,
    bias: Array | None = None,
    slope: float = 1.0,
    scale: float = 1.0,
    wide: Any = WIDE,
    exact: bool = False,
) -> Array:
    """Check one convolution against the reference in the type `wide`; return the result.

    `exact`: whole numbers, which every order of the sums adds up to the same.
    """
    sets = {} if name == "conv2d_at" else {"in_channels": ins, "out_channels": outs}
    options = of.geometry | sets
    more: dict[str, Any] = {}
    # Of the products of a sum; bias, slope and scale, or factor and addition, round once each.
    depth = of.batch * of.out_size[0] * of.out_size[1]
    touched: Any = np.s_[...]
    if name == "gathered_conv2d":
        depth = of.kernel[0] * of.kernel[1] * left.shape[3] + 3
        options |= dict(slope=slope, scale=scale)
        more = {} if bias is None else {"bias": bias}
    elif name == "gathered_conv2d_t":
        depth = of.kernel[0] * of.kernel[1] * left.shape[3]
        options["input_size"] = of.size
    elif name == "conv2d_at":
        options["kernel_size"] = of.kernel
    else:
        assert out is not None
        depth += 2
        options["alpha"] = alpha
        more = {"out": out.copy()}
        touched = np.s_[:, :, *block(of.channels, ins, outs)]
    operands = [a.astype(wide) for a in (left, right)]
    more = {key: a.astype(wide) for key, a in more.items()}
    oracle = getattr(reference, name)
    expected = oracle(*operands, **options, **{key: a.copy() for key, a in more.items()})
    call = options | ({} if bias is None else {"bias": bias})
    before = None if out is None else out.copy()
    result = getattr(kernels, name)(left, right, out=out, **call)
    assert out is None or result is out
    assert result.shape == expected.shape == of.shapes(ins, outs)[name]
    assert result.dtype == left.dtype
    if name == "scatter_conv2d":
        assert before is not None
        untouched = np.ones(result.shape, np.bool_)
        untouched[touched] = False
        assert_same_bits(result[untouched], before[untouched])
    if exact:
        np.testing.assert_array_equal(result[touched], expected[touched])
        return result
    if name == "gathered_conv2d":
        options["slope"] = 1.0
    if name == "scatter_conv2d":
        options["alpha"] = abs(alpha)
    largest = oracle(*map(abs, operands), **options, **{key: abs(a) for key, a in more.items()})
    error = abs(result - expected)[touched]
    bound = gamma(depth, left.dtype) * largest[touched] * max(1, slope)
    assert np.all(error <= bound), f"error {np.max(error - bound)} over the bound"
    return result


# Sizes around the widths of registers and tiles; strided, padded and not; one with many lines.
GEOMETRIES = [
    Convolution(1, (1, 1), (1, 1), (1, 1)),
    Convolution(2, (5, 7), (3, 17), (3, 3), padding=(1, 1)),
    Convolution(1, (6, 5), (17, 1), (2, 3)),
    Convolution(3, (7, 7), (16, 33), (3, 3), (2, 2), (1, 1)),
    Convolution(2, (4, 9), (33, 50), (1, 4), (1, 3), (0, 2), (1, 2)),
    Convolution(1, (3, 3), (5, 20), (3, 2), (3, 1), (4, 5), (2, 2)),
    # Patches that lie beside the image: before it and, in the gradient, behind it.
    Convolution(2, (2, 2), (3, 17), (1, 1), (1, 10), (0, 4)),
    Convolution(2, (2, 2), (3, 17), (1, 1), (10, 1), (4, 0)),
    Convolution(2, (2, 2), (3, 17), (1, 2), (1, 2), (0, 3), (1, 7)),
    Convolution(2, (2, 2), (3, 17), (2, 1), (2, 1), (3, 0), (7, 1)),
    # Positions of whole cache lines.
    Convolution(2, (6, 5), (24, 32), (2, 3)),
    Convolution(9, (8, 8), (40, 31), (3, 3), padding=(1, 1)),
]


# Odd and even images, with no, some and much padding.
WINOGRAD_GEOMETRIES = [
    Convolution(1, (3, 3), (1, 1), (3, 3)),
    Convolution(2, (5, 8), (3, 17), (3, 3), padding=(1, 1)),
    Convolution(3, (8, 5), (33, 16), (3, 3), padding=(0, 2)),
    Convolution(2, (2, 3), (16, 70), (3, 3), padding=(4, 3)),
    Convolution(2, (7, 6), (17, 33), (7, 5), padding=(3, 2)),
    Convolution(1, (3, 10), (3, 17), (3, 7), padding=(2, 0)),
]


def check_convolutions(geometries: Any = GEOMETRIES, guard: Any = guarded) -> str:
    """Check convolutions of every kind on guarded operands; return a digest of the results."""
    digest = hashlib.sha256()
    kinds = itertools.cycle(itertools.product(SETS, SETS))
    for number, (dtype, of, at_end) in enumerate(
        itertools.product(DTYPES, geometries, (True, False))
    ):
        rng = np.random.default_rng(number)
        for name in CONVOLUTIONS:
            sets = ("none", "none") if name == "conv2d_at" else next(kinds)
            ins, outs = (
                kept and IndexSet._trusted(guard(kept.indices, at_end), kept.size)
                for kept in map(make_set, sets, of.channels, (rng, rng))
            )
            left, right = (
                guard(a, at_end) for a in convolution_operands(name, dtype, of, ins, outs, rng)
            )
            shape = of.shapes(ins, outs)[name]
            out = guard(rng.standard_normal(shape).astype(dtype), at_end)
            bias = rng.standard_normal(of.channels[1]).astype(dtype)
            bias = bias if outs is None else np.where(outs.mask(), bias, dtype(np.nan))
            options = dict(bias=guard(bias, at_end), slope=0.5, scale=1.25)
            options = options if name == "gathered_conv2d" else {}
            result = assert_convolution(
                name, of, left, right, ins, outs, out=out, alpha=-0.5, **options
            )
            digest.update(result.tobytes())
    return digest.hexdigest()


@contextmanager
def winograd_from(channels: int) -> Iterator[None]:
    """Use Winograd's convolution from so many channels on, wherever it exists.

    The gradient of weights is cut into stretches as short as they can be.
    """
    least = dict.fromkeys(winograd._CHANNELS, channels)

    def lines(batch: int, down: Taps, along: Taps) -> int:
        return batch * -(-down.number // 2)

    with mock.patch.multiple(winograd, _CHANNELS=least, _SQUARES=0, _GAIN=0, long_stretches=lines):
        yield


def check_winograd(guard: Any = guarded) -> str:
    """Check Winograd's convolutions on guarded whole numbers; return a digest of the results.

    The memory that they work in is guarded too, and begins as NaN.
    """
    digest = hashlib.sha256()

    def empty(shape: tuple[int, ...], like: Array) -> Array:
        return guard(np.full(shape, np.nan, like.dtype), True)

    with winograd_from(0), mock.patch.object(convolution, "empty", empty):
        for number, (dtype, of, at_end) in enumerate(
            itertools.product(DTYPES, WINOGRAD_GEOMETRIES, (True, False))
        ):
            rng = np.random.default_rng(number)
            for name, kind in itertools.product(CONVOLUTIONS, SETS):
                kinds = ("none", "none") if name == "conv2d_at" else (kind, rng.choice(SETS))
                ins, outs = (
                    kept and IndexSet._trusted(guard(kept.indices, at_end), kept.size)
                    for kept in map(make_set, kinds, of.channels, (rng, rng))
                )
                left, right = (
                    guard(a, at_end)
                    for a in convolution_operands(name, dtype, of, ins, outs, rng, True)
                )
                out = guard(np.ones(of.shapes(ins, outs)[name], dtype), at_end)
                options = {}
                if name == "gathered_conv2d":
                    bias = rng.integers(-9, 10, of.channels[1]).astype(dtype)
                    bias = bias if outs is None else np.where(outs.mask(), bias, dtype(np.nan))
                    options = dict(bias=guard(bias, at_end), slope=0.5, scale=1.25)
                result = assert_convolution(
                    name, of, left, right, ins, outs, out=out, wide=np.float64, exact=True,
                    **options,
                )  # fmt: skip
                digest.update(result.tobytes())
    return digest.hexdigest()


def copied(values: Array, at_end: bool, order: Any = "C") -> Array:
    """Return what `guarded` returns, without guards: for a process that must survive."""
    return np.array(values, order=order)


def python(
    *arguments: str, env: Mapping[str, str | None] | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a fresh Python that can import this module; a variable that is None is removed."""
    merged = dict(os.environ)
    # The package under test, wherever it was imported from.
    paths = [str(Path(__file__).parent), str(Path(numbadrop.__file__).parent.parent)]
    changes = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONFAULTHANDLER": "1", **(env or {})}
    for name, value in changes.items():
        merged.pop(name, None)
        if value is not None:
            merged[name] = value
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=Path(__file__).parent,  # a program's first place to import from
        env=merged,
        timeout=timeout,
        capture_output=True,
        text=True,
        check=False,
    )


def answer(*arguments: str, env: Mapping[str, str | None] | None = None, timeout: float = 120):
    """Return what a fresh Python printed; its failure is the test's."""
    done = python(*arguments, env=env, timeout=timeout)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


IS_X86 = "x86_64" in sysconfig.get_platform() or "amd64" in sysconfig.get_platform()
