"""Whole training steps, the optimizers alone, and what a step needs of memory."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from numbadrop import optim
from numbadrop.autograd import Block
from numbadrop.index_set import IndexSet
from numbadrop.nn import (
    BatchwiseDropout,
    Dropout,
    Linear,
    Module,
    Parameter,
    ReLU,
    Sequential,
    cross_entropy,
)

from .timing import Timed

NETS = {
    "784-800-800-10": (784, 800, 800, 10),
    "784-2048x3-10": (784, 2048, 2048, 2048, 10),
    "1000-1000x3-100": (1000, 1000, 1000, 1000, 100),
    "784-128-10": (784, 128, 10),
}
PATTERNS = {"batchwise": BatchwiseDropout, "independent": Dropout, "none": None}
BATCH = 100
P_INPUT, P_HIDDEN = 0.2, 0.5


def dropout_net(widths: tuple[int, ...], pattern: str) -> Module:
    """Return a net with ReLU, and dropout of 0.2 on the input and 0.5 on hidden units."""
    dropout = PATTERNS[pattern]
    layers: list[Module] = [] if dropout is None else [dropout(P_INPUT)]
    for n_in, n_out in pairwise(widths[:-1]):
        layers += [Linear(n_in, n_out), ReLU()]
        layers += [] if dropout is None else [dropout(P_HIDDEN)]
    return Sequential(*layers, Linear(*widths[-2:])).seed(0)


def minibatch(widths: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return random inputs and labels."""
    rng = np.random.default_rng(0)
    return rng.random((BATCH, widths[0]), np.float32), rng.integers(widths[-1], size=BATCH)


class Step(Timed):
    """Forward, backward and update on a batch of 100."""

    param_names = ("net", "pattern")
    params = (tuple(NETS), tuple(PATTERNS))

    def prepare(self, net: str, pattern: str) -> None:
        self.x, self.labels = minibatch(NETS[net])
        self.net = dropout_net(NETS[net], pattern)
        self.optimizer = optim.NAG(self.net.parameters(), lr=1e-5, momentum=0.9)

    def run(self) -> None:
        self.optimizer.zero_grad()
        cross_entropy(self.net(self.x), self.labels, reduction="sum").backward()
        self.optimizer.step()

    def time_step(self, *_: object) -> None:
        self.run()

    def peakmem_step(self, *_: object) -> None:
        self.run()


class ConvolutionalStep(Timed):
    """Forward, backward and update of the net for CIFAR-10 on a batch of 32."""

    param_names = ("pattern",)
    params = (tuple(PATTERNS),)

    def prepare(self, pattern: str) -> None:
        try:
            from numbadrop.train.models import CONVOLUTIONAL
        except ImportError:
            raise NotImplementedError("a commit without convolutional nets") from None
        rng = np.random.default_rng(0)
        self.x = rng.random((32, 32 * 32 * 3), np.float32)
        self.labels = rng.integers(10, size=32)
        self.net = CONVOLUTIONAL["deepcnet"].build((32, 32, 3), 10, pattern, P_HIDDEN).seed(0)
        self.optimizer = optim.NAG(self.net.parameters(), lr=1e-5, momentum=0.9)

    def run(self) -> None:
        self.optimizer.zero_grad()
        cross_entropy(self.net(self.x), self.labels).backward()
        self.optimizer.step()

    def time_step(self, *_: object) -> None:
        self.run()

    def peakmem_step(self, *_: object) -> None:
        self.run()


class Update(Timed):
    """The update of 1000 x 1000 weights, of which `keep` along both axes has a gradient."""

    param_names = ("optimizer", "keep")
    params = (("SGD", "NAG", "Adam"), (0.5, 1.0))

    def prepare(self, optimizer: str, keep: float) -> None:
        rng = np.random.default_rng(0)
        weights = Parameter(rng.standard_normal((1000, 1000), np.float32))
        kept = round(1000 * keep)
        sets = tuple(IndexSet(np.sort(rng.permutation(1000)[:kept]), 1000) for _ in range(2))
        values = rng.standard_normal((kept, kept), np.float32)
        weights.grad = Block(values, sets) if keep < 1 else values
        self.optimizer = getattr(optim, optimizer)([weights], lr=1e-6)

    def run(self) -> None:
        self.optimizer.step()

    def time_update(self, *_: object) -> None:
        self.optimizer.step()
