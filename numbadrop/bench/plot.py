"""Two pictures: the speed-up over the fraction kept, and the roofline."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from numbadrop.bench.contest import DENSE, INDEXED, OURS, OURS_DENSE, Result
from numbadrop.bench.products import PRODUCTS
from numbadrop.bench.report import Report
from numbadrop.bench.steps import BATCHWISE, NO_DROPOUT

__all__ = ["plot"]

INK, MUTED = "#1f2933", "#7b8794"
COLORS = {"matmul": "#3d7ea6", "convolution": "#cf7a30", "training step": "#4a9d7c"}
MARKERS = dict(zip(PRODUCTS, "os^", strict=True))
WAYS = {
    "matmul": (OURS, OURS_DENSE),
    "convolution": (OURS, OURS_DENSE),
    "training step": (BATCHWISE, NO_DROPOUT),
}
"""What is compared in each sweep: on kept units, with all of them."""


def _speedups(results: list[Result], way: str, dense: str) -> tuple[list[float], list[float]]:
    """Return the fractions kept, and how much longer all products take densely."""
    keeps = sorted({result.keep for result in results})
    ratios = [
        sum(result.median(dense) for result in results if result.keep == keep)
        / sum(result.median(way) for result in results if result.keep == keep)
        for keep in keeps
    ]
    return keeps, ratios


def plot(report: Report, path: Path) -> None:
    """Write the pictures as PNG, SVG or PDF, by the name of the file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    over_keep, roofline = figure.subplots(1, 2)

    q = np.linspace(min(result.keep for result in report.sweeps["matmul"]), 1)
    over_keep.plot(q, q**-2, "--", color=MUTED, label="ideal, 1 / keep²")
    for name, results in report.sweeps.items():
        over_keep.plot(
            *_speedups(results, *WAYS[name]), "o-", color=COLORS[name], label=f"numbadrop, {name}"
        )
    over_keep.plot(
        *_speedups(report.sweeps["matmul"], INDEXED, DENSE), "x:", color=INK,
        label="NumPy, matmul with np.ix_",
    )  # fmt: skip
    over_keep.set(
        yscale="log",
        xlabel="fraction of the units kept",
        ylabel="speed-up over all units",
        title="What dropping units saves",
    )
    ticks = [0.5, 1, 2, 5, 10, 20, 50, 100]
    over_keep.set_yticks(ticks, [f"{tick:g}x" for tick in ticks])
    over_keep.minorticks_off()
    over_keep.grid(color="#e8ecf0")
    over_keep.legend(frameon=False)

    intensities = [result.flops / result.traffic for result in report.roof]
    x = np.geomspace(min(intensities) / 2, max(intensities) * 2)
    roofline.plot(x, np.minimum(report.bandwidth * x, report.peak) / 1e9, color=MUTED)
    roofline.annotate(
        f"register tile alone, {report.peak / 1e9:.0f} GFLOP/s",
        (x[-1], report.peak / 1e9), (0, 4), textcoords="offset points", ha="right", color=MUTED,
    )  # fmt: skip
    roofline.annotate(
        f"memory, {report.bandwidth / 1e9:.0f} GB/s", (x[0], report.bandwidth * x[0] / 1e9),
        (24, -4), textcoords="offset points", color=MUTED,
    )  # fmt: skip
    for product in PRODUCTS:
        of_product = [result for result in report.roof if result.title.startswith(product)]
        for way, color in ((OURS, COLORS["matmul"]), (INDEXED, INK)):
            roofline.plot(
                [result.flops / result.traffic for result in of_product],
                [result.flops / result.median(way) / 1e9 for result in of_product],
                MARKERS[product], color=color, label=f"{way}, {product}",
            )  # fmt: skip
    roofline.set(
        xscale="log",
        yscale="log",
        xlabel="operations for each byte of operands and result",
        ylabel="GFLOP/s",
        title="Products over the batch, half of the units kept",
    )
    roofline.set_ylim(top=2 * report.peak / 1e9)
    roofline.grid(color="#e8ecf0")
    roofline.legend(frameon=False, loc="lower right", fontsize="small")
    figure.savefig(path, dpi=150, facecolor="white")
