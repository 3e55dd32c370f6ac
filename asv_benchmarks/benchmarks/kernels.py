"""The three products of a training step, gathered and dense."""

from __future__ import annotations

import numpy as np

from numbadrop import kernels
from numbadrop.index_set import IndexSet

from .timing import Timed

PRODUCTS = {
    "forward": lambda a: kernels.gathered_matmul(a.x, a.w, *a.sets, out=a.y),
    "input_gradient": lambda a: kernels.gathered_matmul_t(a.g, a.w, *a.sets, out=a.dx),
    "weight_gradient": lambda a: kernels.scatter_matmul(a.x, a.g, *a.sets, out=a.dw),
}
ARITHMETIC = {
    "float32": ("float32", None),
    "float64": ("float64", None),
    "float32, one thread": ("float32", 1),
}


class Operands:
    """What a layer of n x n weights multiplies, of which `keep` takes part along both axes."""

    def __init__(self, batch_n: str, keep: float, dtype: str = "float32") -> None:
        rng = np.random.default_rng(0)
        batch, n = map(int, batch_n.split("x"))
        kept = round(keep * n)
        self.sets = [
            None if kept == n else IndexSet(np.sort(rng.permutation(n)[:kept]), n) for _ in range(2)
        ]
        self.w = rng.standard_normal((n, n)).astype(dtype)
        self.dw = np.zeros_like(self.w)
        self.x, self.g = (rng.standard_normal((batch, kept)).astype(dtype) for _ in range(2))
        self.y, self.dx = (np.empty((batch, kept), dtype) for _ in range(2))
        self.flops = 2 * batch * kept**2


class Product(Timed):
    """A product with a square (n, n) weight of which `keep` takes part along both axes."""

    param_names = ("product", "batch_n", "keep", "arithmetic")
    # Among them weights far larger than the caches, and results whose rows share cache lines.
    shapes = ("32x1024", "128x800", "512x1024", "32x4096", "512x100")
    params = (tuple(PRODUCTS), shapes, (0.5, 1.0), tuple(ARITHMETIC))

    def prepare(self, product: str, batch_n: str, keep: float, arithmetic: str) -> None:
        dtype, threads = ARITHMETIC[arithmetic]
        self.operands = Operands(batch_n, keep, dtype)
        self.product = PRODUCTS[product]
        if threads is not None:
            kernels.set_num_threads(threads)

    def run(self) -> None:
        self.product(self.operands)

    def time_product(self, *_: object) -> None:
        self.product(self.operands)
