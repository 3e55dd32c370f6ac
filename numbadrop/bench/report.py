"""The whole comparison: which contests there are, and what is said of them."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numbadrop
from numbadrop import kernels
from numbadrop.bench.contest import Contest, Result
from numbadrop.bench.products import convolutions, matmuls
from numbadrop.bench.roof import bandwidth, peak
from numbadrop.bench.steps import steps
from numbadrop.kernels.elements import CPU, MACHINE
from numbadrop.train.atomic import write_atomically

__all__ = ["Report", "compare"]

BATCH, LAYER, STEP_BATCH = 128, (800, 800), 100
CHANNELS, IMAGE, IMAGES = (64, 64), 32, 16
NETS = ((784, 800, 800, 10), (784, 128, 10))
KEEPS = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
KEEP = 0.5
ROOF_BATCHES = (8, 32, 128, 512)
ROUNDS, TURN = 5, 0.03
CAPTION = (
    "Times: as long as the first. All units: computes all of them; NumPy masks what is dropped as "
    "well. np.ix_: copies the kept weights first. Extracted before: got them for nothing, "
    "and does not scatter the gradient of the weights."
)
Make = Callable[[float, Any], list[Contest]]


@dataclass
class Report:
    """What was measured, and where.

    Attributes
    ----------
    machine : dict
    peak, bandwidth : float
        FLOP/s of the register tile alone, bytes/s of a copy in memory.
    contests : list of Result
        Half of the units kept, all contestants.
    sweeps : dict of str to list of Result
        A matmul, a convolution and a training step over the fraction kept.
    roof : list of Result
        Products over the batch.
    """

    machine: dict[str, Any]
    peak: float
    bandwidth: float
    contests: list[Result] = field(default_factory=list)
    sweeps: dict[str, list[Result]] = field(default_factory=dict)
    roof: list[Result] = field(default_factory=list)

    def write_json(self, path: Path) -> None:
        """Write everything, with all quartiles in seconds, to a file that is whole or not there."""
        write_atomically(path, json.dumps(asdict(self), indent=1).encode() + b"\n")

    def print_tables(self, console: Any) -> None:
        """Print the contests to a console of rich, the fastest settings of others beside ours."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        of = self.machine
        console.print(
            f"{of['cpu']}, {of['tile']}, {of['threads']} threads, float32; "
            f"register tile alone {self.peak / 1e9:.0f} GFLOP/s, copy {self.bandwidth / 1e9:.0f} "
            f"GB/s; {', '.join(f'{name} {value}' for name, value in of['versions'].items())}",
            highlight=False,
        )
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("half of the units kept", no_wrap=True)
        for heading in ("median, ms", "quartiles", "times", "GFLOP/s"):
            table.add_column(heading, justify="right", no_wrap=True)
        for result in self.contests:
            first = next(iter(result.seconds))
            table.add_row(result.title, style="bold")
            for way, (low, middle, high) in result.seconds.items():
                table.add_row(
                    f"  {way}",
                    f"{1e3 * middle:.3g}",
                    f"{1e3 * low:.3g}-{1e3 * high:.3g}",
                    "" if way == first else f"{middle / result.median(first):.2f}",
                    f"{result.flops / middle / 1e9:.0f}" if _of_kept_units(way) else "",
                )
            table.add_section()
        console.print(table)
        console.print(CAPTION, style="italic")


def _of_kept_units(way: str) -> bool:
    """Return whether the FLOPs of the kept units are those that this way computes."""
    return way == "numbadrop" or any(word in way for word in ("extracted", "np.ix_", "batchwise"))


def _machine(torch: Any) -> dict[str, Any]:
    versions = {"numbadrop": numbadrop.__version__}
    for package in ("numpy", "numba", *(() if torch is None else ("torch",))):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    lanes = MACHINE.vector_bytes // 4
    return {
        "cpu": CPU,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "tile": f"{MACHINE.name} tile of {MACHINE.tile_rows} x {MACHINE.tile_vectors * lanes}",
        "threads": kernels.get_num_threads(),
        "versions": versions,
    }


def _installed_torch() -> Any:
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(kernels.get_num_threads())
    return torch


def compare(console: Any, quick: bool = False) -> Report:
    """Measure everything, under a progress bar.

    Parameters
    ----------
    console : rich.console.Console
    quick : bool, default False
        Everything once and on small operands: says whether it works, not how fast it is.

    Raises
    ------
    WrongResultError
        If a contestant computes something else than the others.
    """
    from rich.progress import track

    torch = _installed_torch()
    layer, image, nets = ((96, 96), 6, ((40, 32, 10),)) if quick else (LAYER, IMAGE, NETS)
    rounds, turn = (1, 0.0) if quick else (ROUNDS, TURN)
    threads = kernels.get_num_threads()
    work, size = (1e6, 1 << 16) if quick else (2e9, 1 << 28)
    report = Report(_machine(torch), peak("float32", threads, work), bandwidth(threads, size))

    def products(keep: float, torch: Any) -> list[Contest]:
        return matmuls(BATCH, layer, keep, torch)

    def images(keep: float, torch: Any) -> list[Contest]:
        return convolutions(IMAGES, CHANNELS, image, keep, torch)

    def step(net: tuple[int, ...], keep: float, torch: Any) -> list[Contest]:
        return [steps(net, STEP_BATCH, keep, torch)]

    # What makes the contests, not they themselves: their operands would fill the memory.
    makes: list[Make] = [products, images, *(partial(step, net) for net in nets)]
    todo: list[tuple[list[Result], Callable[[], list[Contest]]]] = [
        (report.contests, partial(make, KEEP, torch)) for make in makes
    ]
    sweeps: dict[str, Make] = {
        "matmul": products, "convolution": images, "training step": partial(step, nets[0]),
    }  # fmt: skip
    for name, make in sweeps.items():
        results = report.sweeps.setdefault(name, [])
        todo += [(results, partial(make, keep, None)) for keep in KEEPS]
    todo += [(report.roof, partial(matmuls, batch, layer, KEEP)) for batch in ROOF_BATCHES]
    for results, contests in track(todo, "measuring", console=console, transient=True):
        results += [contest.measure(rounds, turn) for contest in contests()]
    report.peak = max(report.peak, peak("float32", threads, work))  # on a clock that drifts
    return report
