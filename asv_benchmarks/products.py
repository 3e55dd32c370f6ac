"""Compare the gathered products with NumPy's on a submatrix that was extracted beforehand.

    pip install ".[bench]"
    python asv_benchmarks/products.py            # the thin grid
    python asv_benchmarks/products.py --full     # every size, some minutes

The peer multiplies contiguous copies of the kept weights, which it gets for nothing, and its weight
gradient is not scattered. A ratio is the peer's time over ours. Each cell is checked against
float64 before it is timed. Both use the same number of threads, which the peer's stop looking for
work after half a millisecond (OPENBLAS_THREAD_TIMEOUT=20): with its default of 2^28 cycles they
would take the cores from whoever runs next, while between calls in a row it makes no difference.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")  # before NumPy loads it

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from numbadrop import kernels
from numbadrop.bench import Run, peak, quartiles
from numbadrop.index_set import IndexSet
from numbadrop.kernels.elements import MACHINE

THIN = {
    "batch": (32, 128, 1024),
    "sizes": ((784, 800), (800, 800), (1023, 1025), (2048, 2048), (800, 10)),
    "keep": ((0.5, 0.5), (1.0, 1.0)),
}
FULL = {
    "batch": (32, 64, 100, 128, 256, 512, 1024),
    "sizes": (
        (100, 100), (256, 256), (784, 800), (800, 800), (800, 10), (1000, 1000), (1023, 1025),
        (1024, 1024), (2048, 2048), (4096, 4096),
    ),
    "keep": ((0.2, 0.2), (0.5, 0.5), (0.8, 0.5), (0.8, 0.8), (1.0, 1.0)),
}  # fmt: skip
TURN = 0.02
"""Seconds that are counted at a time."""
TARGETS = {"forward": 1.0, "input gradient": 1.0, "weight gradient": 0.95}


def cell(
    batch: int, sizes: tuple[int, int], keep: tuple[float, float], dtype: str
) -> Iterator[tuple[str, float, dict[str, Run]]]:
    """Yield for each product its name, its FLOPs and the two ways to compute it, checked."""
    rng = np.random.default_rng(0)
    rows, cols = (
        None if share == 1 else np.sort(rng.permutation(n)[: max(1, round(share * n))])
        for n, share in zip(sizes, keep, strict=True)
    )
    w = rng.standard_normal(sizes).astype(dtype)
    sets = list(zip((rows, cols), sizes, strict=True))
    block = np.ix_(*(range(n) if units is None else units for units, n in sets))
    extracted = np.ascontiguousarray(w[block])
    x, g = (rng.standard_normal((batch, n)).astype(dtype) for n in extracted.shape)
    y, dx, dw = np.empty_like(g), np.empty_like(x), np.empty_like(extracted)
    scattered = np.zeros_like(w)
    kept = [None if units is None else IndexSet(units, n) for units, n in sets]
    products: dict[str, tuple[Run, Run, Any, Any]] = {
        "forward": (
            lambda: kernels.gathered_matmul(x, w, *kept, out=y),
            lambda: np.matmul(x, extracted, out=y),
            lambda: y,
            x.astype(float) @ extracted,
        ),
        "input gradient": (
            lambda: kernels.gathered_matmul_t(g, w, *kept, out=dx),
            lambda: np.matmul(g, extracted.T, out=dx),
            lambda: dx,
            g.astype(float) @ extracted.T,
        ),
        "weight gradient": (
            lambda: kernels.scatter_matmul(x, g, *kept, out=scattered),
            lambda: np.matmul(x.T, g, out=dw),
            lambda: scattered[block],
            x.T.astype(float) @ g,
        ),
    }
    for name, (ours, peer, result, expected) in products.items():
        ours()
        error = np.abs(result() - expected).max() / np.abs(expected).max()
        if not error < 1e3 * np.finfo(dtype).eps:
            raise ArithmeticError(f"{name} of {batch}, {sizes}, {keep}: relative error {error}")
        flops = 2.0 * batch * extracted.size
        yield name, flops, {"ours": ours, "peer": peer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="every size")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--threads", type=int, default=kernels.get_num_threads())
    parser.add_argument("--batch", type=int, nargs="*", help="instead of those of the grid")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    kernels.set_num_threads(options.threads)
    threadpool_limits(options.threads)
    grid: dict[str, Any] = dict(FULL if options.full else THIN)
    grid["batch"] = tuple(options.batch or grid["batch"])

    top = peak(options.dtype, options.threads)
    blas = ", ".join(f"{p['internal_api']} {p['version']}" for p in threadpool_info())
    print(f"{MACHINE.name}, {options.threads} threads, {options.dtype}, against {blas}")
    ratios: dict[str, dict[tuple[Any, ...], float]] = {name: {} for name in TARGETS}
    rates: dict[str, float] = dict.fromkeys(TARGETS, 0.0)
    for sizes, keep, batch in itertools.product(grid["sizes"], grid["keep"], grid["batch"]):
        for name, flops, runs in cell(batch, sizes, keep, options.dtype):
            times = quartiles(runs, options.rounds, TURN)
            ours, peer = times["ours"][1], times["peer"][1]
            ratios[name][sizes, keep, batch] = peer / ours
            rates[name] = max(rates[name], flops / ours)
    top = max(top, peak(options.dtype, options.threads))  # a clock that drifts is seen twice
    print(f"register tile alone: {top / 1e9:.0f} GFLOP/s")
    _, _, runs = next(cell(1, (20, 20), (0.5, 0.5), options.dtype))
    ours, peer = (1e6 * quartiles(runs, 5, TURN)[who][1] for who in ("ours", "peer"))
    print(f"forward, one sample, half of 20 x 20: {ours:.2f} us, the peer {peer:.2f} us\n")
    for name, cells in ratios.items():
        print(f"### {name}\n")
        print("| in x out | keep | " + " | ".join(f"b = {b}" for b in grid["batch"]) + " |")
        print("| --- | --- |" + " ---: |" * len(grid["batch"]))
        for sizes, keep in itertools.product(grid["sizes"], grid["keep"]):
            row = " | ".join(f"{cells[sizes, keep, b]:.2f}" for b in grid["batch"])
            print(f"| {sizes[0]} x {sizes[1]} | {keep[0]:g}, {keep[1]:g} | {row} |")
        values = np.array(list(cells.values()))
        below = int((values < TARGETS[name]).sum())
        print(
            f"\ngeometric mean {np.exp(np.log(values).mean()):.2f}, smallest {values.min():.2f}, "
            f"{below} of {len(values)} below {TARGETS[name]:g}; "
            f"best share of the tile's speed {rates[name] / top:.0%}\n"
        )


if __name__ == "__main__":
    main()
