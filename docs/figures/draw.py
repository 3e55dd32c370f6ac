"""Draw the figures of the documentation: ``python docs/figures/draw.py`` (needs Matplotlib)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import RegularPolyCollection
from matplotlib.patches import FancyBboxPatch
from numpy.typing import NDArray

HERE = Path(__file__).parent

INK, MUTED, EMPTY = "#1f2933", "#7b8794", "#e8ecf0"
INPUT, WEIGHT, OUTPUT = "#3d7ea6", "#cf7a30", "#4a9d7c"

MONO = "DejaVu Sans Mono"
CELL_POINTS = 300

Mask = NDArray[np.bool_]


def new_page(width: float, height: float) -> Axes:
    """Return axes that fill a page; its units are those of the drawing, y points down."""
    figure, axes = plt.subplots(figsize=(width / 3.2, height / 3.2))
    figure.subplots_adjust(0, 0, 1, 1)
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    axes.axis("off")
    return axes


def save(name: str) -> None:
    """Write the page just drawn as an SVG that is the same, byte for byte, on every run."""
    plt.savefig(HERE / name, metadata={"Date": None}, facecolor="white")
    plt.close()


def cells(axes: Axes, left: float, top: float, used: Mask, color: str) -> None:
    """Draw a matrix as cells of size one: colored where used, empty elsewhere."""
    for is_used, fill in [(False, EMPTY), (True, color)]:
        rows, columns = np.nonzero(used == is_used)
        axes.add_collection(
            RegularPolyCollection(
                4,
                rotation=np.pi / 4,
                sizes=(CELL_POINTS,),
                offsets=np.column_stack([left + columns + 0.5, top + rows + 0.5]),
                offset_transform=axes.transData,
                facecolor=fill,
                edgecolor=fill,
                linewidth=3,
                joinstyle="round",
            )
        )


def marks(axes: Axes, left: float, top: float, kept: NDArray[np.int64], along: str) -> None:
    """Mark the kept rows or columns of a matrix with small arrow heads at its edge."""
    for k in kept:
        x, y, shape = (k + 0.5, -0.3, "v") if along == "cols" else (-0.3, k + 0.5, ">")
        axes.plot(left + x, top + y, shape, color=INK, markersize=6, markeredgewidth=0)


def submatrix() -> None:
    """Show what is multiplied under a mask for each sample and under one for the minibatch."""
    batch, n_in, n_out = 6, 8, 10
    rows, cols = np.array([1, 2, 5, 7]), np.array([0, 3, 4, 6, 8])
    rng = np.random.default_rng(2)
    axes = new_page(44, 30)
    x_left, w_left, y_left, text_left = 1.5, 12, 24, 35.2

    def write(x: float, y: float, text: str, size: float, color: str = INK, **style: Any) -> None:
        axes.text(x, y, text, fontsize=size, color=color, **{"va": "baseline"} | style)

    def panel(
        top: float,
        title: str,
        subtitle: str,
        operands: list[tuple[float, Mask, str, str]],
        count: int,
        remark: str,
    ) -> None:
        write(x_left, top, title, 19, weight="bold")
        write(x_left, top + 1.4, subtitle, 14, MUTED)
        middle = top + 3.3 + n_in / 2
        for left, used, color, name in operands:
            height, width = used.shape
            cells(axes, left, middle - height / 2, used, color)
            write(left + width / 2, middle + n_in / 2 + 1.2, name, 14, ha="center", family=MONO)
        write((x_left + n_in + w_left) / 2, middle, "×", 22, ha="center", va="center")
        write((w_left + n_out + y_left) / 2, middle, "=", 22, ha="center", va="center")
        write(text_left, middle - 1.6, f"{count}", 30)
        write(text_left, middle - 0.3, "multiply-adds", 14)
        write(text_left, middle + 0.7, remark, 13, MUTED, va="top", linespacing=1.45)

    def half_of_each_row(n: int) -> Mask:
        return rng.permuted(np.tile(np.arange(n) < n // 2, (batch, 1)), axis=1)

    panel(
        2,
        "Independent dropout",
        "Each sample has a mask of its own, so no row and no column of the weights is free.",
        [
            (x_left, half_of_each_row(n_in), INPUT, f"x ({batch}, {n_in})"),
            (w_left, np.ones((n_in, n_out), np.bool_), WEIGHT, f"w ({n_in}, {n_out})"),
            (y_left, half_of_each_row(n_out), OUTPUT, f"y ({batch}, {n_out})"),
        ],
        batch * n_in * n_out,
        "Half of the inputs are\nzero, half of the outputs\nare thrown away.",
    )
    x, w, y = (np.zeros(s, np.bool_) for s in [(batch, n_in), (n_in, n_out), (batch, n_out)])
    x[:, rows] = w[np.ix_(rows, cols)] = y[:, cols] = True
    top = 17.2
    panel(
        top,
        "Batchwise dropout",
        "The minibatch shares one mask, so the product is that of a submatrix.",
        [
            (x_left, x, INPUT, f"x[:, rows] ({batch}, {len(rows)})"),
            (w_left, w, WEIGHT, f"w[rows, cols] ({len(rows)}, {len(cols)})"),
            (y_left, y, OUTPUT, f"y[:, cols] ({batch}, {len(cols)})"),
        ],
        batch * len(rows) * len(cols),
        "Grey weights take no\npart, and the step does\nnot change them.",
    )
    marks(axes, x_left, top + 4.3, rows, "cols")
    marks(axes, w_left, top + 3.3, rows, "rows")
    marks(axes, w_left, top + 3.3, cols, "cols")
    marks(axes, y_left, top + 4.3, cols, "cols")
    save("submatrix.svg")


def layers() -> None:
    """Show the layers of the package: each may import what stands below it."""
    house = [
        [("cli", "the command numbadrop", MUTED)],
        [("bench", "what dropping units saves on this machine", OUTPUT)],
        [("train", "fit, evaluate, checkpoints, metrics", OUTPUT)],
        [
            ("optim", "update rules on the active block", OUTPUT),
            ("data", "minibatches, file formats; knows no nets", OUTPUT),
        ],
        [("nn", "activation (values + index set), parameter, module, layers", INPUT)],
        [("ops", "differentiable primitives: products, activations, losses", INPUT)],
        [
            ("autograd", "tape, one gradient rule per argument", INPUT),
            ("kernels", "gathered products, block update; all of Numba", WEIGHT),
        ],
        [("index_set", "which units of an axis take part", INPUT)],
        [
            ("address", "where an array lies", MUTED),
            ("errors", "what a user is told", MUTED),
        ],
    ]
    left, width, gap, height, step = 1.5, 38, 0.6, 2.6, 3.2
    axes = new_page(44, 1.5 + step * len(house) + 0.9)
    for floor, rooms in enumerate(house):
        room = (width - gap * (len(rooms) - 1)) / len(rooms)
        for k, (name, what, color) in enumerate(rooms):
            x, y = left + k * (room + gap), 1.5 + step * floor
            axes.add_patch(
                FancyBboxPatch(
                    (x, y), room, height, "round,pad=0,rounding_size=0.35", fc=color, ec="none"
                )
            )
            style: dict[str, Any] = {"color": "white", "va": "center", "ha": "left"}
            middle = y + height / 2
            axes.text(x + 0.8, middle - 0.45, name, fontsize=15, weight="bold", **style)
            axes.text(x + 0.8, middle + 0.62, what, fontsize=12.5, **style)
    end = 1.5 + step * len(house) - gap
    axes.annotate(
        "", (42, end), (42, 1.5), arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.8}
    )
    axes.text(
        41.2, (1.5 + end) / 2, "imports go down", fontsize=13, color=INK, rotation=90,
        va="center", ha="center",
    )  # fmt: skip
    save("layers.svg")


if __name__ == "__main__":
    plt.rcParams.update({"svg.hashsalt": "numbadrop", "font.family": "DejaVu Sans"})
    submatrix()
    layers()
