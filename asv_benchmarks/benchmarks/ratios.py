"""Ratios measured in one process: what is left of them when the machine slows down for both.

All are times of ours over those of others, so that less is better, as asv takes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from numbadrop import kernels

from . import training  # not its classes: asv would take them for benchmarks of this file
from .kernels import PRODUCTS, Operands
from .machine import fma_peak
from .timing import ratio

REST_OF_OPENBLAS = 0.15
SHAPES = ("32x1024", "128x800", "512x1024")


def _numpy(product: str, a: Operands, w: np.ndarray) -> Callable[[], object]:
    """Return the product of the operands with `w`, an extracted submatrix, by NumPy."""
    dw = np.empty_like(w)
    return {
        "forward": lambda: np.matmul(a.x, w, out=a.y),
        "input_gradient": lambda: np.matmul(a.g, w.T, out=a.dx),
        "weight_gradient": lambda: np.matmul(a.x.T, a.g, out=dw),
    }[product]


class Product:
    """Our time over a peer's, for a product with half of the units kept on both sides.

    "dense" is our own product with all units; "extracted" is NumPy's on a contiguous submatrix that
    it gets for nothing; "np.ix_" is NumPy's with the extraction.
    """

    param_names = ("product", "batch_n", "peer")
    params = (tuple(PRODUCTS), SHAPES, ("dense", "extracted", "np.ix_"))
    unit = "x"

    def track_over_peer(self, product: str, batch_n: str, peer: str) -> float:
        a = Operands(batch_n, 0.5)
        block = np.ix_(*(units.indices for units in a.sets))
        run = PRODUCTS[product]
        if peer == "dense":
            dense = Operands(batch_n, 1.0)
            return ratio(lambda: run(a), lambda: run(dense))
        multiply = _numpy(product, a, a.w[block])
        if peer == "extracted":
            return ratio(lambda: run(a), multiply, REST_OF_OPENBLAS)
        if product == "weight_gradient":

            def with_indices() -> None:
                a.dw[block] += a.x.T @ a.g

        else:

            def with_indices() -> None:
                _numpy(product, a, a.w[block])()

        return ratio(lambda: run(a), with_indices, REST_OF_OPENBLAS)


class Roof:
    """A product's time on one core, over what multiply-adds in registers would need.

    1 is the roof: 1.25 are 80 % of the core's peak.
    """

    param_names = ("product", "batch_n", "keep")
    params = (tuple(PRODUCTS), SHAPES, (0.5, 1.0))
    unit = "x"

    def track_over_roof(self, product: str, batch_n: str, keep: float) -> float:
        operands = Operands(batch_n, keep)
        run = PRODUCTS[product]
        # One thread: where the system puts several after others have run would be measured too.
        kernels.set_num_threads(1)
        fma_peak(1)
        block = max(1, round(5e8 / operands.flops))
        ratios = []
        for _ in range(9):
            run(operands)
            began = time.perf_counter()
            for _ in range(block):
                run(operands)
            rate = block * operands.flops / (time.perf_counter() - began)
            ratios.append(fma_peak() / rate)
        return float(np.median(ratios))


class StepRatio:
    """Time of a step with batchwise dropout over that of another, of the same net."""

    param_names = ("net", "peer")
    params = (tuple(training.NETS), ("independent", "none", "PyTorch dropout"))
    unit = "x"

    def setup(self, net: str, peer: str) -> None:
        self.ours = _our_step(net, "batchwise")
        torch = peer == "PyTorch dropout"
        self.theirs = _torch_step(training.NETS[net]) if torch else _our_step(net, peer)

    def track_over_peer(self, net: str, peer: str) -> float:
        return ratio(self.ours, self.theirs)


def _our_step(net: str, pattern: str) -> Callable[[], object]:
    step = training.Step()
    step.prepare(net, pattern)
    return step.run


def _torch_step(widths: tuple[int, ...]) -> Callable[[], object]:
    try:
        import torch
    except ImportError:
        raise NotImplementedError("PyTorch is not installed") from None
    torch.set_num_threads(kernels.get_num_threads())
    layers: list[torch.nn.Module] = [torch.nn.Dropout(training.P_INPUT)]
    for n_in, n_out in pairwise(widths[:-1]):
        layers += [
            torch.nn.Linear(n_in, n_out),
            torch.nn.ReLU(),
            torch.nn.Dropout(training.P_HIDDEN),
        ]
    net = torch.nn.Sequential(*layers, torch.nn.Linear(*widths[-2:]))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-5, momentum=0.9, nesterov=True)
    loss = torch.nn.CrossEntropyLoss(reduction="sum")
    x, labels = map(torch.as_tensor, training.minibatch(widths))

    def run() -> None:
        optimizer.zero_grad()
        loss(net(x), labels).backward()
        optimizer.step()

    return run
