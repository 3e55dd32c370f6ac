"""What a run says while it trains: a live line on a terminal, else a line an epoch."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType
from typing import Protocol, Self

from numbadrop.train.metrics import EpochMetrics

__all__ = ["Progress", "progress_for"]


class Progress(Protocol):
    """Is told of each step and each epoch of a run, between entering and leaving it."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
    def on_step(self, epoch: int, step: int, loss: float, seconds: float) -> None:
        """Take note of a step: epoch and step count from 1, `loss` is the mean so far."""

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """Take note of the end of an epoch."""


def progress_for(epochs: int, steps: int) -> Progress:
    """Return a live display if standard output is a terminal and rich is installed, else lines.

    Parameters
    ----------
    epochs, steps : int
        Epochs of the run, steps of an epoch.
    """
    if sys.stdout is not None and sys.stdout.isatty():  # A program without a console has none.
        try:
            return _Live(epochs, steps)
        except ModuleNotFoundError:
            pass
    return _Lines(epochs)


class Silent:
    """Says nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def on_step(self, epoch: int, step: int, loss: float, seconds: float) -> None:
        """Do nothing."""

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """Do nothing."""


class _Lines(Silent):
    # Short epochs share a line: the last of them speaks for all.
    SECONDS_BETWEEN_LINES = 1.0

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.pending: EpochMetrics | None = None
        self.printed = -math.inf

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.pending is not None:
            self.print(self.pending)

    def on_epoch(self, metrics: EpochMetrics) -> None:
        self.pending = metrics
        now = time.perf_counter()
        if now - self.printed >= self.SECONDS_BETWEEN_LINES:
            self.printed = now
            self.pending = None
            self.print(metrics)

    def print(self, metrics: EpochMetrics) -> None:
        print(_line(metrics, self.epochs), flush=True)  # noqa: T201


class _Live(_Lines):
    # Drawn from the loop itself, at most this often: rich's own thread would take the
    # interpreter's lock in the middle of steps.
    SECONDS_BETWEEN_FRAMES = 0.1

    def __init__(self, epochs: int, steps: int) -> None:
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        super().__init__(epochs)
        self.steps = steps
        self.bar = RichProgress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            auto_refresh=False,
            transient=True,
        )
        self.task = self.bar.add_task("", total=epochs * steps, epoch=f"0/{epochs}", figures="")
        self.test_error = ""
        self.drawn = -math.inf

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        self.bar.stop()

    def on_step(self, epoch: int, step: int, loss: float, seconds: float) -> None:
        now = time.perf_counter()
        if now - self.drawn < self.SECONDS_BETWEEN_FRAMES:
            return
        self.drawn = now
        self.bar.update(
            self.task,
            completed=(epoch - 1) * self.steps + step,
            epoch=f"{epoch}/{self.epochs}",
            figures=f"loss {loss:.4f}{self.test_error}  {1e3 * seconds:.2f} ms/step",
        )
        self.bar.refresh()

    def on_epoch(self, metrics: EpochMetrics) -> None:
        self.test_error = f"  test error {metrics.test_error:.2%}"
        super().on_epoch(metrics)

    def print(self, metrics: EpochMetrics) -> None:
        self.bar.console.print(_line(metrics, self.epochs), highlight=False)


def _line(metrics: EpochMetrics, epochs: int) -> str:
    return (
        f"epoch {metrics.epoch:{len(str(epochs))}}/{epochs}"
        f"  loss {metrics.train_loss:.4f}"
        f"  train error {metrics.train_error:7.2%}"
        f"  test error {metrics.test_error:7.2%}"
        f"  {metrics.step_ms_median:.2f} ms/step"
    )
