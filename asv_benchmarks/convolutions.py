"""Compare the gathered convolutions, and a step of a convolutional net, with PyTorch's.

    pip install ".[bench]" torch
    python asv_benchmarks/convolutions.py
    python asv_benchmarks/convolutions.py --step

PyTorch convolves contiguous images and weights of the kept channels, which it gets for nothing,
both as NCHW and as channels_last; the faster of the two counts. Its weight gradient is not
scattered. Images that are results are new arrays in both, and all arrays of both begin on cache
lines, as large results of both do in a net. A ratio is its time over ours. Each cell
is checked against float64 before it is timed. Both use the same number of threads. The step's peer
is the same net with spatial dropout, which masks channels of each image.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from numbadrop import kernels
from numbadrop.bench import Run, peak, quartiles
from numbadrop.index_set import IndexSet
from numbadrop.kernels import reference
from numbadrop.nn import Module, cross_entropy
from numbadrop.optim import SGD
from numbadrop.train.models import CONVOLUTIONAL

# in -> out channels, size of the image, kernel, padding
CELLS = (
    (64, 64, 32, 3, 1),
    (128, 128, 16, 3, 1),
    (256, 256, 8, 3, 1),
    (3, 64, 32, 3, 1),
    (32, 64, 14, 5, 2),
    (256, 256, 16, 1, 0),
)
KEEP = (0.5, 0.8, 1.0)
BATCH = 64
CACHE_LINE = 64
TURN = 0.05
"""Seconds that are counted at a time."""
TARGETS = {"forward": 0.95, "input gradient": 0.9, "weight gradient": 0.9}
IMAGE, CLASSES, STEP_BATCH, DROPOUT = (32, 32, 3), 10, 128, 0.5


def kept(channels: int, keep: float, rng: np.random.Generator) -> IndexSet:
    """Draw channels; of an image's own, none is dropped."""
    number = channels if channels <= 3 else round(keep * channels)
    return kernels.sample_units(IndexSet.all(channels), number, rng)


def on_cache_lines(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a copy that begins on a cache line, as PyTorch's do."""
    memory = np.empty(array.nbytes + CACHE_LINE, np.uint8)
    begin = -memory.ctypes.data % CACHE_LINE
    copy = memory[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def cell(
    n_in: int, n_out: int, size: int, kernel: int, padding: int, keep: float
) -> Iterator[tuple[str, float, dict[str, Run]]]:
    """Yield for each product its name, its FLOPs and the ways to compute it, checked."""
    rng = np.random.default_rng(0)
    ins, outs = kept(n_in, keep, rng), kept(n_out, keep, rng)
    w = on_cache_lines(rng.standard_normal((kernel, kernel, n_in, n_out), np.float32))
    extracted = np.ascontiguousarray(w[:, :, ins.indices[:, None], outs.indices])
    side = size + 2 * padding - kernel + 1
    x = on_cache_lines(rng.standard_normal((BATCH, size, size, len(ins)), np.float32))
    g = on_cache_lines(rng.standard_normal((BATCH, side, side, len(outs)), np.float32))
    scattered = on_cache_lines(np.zeros_like(w))
    sets = {"in_channels": ins, "out_channels": outs, "padding": padding}

    def peers(wanted: int) -> dict[str, Run]:
        """Return PyTorch's forward pass (0), or a gradient (1, 2), in both layouts."""
        runs: dict[str, Run] = {}
        for layout in (torch.contiguous_format, torch.channels_last):
            image, gradient, weights = (
                torch.from_numpy(a).permute(p).contiguous(memory_format=layout)
                for a, p in ((x, (0, 3, 1, 2)), (g, (0, 3, 1, 2)), (extracted, (3, 2, 0, 1)))
            )
            shared = [[1, 1], [padding, padding], [1, 1], False, [0, 0], 1]
            runs[f"PyTorch {layout}"] = (
                partial(torch.nn.functional.conv2d, image, weights, padding=padding)
                if wanted == 0
                else partial(
                    torch.ops.aten.convolution_backward,
                    gradient, image, weights, None, *shared, [wanted == 1, wanted == 2, False],
                )
            )  # fmt: skip
        return runs

    def double(name: str, *arrays: Any, **named: Any) -> Any:
        function = getattr(reference, name)
        return function(*(a.astype(float) for a in arrays), padding=padding, **named)

    def whole(result: Any) -> Any:
        return result

    products: tuple[tuple[str, Callable[[], Any], Callable[[Any], Any], Any], ...] = (
        (
            "forward",
            partial(kernels.gathered_conv2d, x, w, **sets),
            whole,
            double("gathered_conv2d", x, extracted),
        ),
        (
            "input gradient",
            partial(kernels.gathered_conv2d_t, g, w, input_size=(size, size), **sets),
            whole,
            double("gathered_conv2d_t", g, extracted, input_size=(size, size)),
        ),
        (
            "weight gradient",
            partial(kernels.scatter_conv2d, x, g, out=scattered, **sets),
            lambda result: result[:, :, ins.indices[:, None], outs.indices],
            double("conv2d_at", x, g, kernel_size=(kernel, kernel)),
        ),
    )
    for wanted, (name, ours, kept_of, expected) in enumerate(products):
        error = np.abs(kept_of(ours()) - expected).max() / np.abs(expected).max()
        if not error < 1e3 * np.finfo(np.float32).eps:
            raise ArithmeticError(f"{name}, {n_in} -> {n_out}, keep {keep}: relative error {error}")
        yield name, 2.0 * g.size * extracted[..., 0].size, {"ours": ours, **peers(wanted)}


def compare_products(rounds: int) -> None:
    """Print the grid, and the geometric mean for each product."""
    threads = kernels.get_num_threads()
    top = peak("float32", threads)
    results: dict[str, dict[tuple[Any, ...], tuple[float, float]]] = {name: {} for name in TARGETS}
    with torch.no_grad():
        for shape in CELLS:
            for keep in KEEP:
                for name, flops, runs in cell(*shape, keep):
                    times = {run: t[1] for run, t in quartiles(runs, rounds, TURN).items()}
                    ours = times.pop("ours")
                    results[name][shape, keep] = flops / ours, min(times.values()) / ours
    top = max(top, peak("float32", threads))
    print(f"batch {BATCH}, {threads} threads, register tile alone: {top / 1e9:.0f} GFLOP/s\n")
    for name, cells in results.items():
        print(f"### {name}: ratio (GFLOP/s)\n")
        print("| in -> out, image, kernel | " + " | ".join(f"keep {k:g}" for k in KEEP) + " |")
        print("| --- |" + " ---: |" * len(KEEP))
        for shape in CELLS:
            n_in, n_out, size, kernel, _ = shape
            row = " | ".join(
                f"{ratio:.2f} ({rate / 1e9:.0f})"
                for rate, ratio in (cells[shape, keep] for keep in KEEP)
            )
            print(f"| {n_in} -> {n_out}, {size} x {size}, {kernel} x {kernel} | {row} |")
        ratios = np.array([ratio for _, ratio in cells.values()])
        print(
            f"\ngeometric mean {np.exp(np.log(ratios).mean()):.2f}, smallest {ratios.min():.2f}, "
            f"{(ratios < TARGETS[name]).sum()} of {len(ratios)} below {TARGETS[name]:g}; best "
            f"share of the tile's speed {max(rate for rate, _ in cells.values()) / top:.0%}\n"
        )


def numbadrop_step(pattern: str, x: Any, labels: Any) -> Run:
    """Return a step of the net for CIFAR-10."""
    net: Module = CONVOLUTIONAL["deepcnet"].build(IMAGE, CLASSES, pattern, DROPOUT).seed(0)
    optimizer = SGD(net.parameters(), lr=1e-5, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad()
        cross_entropy(net(x), labels).backward()
        optimizer.step()

    return run


def torch_step(dropout: bool, layout: Any, compiled: bool, x: Any, labels: Any) -> Run:
    """Return the same step in PyTorch, with spatial dropout."""
    deepcnet = CONVOLUTIONAL["deepcnet"]
    shares = iter(deepcnet.dropped)
    layers: list[torch.nn.Module] = [torch.nn.BatchNorm2d(IMAGE[2], affine=False)]
    n, side = IMAGE[2], IMAGE[0]
    p = 0.0
    for step in deepcnet.notation.split("-"):
        if step.startswith("MP"):
            layers.append(torch.nn.MaxPool2d(2))
            side //= 2
            continue
        layers += [torch.nn.Dropout2d(p)] if dropout and p else []
        if step.endswith("N"):
            width = int(step[:-1])
            layers += [torch.nn.Flatten(), torch.nn.Linear(n * side**2, width)]
        else:
            width = int(step.split("C")[0])
            layers.append(torch.nn.Conv2d(n, width, 3, padding=1))
        layers.append(torch.nn.LeakyReLU(deepcnet.negative_slope, inplace=True))
        n, p = width, DROPOUT * next(shares)
    layers += [torch.nn.Dropout(p)] if dropout else []
    net: Any = torch.nn.Sequential(*layers, torch.nn.Linear(n, CLASSES)).to(memory_format=layout)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-5, momentum=0.9)
    images = torch.from_numpy(x.reshape(-1, *IMAGE)).permute(0, 3, 1, 2)
    images = images.contiguous(memory_format=layout)
    targets = torch.from_numpy(labels)
    if compiled:
        net = torch.compile(net)

    def run() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(images), targets).backward()
        optimizer.step()

    return run


def compare_steps(rounds: int, compiled: bool) -> None:
    """Print the medians of a step with each kind of dropout."""
    rng = np.random.default_rng(0)
    x = rng.random((STEP_BATCH, int(np.prod(IMAGE))), np.float32)
    labels = rng.integers(CLASSES, size=STEP_BATCH)
    runs = {
        f"numbadrop {pattern}": numbadrop_step(pattern, x, labels)
        for pattern in ("batchwise", "independent", "none")
    }
    for dropout in (True, False):
        kind = "dropout" if dropout else "none"
        for layout in (torch.contiguous_format, torch.channels_last):
            name = f"PyTorch {kind}, {str(layout).removeprefix('torch.')}"
            runs[name] = torch_step(dropout, layout, False, x, labels)
            if compiled:
                runs[f"{name}, compiled"] = torch_step(dropout, layout, True, x, labels)
    for run in runs.values():
        run()
    times = quartiles(runs, rounds, 0)
    base = times["numbadrop batchwise"][1]
    print(f"deepcnet, batch {STEP_BATCH}, {kernels.get_num_threads()} threads, {rounds} steps\n")
    print("| step | ms | quartiles | / batchwise |\n| --- | ---: | ---: | ---: |")
    for name, (low, middle, high) in times.items():
        print(
            f"| {name} | {1e3 * middle:.0f} | {1e3 * low:.0f}-{1e3 * high:.0f} "
            f"| {middle / base:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--step", action="store_true", help="a whole step of a net")
    parser.add_argument("--compiled", action="store_true", help="of PyTorch's steps, compiled too")
    parser.add_argument("--threads", type=int, default=kernels.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    kernels.set_num_threads(options.threads)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.step:
        compare_steps(options.rounds, options.compiled)
    else:
        compare_products(options.rounds)


if __name__ == "__main__":
    main()
