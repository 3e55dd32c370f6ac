"""Minibatches of images, without a net that takes them."""

from __future__ import annotations

import numpy as np

from numbadrop import data

from .timing import Timed

BATCH, BATCHES = 128, 50
SHAPE = (32, 32, 3)


class Batches(Timed):
    """Fifty batches of 128 images of 32 x 32 x 3 numbers."""

    params = ("floats", "bytes", "augmented bytes")
    param_names = ("inputs",)

    def prepare(self, inputs: str) -> None:
        if not hasattr(data, "Augmentation"):
            raise NotImplementedError("a commit without batches of images")
        rng = np.random.default_rng(0)
        images = rng.integers(256, size=(BATCH * BATCHES, np.prod(SHAPE)), dtype=np.uint8)
        self.minibatches = data.Minibatches(
            images / np.float32(255) if inputs == "floats" else images,
            np.zeros(len(images), int),
            BATCH,
            divisor=255,
            augmentation=data.Augmentation(4, flip=True) if "augmented" in inputs else None,
            image_shape=SHAPE,
        )

    def run(self) -> None:
        for _batch in self.minibatches.batches(epoch=0):
            pass

    def time_batches(self, _: str) -> None:
        self.run()
