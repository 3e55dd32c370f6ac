"""Error curves as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Literal

from numbadrop.errors import needs_extra
from numbadrop.train.metrics import EpochMetrics

__all__ = ["plot_curves"]


def plot_curves(
    runs: Mapping[str, Sequence[EpochMetrics]],
    path: str | Path,
    title: str = "",
    over: tuple[Literal["epochs", "time"], ...] = ("epochs",),
) -> None:
    """Draw the test error (solid) and the training error (thin) of each run.

    Parameters
    ----------
    runs : mapping of str to sequence of EpochMetrics
        Label and history of each run.
    path : path
        Where the picture goes; its suffix selects the format.
    title : str, default ""
    over : tuple of {"epochs", "time"}
        Against what, a panel each; the time is that in training steps.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    with needs_extra("plot", "drawing a curve"):
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    figure = Figure(figsize=(7 if len(over) == 1 else 5.5 * len(over), 4.5), layout="constrained")
    panels = figure.subplots(1, len(over), squeeze=False, sharey=True)[0]
    for against, axes in zip(over, panels, strict=True):
        for index, (label, history) in enumerate(runs.items()):
            places: list[float] = [metrics.epoch for metrics in history]
            if against == "time":
                places = list(accumulate(metrics.seconds / 60 for metrics in history))
            # A lone epoch is a point, which a line without markers would not show.
            marker = "o" if len(history) < 10 else None
            for kind, width, opacity in (("test", 2.0, 1.0), ("train", 1.0, 0.5)):
                errors = [100 * getattr(metrics, f"{kind}_error") for metrics in history]
                axes.plot(
                    places,
                    errors,
                    color=f"C{index}",
                    linewidth=width,
                    alpha=opacity,
                    marker=marker,
                    label=f"{label}, {kind}" + (f" ({errors[-1]:.2f} %)" if errors else ""),
                )
        axes.set_yscale("log", nonpositive="mask")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        low, high = axes.get_ylim()
        if high / low < 5:
            axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        elif high / low < 30:
            axes.yaxis.set_minor_formatter(FuncFormatter(_label_1_2_5))
        else:
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("epoch" if against == "epochs" else "minutes of training")
        if against == "epochs":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(which="major", alpha=0.4)
        axes.grid(which="minor", alpha=0.15)
    panels[0].set_ylabel("error, %")
    panels[0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def _label_1_2_5(value: float, _: int) -> str:
    """Return a label for every second or third of the ticks within a decade."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""
