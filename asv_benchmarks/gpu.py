"""Check the kernels for a GPU against float64, and time them and whole training steps.

    pip install ".[cuda,bench,plot]" torch
    python asv_benchmarks/gpu.py --json gpu.json --plot gpu.png

Everything happens in one call of less than ten minutes, without a network. Times are medians, by
the events of the device, after a warm-up; the peers run in the same process on the same device, in
turns with ours. cuBLAS is called through PyTorch or CuPy, without TF32. Small products take as long
as their launch from Python, here and there; that counts.

    python asv_benchmarks/gpu.py --first-step

tells how long a new process takes for its first step.

    NUMBA_ENABLE_CUDASIM=1 python asv_benchmarks/gpu.py --quick

runs all of it on tiny sizes without a GPU. Its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from benchmarks.training import P_HIDDEN, P_INPUT, PATTERNS, dropout_net

from numbadrop import kernels
from numbadrop.index_set import IndexSet
from numbadrop.kernels import reference
from numbadrop.kernels.cuda.driver import SIMULATED, cuda
from numbadrop.nn import cross_entropy
from numbadrop.optim import NAG
from numbadrop.optim.rules import NAGRule, nag

Run = Callable[[], object]
TOLERANCE = 2e-5
"""Of float32, against the largest element: sums of a few thousand products."""


class Sizes(NamedTuple):
    """What is run."""

    check: tuple[int, int]
    """Batch and width."""
    widths: tuple[int, ...]
    product_batches: tuple[int, ...]
    step_batches: tuple[int, ...]
    rounds: int
    block: int
    """Calls between two events."""


FULL = Sizes((100, 800), (800, 2048, 4096), (100, 256, 1024), (100, 1000), rounds=11, block=20)
QUICK = Sizes((3, 10), (10, 14), (3,), (2,), rounds=1, block=1)


def seconds(run: Run, calls: int) -> float:
    """Return the time of a call, between events on the device."""
    if SIMULATED:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - start) / calls
    first, last = cuda.event(timing=True), cuda.event(timing=True)
    first.record()
    for _ in range(calls):
        run()
    last.record()
    last.synchronize()
    return 1e-3 * float(cuda.event_elapsed_time(first, last)) / calls


@cuda.jit
def sleep(milliseconds: int) -> None:
    """Keep the GPU from beginning with what comes behind."""
    for _ in range(milliseconds):
        cuda.nanosleep(1_000_000)


def gpu_seconds(run: Run, rounds: int) -> float:
    """Return the median time of a call on the GPU alone, which has all of its kernels at hand."""
    times = []
    for _ in range(rounds):
        if not SIMULATED:
            sleep[1, 1](20)
        times.append(seconds(run, 1))
    return statistics.median(times)


def medians(runs: Mapping[str, Run], sizes: Sizes) -> dict[str, float]:
    """Return the median time of each run; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        seconds(run, sizes.block)
    for _ in range(sizes.rounds):
        for name, run in runs.items():
            times[name].append(seconds(run, sizes.block))
    return {name: statistics.median(each) for name, each in times.items()}


# ----------------------------------------------------------------------- right, before fast


def half(rng: np.random.Generator, size: int) -> IndexSet:
    return IndexSet(np.sort(rng.choice(size, max(size // 2, 1), replace=False)), size)


def checks(sizes: Sizes) -> dict[str, tuple[Any, Any]]:
    """Return for each kernel what it gives, and what the reference gives in float64."""
    rng = np.random.default_rng(0)
    batch, n = sizes.check
    rows, cols = half(rng, n), half(rng, n + 3)

    def draw(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    x, g, w, b = draw(batch, len(rows)), draw(batch, len(cols)), draw(n, n + 3), draw(n + 3)
    labels = rng.integers(len(cols), size=batch)
    images, filters = draw(4, 6, 6, 12), draw(3, 3, 24, 10)
    ins, outs = half(rng, 24), half(rng, 10)
    outputs = draw(4, 6, 6, len(outs))
    value, slots = draw(n, n + 3), draw(1, n, n + 3)
    d, f = kernels.to_device, np.float64
    window = {"size": 2}
    pooled = reference.max_pool2d(images, 2)
    found = {
        "gathered_linear": (
            kernels.gathered_linear(d(x), d(w), d(b), rows, cols, slope=0.0, scale=2.0),
            reference.gathered_linear(f(x), f(w), f(b), rows, cols, slope=0.0, scale=2.0),
        ),
        "gathered_matmul_t": (
            kernels.gathered_matmul_t(d(g), d(w), rows, cols),
            reference.gathered_matmul_t(f(g), f(w), rows, cols),
        ),
        "matmul_at": (kernels.matmul_at(d(x), d(g)), reference.matmul_at(f(x), f(g))),
        "scatter_matmul": (
            kernels.scatter_matmul(d(x), d(g), rows, cols, out=d(w), alpha=0.1),
            reference.scatter_matmul(f(x), f(g), rows, cols, out=f(w), alpha=0.1),
        ),
        "gathered_conv2d": (
            kernels.gathered_conv2d(d(images), d(filters), ins, outs, padding=1),
            reference.gathered_conv2d(f(images), f(filters), ins, outs, padding=1),
        ),
        "gathered_conv2d_t": (
            kernels.gathered_conv2d_t(
                d(outputs), d(filters), ins, outs, input_size=(6, 6), padding=1
            ),
            reference.gathered_conv2d_t(
                f(outputs), f(filters), ins, outs, input_size=(6, 6), padding=1
            ),
        ),
        "conv2d_at": (
            kernels.conv2d_at(d(images), d(outputs), kernel_size=(3, 3), padding=1),
            reference.conv2d_at(f(images), f(outputs), kernel_size=(3, 3), padding=1),
        ),
        "rectifier_gradient": (
            kernels.rectifier_gradient(d(g), d(g), slope=0.1)[1],
            reference.rectifier_gradient(f(g), f(g), slope=0.1)[1],
        ),
        "cross_entropy": (
            kernels.cross_entropy(d(g), d(labels)),
            reference.cross_entropy(f(g), labels),
        ),
        "cross_entropy_gradient": (
            kernels.cross_entropy_gradient(d(g), d(labels)),
            reference.cross_entropy_gradient(f(g), labels),
        ),
        "max_pool2d_gradient": (
            kernels.max_pool2d_gradient(d(pooled), d(images), d(pooled), **window),
            reference.max_pool2d_gradient(f(pooled), f(images), f(pooled), **window),
        ),
        "batch_moments": (kernels.batch_moments(d(g))[1], reference.batch_moments(f(g))[1]),
    }
    rule, gradient = NAGRule(0.9, 0.1, 1.9), draw(len(rows), len(cols))
    on_value, on_slots = d(value), d(slots)
    kernels.update_block(rule, on_value, on_slots, d(gradient), rows, cols)
    exact, exact_slots = f(value), f(slots)
    reference.update_block(nag, rule, exact, exact_slots, f(gradient), rows, cols)
    found["update_block"] = (on_value, exact)
    return found


def check(sizes: Sizes) -> float:
    """Print the error of each kernel and return the largest."""
    print("| kernel | largest error / largest element |\n| --- | ---: |")
    errors = {}
    for name, (got, exact) in checks(sizes).items():
        errors[name] = np.abs(got.to_host() - exact).max() / np.abs(exact).max()
        print(f"| {name} | {errors[name]:.1e} |")
    worst = max(errors, key=lambda name: errors[name])
    if not errors[worst] < TOLERANCE:
        raise SystemExit(f"{worst} is wrong: error {errors[worst]:.1e}")
    print()
    return float(errors[worst])


# ----------------------------------------------------------------------- products


class Peer(NamedTuple):
    """A library that calls cuBLAS; its arrays understand ``@``, ``.T`` and indexing."""

    name: str
    array: Callable[[Any], Any]


def find_peer() -> Peer | None:
    if SIMULATED:
        return None
    try:
        import torch
    except ImportError:
        pass
    else:
        if torch.cuda.is_available():
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.set_float32_matmul_precision("highest")
            return Peer(f"PyTorch {torch.__version__}", lambda a: torch.tensor(a, device="cuda"))
    try:
        import cupy
    except ImportError:
        return None
    return Peer(f"CuPy {cupy.__version__}", cupy.asarray)


def products(batch: int, n: int, peer: Peer | None) -> dict[str, dict[str, Run]]:
    """Return the three products of a layer of n units to n, half of both kept."""
    rng = np.random.default_rng(0)
    rows, cols = half(rng, n), half(rng, n)
    x, g = (rng.random((batch, len(units)), np.float32) for units in (rows, cols))
    w = rng.random((n, n), np.float32)
    ours_x, ours_g, ours_w = map(kernels.to_device, (x, g, w))
    y, dx = kernels.to_device(np.empty_like(g)), kernels.to_device(np.empty_like(x))
    dw = kernels.to_device(np.empty((len(rows), len(cols)), np.float32))
    found: dict[str, dict[str, Run]] = {
        "forward": {"ours": lambda: kernels.gathered_matmul(ours_x, ours_w, rows, cols, out=y)},
        "dx": {"ours": lambda: kernels.gathered_matmul_t(ours_g, ours_w, rows, cols, out=dx)},
        "dw": {"ours": lambda: kernels.matmul_at(ours_x, ours_g, out=dw)},
    }
    if peer is not None:
        a, b, whole = map(peer.array, (x, g, w))
        block = peer.array(np.ascontiguousarray(w[np.ix_(rows.indices, cols.indices)]))
        down, along = peer.array(rows.indices[:, None]), peer.array(cols.indices)
        found["forward"] |= {
            "cuBLAS": lambda: a @ block,
            "gather + cuBLAS": lambda: a @ whole[down, along],
        }
        found["dx"] |= {
            "cuBLAS": lambda: b @ block.T,
            "gather + cuBLAS": lambda: b @ whole[down, along].T,
        }
        found["dw"] |= {"cuBLAS": lambda: a.T @ b}
    return found


def time_products(sizes: Sizes, peer: Peer | None) -> list[dict[str, Any]]:
    """Print and return the rates of all products."""
    print("| product | n | b | GFLOP/s | cuBLAS | gather + cuBLAS | ours / cuBLAS |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    lines = []
    for n in sizes.widths:
        for batch in sizes.product_batches:
            flops = 2.0 * batch * (n // 2) ** 2
            for name, runs in products(batch, n, peer).items():
                times = medians(runs, sizes)
                rates = {who: flops / each / 1e9 for who, each in times.items()}
                lines.append({"product": name, "n": n, "b": batch, **rates})
                share = rates["ours"] / rates["cuBLAS"] if "cuBLAS" in rates else float("nan")
                cells = [
                    f"{rates[who]:.0f}" if who in rates else "-"
                    for who in ("ours", "cuBLAS", "gather + cuBLAS")
                ]
                print(f"| {name} | {n} | {batch} | {' | '.join(cells)} | {share:.2f} |")
    print()
    return lines


# ----------------------------------------------------------------------- training steps


def step(widths: tuple[int, ...], batch: int, pattern: str, device: str) -> Run:
    """Return our training step, as in `benchmarks.training`, on the GPU or the CPU."""
    rng = np.random.default_rng(0)
    x: Any = rng.random((batch, widths[0]), np.float32)
    labels: Any = rng.integers(widths[-1], size=batch)
    net = dropout_net(widths, pattern)
    if device == "cuda":
        net.to("cuda")
        x, labels = kernels.to_device(x), kernels.to_device(labels)
    optimizer = NAG(net.parameters(), lr=1e-5, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad()
        cross_entropy(net(x), labels, reduction="sum").backward()
        optimizer.step()

    return run


def torch_step(widths: tuple[int, ...], batch: int, dropout: bool) -> Run:
    """Return the same step in PyTorch, eager, whose dropout masks each value."""
    import torch

    torch.manual_seed(0)
    layers: list[torch.nn.Module] = [torch.nn.Dropout(P_INPUT)] if dropout else []
    for n_in, n_out in pairwise(widths[:-1]):
        layers += [torch.nn.Linear(n_in, n_out), torch.nn.ReLU()]
        layers += [torch.nn.Dropout(P_HIDDEN)] if dropout else []
    net = torch.nn.Sequential(*layers, torch.nn.Linear(*widths[-2:])).to("cuda")
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-5, momentum=0.9, nesterov=True)
    loss = torch.nn.CrossEntropyLoss(reduction="sum")
    rng = np.random.default_rng(0)
    x = torch.as_tensor(rng.random((batch, widths[0]), np.float32), device="cuda")
    labels = torch.as_tensor(rng.integers(widths[-1], size=batch), device="cuda")

    def run() -> None:
        optimizer.zero_grad()
        loss(net(x), labels).backward()
        optimizer.step()

    return run


def print_first_step() -> None:
    """Time a step whose kernels are not loaded, and not compiled where the cache is empty."""
    run = step((784, 800, 800, 10), 100, "batchwise", "cuda")
    start = time.perf_counter()
    run()
    cuda.synchronize()
    print(f"first step: {time.perf_counter() - start:.1f} s")


def host_seconds(run: Run, calls: int = 5) -> float:
    """Return the median time of a call on the CPU."""
    run()
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def time_steps(sizes: Sizes, peer: Peer | None, quick: bool) -> list[dict[str, Any]]:
    """Print and return the times of training steps over the width of the hidden layers."""
    with_torch = peer is not None and peer.name.startswith("PyTorch")
    names = [*PATTERNS, *(["PyTorch none", "PyTorch dropout"] if with_torch else []), "CPU"]
    alone = ["batchwise", *(["PyTorch dropout"] if with_torch else [])]
    names += [f"GPU alone: {name}" for name in alone]
    print(f"| ms a step, n | b | {' | '.join(names)} |\n| ---: |" + " ---: |" * (len(names) + 1))
    lines = []
    for n in sizes.widths:
        widths = (12, n, n, 4) if quick else (784, n, n, 10)
        for batch in sizes.step_batches:
            runs = {pattern: step(widths, batch, pattern, "cuda") for pattern in PATTERNS}
            if with_torch:
                runs["PyTorch none"] = torch_step(widths, batch, dropout=False)
                runs["PyTorch dropout"] = torch_step(widths, batch, dropout=True)
            times = medians(runs, sizes)
            for name in alone:
                times[f"GPU alone: {name}"] = gpu_seconds(runs[name], sizes.rounds)
            times["CPU"] = host_seconds(step(widths, batch, "batchwise", "cpu"))
            lines.append({"n": n, "b": batch, **times})
            print(f"| {n} | {batch} | {' | '.join(f'{1e3 * times[k]:.3f}' for k in names)} |")
    print()
    return lines


def plot(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw the time of a step over the width, as the paper's figure does."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    batches = sorted({line["b"] for line in lines})
    figure, axes = plt.subplots(1, len(batches), figsize=(5 * len(batches), 4), squeeze=False)
    for axis, batch in zip(axes[0], batches, strict=True):
        chosen = [line for line in lines if line["b"] == batch]
        colours: dict[str, Any] = {}
        for name in [key for key in chosen[0] if key not in ("n", "b", "CPU")]:
            milliseconds = [1e3 * line[name] for line in chosen]
            _, _, whole = name.rpartition(": ")  # What the GPU takes alone is dashed.
            style = "o-" if whole == name else "o--"
            widths = [line["n"] for line in chosen]
            (drawn,) = axis.plot(
                widths, milliseconds, style, label=name, color=colours.get(whole), markersize=4
            )
            colours[name] = drawn.get_color()
        axis.set(yscale="log", xlabel="hidden units", ylabel="ms a step", title=f"batch of {batch}")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
        axis.tick_params(axis="y", which="minor", labelsize="small")
        axis.set_xticks(widths)
    axes[0][-1].legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.tight_layout()
    figure.savefig(path)


def targets(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return each target, what it was measured to be, and whether it is met."""
    rows = []
    for line in results["products"]:
        if "cuBLAS" not in line or line["product"] != "forward":
            continue
        name = f"forward, n = {line['n']}, b = {line['b']}"
        share = line["ours"] / line["cuBLAS"]
        if line["n"] >= 2048 and line["b"] == 1024:
            rows.append((f"{name}: >= 60 % of cuBLAS", f"{share:.0%}", _word(share >= 0.6)))
        if line["b"] <= 256:
            gain = line["ours"] / line["gather + cuBLAS"]
            rows.append((f"{name}: > gather + cuBLAS", f"{gain:.2f} x", _word(gain > 1)))
    for line in results["steps"]:
        if "PyTorch dropout" in line:
            gain, wanted = (
                line["PyTorch dropout"] / line["batchwise"],
                2 if line["n"] >= 2048 else 1,
            )
            name = f"step, n = {line['n']}, b = {line['b']}: >= {wanted} x PyTorch's"
            rows.append((name, f"{gain:.2f} x", _word(gain >= wanted)))
    return rows


def _word(met: bool) -> str:
    return "yes" if met else "NO"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, for the simulator")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--plot", type=Path, help="draw the steps' times over the width; PNG, SVG")
    parser.add_argument("--first-step", action="store_true", help="time a first step, no more")
    options = parser.parse_args()
    if options.first_step:
        print_first_step()
        return
    sizes = QUICK if options.quick else FULL
    start = time.perf_counter()
    peer = find_peer()
    name = "the simulator" if SIMULATED else cuda.get_current_device().name
    if isinstance(name, bytes):
        name = name.decode()
    print(f"{name}, beside {peer.name if peer else 'no peer'}; float32, without TF32\n")
    if SIMULATED:
        print("NUMBA_ENABLE_CUDASIM=1: threads of Python on the CPU, the times mean nothing\n")
    results = {
        "device": name,
        "peer": peer and peer.name,
        "error": check(sizes),
        "products": time_products(sizes, peer),
        "steps": time_steps(sizes, peer, options.quick),
    }
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    if options.plot:
        plot(results["steps"], options.plot)
    print("| target | measured | met |\n| --- | ---: | --- |")
    for row in targets(results) or [("all: no peer to compare with", "-", "-")]:
        print("| " + " | ".join(row) + " |")
    print(f"\nlargest error {results['error']:.1e}, {time.perf_counter() - start:.0f} s in all")
    if SIMULATED:
        print("not measured on a device")


if __name__ == "__main__":
    main()
