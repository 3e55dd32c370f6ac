"""Time a training step of 784-800-800-10 with each kind of dropout, here and in PyTorch.

    pip install ".[bench]" torch
    python asv_benchmarks/against_pytorch.py

All steps are timed in one process, one after another in each round, and the medians are compared,
so that whatever else the machine does meets all of them alike. PyTorch runs eagerly and compiled
(where it finds a C++ compiler), with as many threads as numbadrop.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from benchmarks.training import PATTERNS, Step

from numbadrop.kernels import get_num_threads

Run = Callable[[], object]


def torch_step(dropout: bool, compiled: bool) -> Run:
    """Return a step of the same net, loss and optimizer in PyTorch."""
    torch.manual_seed(0)

    def drop(p: float) -> list[torch.nn.Module]:
        return [torch.nn.Dropout(p)] if dropout else []

    net: torch.nn.Module = torch.nn.Sequential(
        *drop(0.2), torch.nn.Linear(784, 800), torch.nn.ReLU(),
        *drop(0.5), torch.nn.Linear(800, 800), torch.nn.ReLU(),
        *drop(0.5), torch.nn.Linear(800, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-5, momentum=0.9, nesterov=True)
    loss = torch.nn.CrossEntropyLoss(reduction="sum")
    if compiled:
        net = torch.compile(net)  # type: ignore[assignment]
    x, y = torch.rand(100, 784), torch.randint(10, (100,))

    def run() -> None:
        optimizer.zero_grad()
        loss(net(x), y).backward()
        optimizer.step()

    return run


def numbadrop_step(pattern: str) -> Run:
    """Return the step that asv times, too."""
    step = Step()
    step.setup(pattern)
    return step.time_step


def medians(runs: dict[str, Run], rounds: int) -> dict[str, tuple[float, float, float]]:
    """Return the quartiles of the milliseconds that each takes, interleaved."""
    for run in runs.values():
        for _ in range(5):
            run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            # Many in a row, as in training. The first are not counted: the threads of the library
            # that ran before still look for work then, on cores that this one needs.
            for repeat in range(25):
                start = time.perf_counter()
                run()
                if repeat >= 5:
                    times[name].append(1e3 * (time.perf_counter() - start))
    return {name: tuple(np.percentile(t, (25, 50, 75))) for name, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(get_num_threads())
    runs = {f"numbadrop {pattern}": numbadrop_step(pattern) for pattern in PATTERNS}
    runs |= {
        f"PyTorch {'dropout' if dropout else 'none'} {'compiled' if compiled else 'eager'}": (
            torch_step(dropout, compiled)
        )
        for compiled in (False, True)
        for dropout in (True, False)
    }
    for name in [name for name in runs if name.endswith("compiled")]:
        try:
            runs[name]()
        except Exception as error:  # Whatever keeps the compiler from working is a reason to say.
            print(f"{name}: not timed, {type(error).__name__}: {str(error).splitlines()[0]}")
            del runs[name]
    result = medians(runs, rounds)
    base = result["numbadrop batchwise"][1]
    print(f"{get_num_threads()} threads, torch {torch.__version__}, {rounds * 20} steps each")
    print(f"{'step':32}{'ms':>8}{'quartiles':>16}{'/ batchwise':>14}")
    for name, (low, middle, high) in result.items():
        print(f"{name:32}{middle:8.2f}{f'{low:.2f}-{high:.2f}':>16}{middle / base:14.2f}")


if __name__ == "__main__":
    main()
