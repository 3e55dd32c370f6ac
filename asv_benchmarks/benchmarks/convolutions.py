"""The three convolutions of a training step, gathered and dense."""

from __future__ import annotations

import numpy as np

from numbadrop import kernels
from numbadrop.index_set import IndexSet

from .timing import Timed

PRODUCTS = {
    "forward": lambda a: kernels.gathered_conv2d(a.x, a.w, *a.sets, padding=a.padding, out=a.y),
    "input_gradient": lambda a: kernels.gathered_conv2d_t(
        a.g, a.w, *a.sets, input_size=a.x.shape[1:3], padding=a.padding, out=a.dx
    ),
    "weight_gradient": lambda a: kernels.scatter_conv2d(
        a.x, a.g, *a.sets, padding=a.padding, out=a.dw
    ),
}
# Channels in and out, side of the image, side of the kernel; the image keeps its size.
SHAPES = {
    "64-64@32x32k3": (64, 64, 32, 3),
    "256-256@8x8k3": (256, 256, 8, 3),
    "3-64@32x32k3": (3, 64, 32, 3),
    "256-256@16x16k1": (256, 256, 16, 1),
}
BATCH = 16


class Convolution(Timed):
    """A convolution of 16 images, between a share `keep` of the channels on both sides."""

    param_names = ("product", "shape", "keep")
    params = (tuple(PRODUCTS), tuple(SHAPES), (0.5, 1.0))

    def prepare(self, product: str, shape: str, keep: float) -> None:
        if not hasattr(kernels, "gathered_conv2d"):
            raise NotImplementedError("a commit without convolutions")
        rng = np.random.default_rng(0)
        n_in, n_out, size, kernel = SHAPES[shape]
        self.padding = kernel // 2
        self.sets = [
            IndexSet(np.sort(rng.permutation(n)[: n if n == 3 else round(keep * n)]), n)
            for n in (n_in, n_out)
        ]
        self.w = rng.standard_normal((kernel, kernel, n_in, n_out), np.float32)
        self.dw = np.zeros_like(self.w)
        self.x, self.g = (
            rng.standard_normal((BATCH, size, size, len(kept)), np.float32) for kept in self.sets
        )
        self.y, self.dx = np.empty_like(self.g), np.empty_like(self.x)
        self.product = PRODUCTS[product]

    def run(self) -> None:
        self.product(self)

    def time_product(self, *_: object) -> None:
        self.product(self)
