"""A whole training step of the reference net for MNIST."""

from __future__ import annotations

import numpy as np

from numbadrop.nn import BatchwiseDropout, Dropout, Linear, Module, ReLU, Sequential, cross_entropy
from numbadrop.optim import NAG

PATTERNS = {"batchwise": BatchwiseDropout, "independent": Dropout, "none": None}


def reference_net(pattern: str) -> Module:
    """Return 784-800-800-10 with dropout 0.2 on the input and 0.5 on the hidden units."""
    layers = (Linear(784, 800), ReLU(), Linear(800, 800), ReLU(), Linear(800, 10))
    if (dropout := PATTERNS[pattern]) is not None:
        layers = (dropout(0.2), *layers[:2], dropout(0.5), *layers[2:4], dropout(0.5), layers[4])
    return Sequential(*layers).seed(0)


class Step:
    """Forward, backward and update on a batch of 100."""

    param_names = ("pattern",)
    params = (tuple(PATTERNS),)

    def setup(self, pattern: str) -> None:
        rng = np.random.default_rng(0)
        self.x = rng.random((100, 784), dtype=np.float32)
        self.labels = rng.integers(10, size=100)
        self.net = reference_net(pattern)
        self.optimizer = NAG(self.net.parameters(), lr=1e-4, momentum=0.9)
        self.time_step()  # compiles

    def time_step(self, *_: object) -> None:
        self.optimizer.zero_grad()
        cross_entropy(self.net(self.x), self.labels, reduction="sum").backward()
        self.optimizer.step()
