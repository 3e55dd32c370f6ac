"""Whole training steps."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from numbadrop.nn import BatchwiseDropout, Dropout, Linear, Module, ReLU, Sequential, cross_entropy
from numbadrop.optim import NAG
from numbadrop.train.models import CONVOLUTIONAL

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


class Step:
    """Forward, backward and update on a batch of 100."""

    param_names = ("net", "pattern")
    params = (tuple(NETS), tuple(PATTERNS))

    def setup(self, net: str, pattern: str) -> None:
        self.x, self.labels = minibatch(NETS[net])
        self.net = dropout_net(NETS[net], pattern)
        self.optimizer = NAG(self.net.parameters(), lr=1e-5, momentum=0.9)
        self.time_step()  # compiles

    def time_step(self, *_: object) -> None:
        self.optimizer.zero_grad()
        cross_entropy(self.net(self.x), self.labels, reduction="sum").backward()
        self.optimizer.step()


class ConvolutionalStep:
    """Forward, backward and update of the net for CIFAR-10 on a batch of 32."""

    param_names = ("pattern",)
    params = (tuple(PATTERNS),)

    def setup(self, pattern: str) -> None:
        rng = np.random.default_rng(0)
        self.x = rng.random((32, 32 * 32 * 3), np.float32)
        self.labels = rng.integers(10, size=32)
        self.net = CONVOLUTIONAL["deepcnet"].build((32, 32, 3), 10, pattern, P_HIDDEN).seed(0)
        self.optimizer = NAG(self.net.parameters(), lr=1e-5, momentum=0.9)
        self.time_step()  # compiles

    def time_step(self, *_: object) -> None:
        self.optimizer.zero_grad()
        cross_entropy(self.net(self.x), self.labels).backward()
        self.optimizer.step()

    peakmem_step = time_step
