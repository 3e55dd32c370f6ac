"""The three products of a layer, fully connected or a convolution, here and by others.

Operands that are dense are masked already, as the layer before has done so; what a dense product
makes is masked in NumPy's alone. An extracted submatrix comes for nothing, and the gradient of its
weights is not scattered.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from numbadrop import kernels
from numbadrop.bench.clock import Run
from numbadrop.bench.contest import (
    DENSE,
    EXTRACTED,
    INDEXED,
    OURS,
    OURS_DENSE,
    Array,
    Contest,
    Contestant,
    relative_error,
)
from numbadrop.index_set import IndexSet
from numbadrop.kernels import reference

__all__ = ["PRODUCTS", "convolutions", "matmuls"]

PRODUCTS = ("forward", "input gradient", "weight gradient")
CACHE_LINE = 64

Ways = dict[str, tuple[Run, Callable[[], Array]]]
"""What is timed, and what finds its result afterwards."""


def _sets(sizes: tuple[int, int], keep: float) -> tuple[IndexSet, IndexSet, np.random.Generator]:
    rng = np.random.default_rng(0)
    ins, outs = (kernels.sample_units(IndexSet.all(n), max(1, round(keep * n)), rng) for n in sizes)
    return ins, outs, rng


def _placed(a: Array, units: IndexSet) -> Array:
    """Return `a`, (..., len(units)), among zeros for the other units."""
    wide = np.zeros((*a.shape[:-1], units.size), a.dtype)
    wide[..., units.indices] = a
    return wide


def _contest(
    title: str, keep: float, ways: Ways, expected: Array, flops: float, traffic: float
) -> Contest:  # fmt: skip

    def error(run: Run, found: Callable[[], Array]) -> float:
        run()
        return relative_error(found(), expected)

    contestants = {
        name: Contestant(run, partial(error, run, found)) for name, (run, found) in ways.items()
    }
    return Contest(title, keep, contestants, flops, traffic)


def _traffic(w: Array, ins: IndexSet, outs: IndexSet) -> int:
    """Return the bytes of the cache lines of `w`, (..., in, out), that hold a kept weight."""
    lines = np.unique(outs.indices * w.itemsize // CACHE_LINE)
    return int(np.prod(w.shape[:-2])) * len(ins) * len(lines) * CACHE_LINE


def matmuls(batch: int, sizes: tuple[int, int], keep: float, torch: Any = None) -> list[Contest]:
    """Return the contests of the products with weights of `sizes`, inputs and outputs.

    Parameters
    ----------
    batch : int
    sizes : pair of int
    keep : float
        Fraction of inputs and outputs that is kept, in (0, 1].
    torch : module, optional
        PyTorch.
    """
    ins, outs, rng = _sets(sizes, keep)
    block = np.ix_(ins.indices, outs.indices)
    w = rng.standard_normal(sizes, np.float32)
    x, g = (rng.standard_normal((batch, len(units)), np.float32) for units in (ins, outs))
    few = np.ascontiguousarray(w[block])
    all_x, all_g = _placed(x, ins), _placed(g, outs)
    mask_x, mask_g = (_placed(np.ones(len(units), np.float32), units) for units in (ins, outs))
    y, dx, dw = np.empty_like(g), np.empty_like(x), np.empty_like(few)
    all_y, all_dx, all_dw = np.empty_like(all_g), np.empty_like(all_x), np.empty_like(w)
    # Each adds to weights of its own; a result is looked at after one run.
    ours, dense, indexed = (np.zeros_like(w) for _ in range(3))

    def masked(a: Array, b: Array, mask: Array, out: Array) -> None:
        np.matmul(a, b, out=out)
        np.multiply(out, mask, out=out)

    def add_dense() -> None:
        np.matmul(all_x.T, all_g, out=all_dw)
        np.add(dense, all_dw, out=dense)

    def add_indexed() -> None:
        indexed[block] += x.T @ g

    forward: Ways = {
        OURS: (lambda: kernels.gathered_matmul(x, w, ins, outs, out=y), lambda: y),
        OURS_DENSE: (
            lambda: kernels.gathered_matmul(all_x, w, out=all_y), lambda: all_y[:, outs.indices],
        ),
        DENSE: (lambda: masked(all_x, w, mask_g, all_y), lambda: all_y[:, outs.indices]),
        INDEXED: (lambda: np.matmul(x, w[block], out=y), lambda: y),
        EXTRACTED: (lambda: np.matmul(x, few, out=y), lambda: y),
    }  # fmt: skip
    backward: Ways = {
        OURS: (lambda: kernels.gathered_matmul_t(g, w, ins, outs, out=dx), lambda: dx),
        OURS_DENSE: (
            lambda: kernels.gathered_matmul_t(all_g, w, out=all_dx), lambda: all_dx[:, ins.indices],
        ),
        DENSE: (lambda: masked(all_g, w.T, mask_x, all_dx), lambda: all_dx[:, ins.indices]),
        INDEXED: (lambda: np.matmul(g, w[block].T, out=dx), lambda: dx),
        EXTRACTED: (lambda: np.matmul(g, few.T, out=dx), lambda: dx),
    }  # fmt: skip
    weights: Ways = {
        OURS: (lambda: kernels.scatter_matmul(x, g, ins, outs, out=ours), lambda: ours[block]),
        OURS_DENSE: (lambda: kernels.matmul_at(all_x, all_g, out=all_dw), lambda: all_dw[block]),
        DENSE: (add_dense, lambda: dense[block]),
        INDEXED: (add_indexed, lambda: indexed[block]),
        EXTRACTED: (lambda: np.matmul(x.T, g, out=dw), lambda: dw),
    }
    if torch is not None:
        tx, tg, tw, ty, tdx, tdw = map(torch.from_numpy, (x, g, few, y, dx, dw))
        name = "PyTorch, extracted before"
        forward[name] = lambda: torch.mm(tx, tw, out=ty), lambda: y
        backward[name] = lambda: torch.mm(tg, tw.T, out=tdx), lambda: dx
        weights[name] = lambda: torch.mm(tx.T, tg, out=tdw), lambda: dw
    x64, g64, w64 = (a.astype(float) for a in (x, g, few))
    results = (x64 @ w64, g64 @ w64.T, x64.T @ g64)
    flops, moved = 2.0 * batch * few.size, x.nbytes + g.nbytes
    lines = _traffic(w, ins, outs)
    return [
        # Weights that are added to are read and written.
        _contest(
            f"{name}, {batch} x {sizes[0]} x {sizes[1]}", keep, ways, expected, flops,
            moved + lines * (2 if ways is weights else 1),
        )
        for name, ways, expected in zip(
            PRODUCTS, (forward, backward, weights), results, strict=True
        )
    ]  # fmt: skip


def convolutions(
    batch: int, channels: tuple[int, int], size: int, keep: float, torch: Any = None
) -> list[Contest]:
    """Return the contests of 3 x 3 convolutions that leave the size of images as it is.

    Parameters
    ----------
    batch : int
    channels : pair of int
        Of inputs and outputs.
    size : int
        Side of an image.
    keep, torch
        As for `matmuls`.
    """
    ins, outs, rng = _sets(channels, keep)
    block = np.s_[:, :, ins.indices[:, None], outs.indices]
    w = rng.standard_normal((3, 3, *channels), np.float32)
    x, g = (
        rng.standard_normal((batch, size, size, len(units)), np.float32) for units in (ins, outs)
    )
    few = np.ascontiguousarray(w[block])
    all_x, all_g = _placed(x, ins), _placed(g, outs)
    y, dx, dw = np.empty_like(g), np.empty_like(x), np.zeros_like(w)
    all_y, all_dx, all_dw = np.empty_like(all_g), np.empty_like(all_x), np.empty_like(w)
    image: dict[str, Any] = {"input_size": (size, size), "padding": 1}
    kernel: dict[str, Any] = {"kernel_size": (3, 3), "padding": 1}

    forward: Ways = {
        OURS: (lambda: kernels.gathered_conv2d(x, w, ins, outs, padding=1, out=y), lambda: y),
        OURS_DENSE: (
            lambda: kernels.gathered_conv2d(all_x, w, padding=1, out=all_y),
            lambda: all_y[..., outs.indices],
        ),
    }
    backward: Ways = {
        OURS: (lambda: kernels.gathered_conv2d_t(g, w, ins, outs, out=dx, **image), lambda: dx),
        OURS_DENSE: (
            lambda: kernels.gathered_conv2d_t(all_g, w, out=all_dx, **image),
            lambda: all_dx[..., ins.indices],
        ),
    }
    weights: Ways = {
        OURS: (
            lambda: kernels.scatter_conv2d(x, g, ins, outs, padding=1, out=dw), lambda: dw[block],
        ),
        OURS_DENSE: (
            lambda: kernels.conv2d_at(all_x, all_g, out=all_dw, **kernel), lambda: all_dw[block],
        ),
    }  # fmt: skip
    if torch is not None:
        for label, arrays, finds in (
            ("extracted before", (x, g, few), (lambda a: a,) * 3),
            (
                "all units", (all_x, all_g, w),
                (lambda a: a[..., outs.indices], lambda a: a[..., ins.indices], lambda a: a[block]),
            ),
        ):  # fmt: skip
            for layout in (torch.contiguous_format, torch.channels_last):
                name = f"PyTorch, {label} [{layout}]"
                made = _torch_convolutions(torch, layout, *arrays)
                for ways, run, find in zip((forward, backward, weights), made, finds, strict=True):
                    ways[name] = _kept(run, find)
    x64, g64, w64 = (a.astype(float) for a in (x, g, few))
    results = (
        reference.gathered_conv2d(x64, w64, padding=1),
        reference.gathered_conv2d_t(g64, w64, **image),
        reference.conv2d_at(x64, g64, **kernel),
    )
    flops, moved = 2.0 * y.size * few[..., 0].size, x.nbytes + g.nbytes
    lines = _traffic(w, ins, outs)
    return [
        _contest(
            f"{name}, 3 x 3 x {channels[0]} x {channels[1]}",
            keep, ways, expected, flops,
            moved + lines * (2 if ways is weights else 1),
        )
        for name, ways, expected in zip(
            PRODUCTS, (forward, backward, weights), results, strict=True
        )
    ]  # fmt: skip


def _kept(function: Callable[[], Array], find: Callable[[Array], Array]) -> tuple[Run, Any]:
    """Return a way whose result is a part of what a function returns."""
    made: list[Array] = []

    def run() -> None:
        made[:] = [function()]

    return run, lambda: find(made[0])


def _torch_convolutions(
    torch: Any, layout: Any, x: Array, g: Array, w: Array
) -> list[Callable[[], Array]]:
    """Return PyTorch's three products, whose results are in our layout."""
    image, gradient, weights = (
        torch.from_numpy(a).permute(axes).contiguous(memory_format=layout)
        for a, axes in ((x, (0, 3, 1, 2)), (g, (0, 3, 1, 2)), (w, (3, 2, 0, 1)))
    )

    def forward() -> Array:
        with torch.no_grad():
            made = torch.nn.functional.conv2d(image, weights, padding=1)
        return np.asarray(made.permute(0, 2, 3, 1))

    def backward(position: int, axes: tuple[int, ...]) -> Array:
        wanted = [position == 0, position == 1, False]
        made = torch.ops.aten.convolution_backward(
            gradient, image, weights, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, wanted
        )
        return np.asarray(made[position].permute(axes))

    return [forward, partial(backward, 0, (0, 2, 3, 1)), partial(backward, 1, (2, 3, 1, 0))]
