"""The three products of a training step, gathered and dense."""

from __future__ import annotations

import numpy as np

from numbadrop import kernels

PRODUCTS = {
    "forward": lambda a: kernels.gathered_matmul(a.x, a.w, a.rows, a.cols, out=a.y),
    "input_gradient": lambda a: kernels.gathered_matmul_t(a.g, a.w, a.rows, a.cols, out=a.dx),
    "weight_gradient": lambda a: kernels.scatter_matmul(a.x, a.g, a.rows, a.cols, out=a.dw),
}


class Product:
    """A product with a square (n, n) weight of which `keep` takes part along both axes."""

    param_names = ("product", "batch_n", "keep", "dtype")
    params = (
        tuple(PRODUCTS),
        ("32x1024", "128x800", "128x2048", "512x1024"),
        (0.5, 1.0),
        ("float32", "float64"),
    )

    def setup(self, product: str, batch_n: str, keep: float, dtype: str) -> None:
        rng = np.random.default_rng(0)
        batch, n = map(int, batch_n.split("x"))
        kept = round(keep * n)
        self.rows, self.cols = (
            None if kept == n else np.sort(rng.permutation(n)[:kept]) for _ in range(2)
        )
        self.w = rng.standard_normal((n, n)).astype(dtype)
        self.dw = np.zeros_like(self.w)
        self.x, self.g = (rng.standard_normal((batch, kept)).astype(dtype) for _ in range(2))
        self.y, self.dx = (np.empty((batch, kept), dtype) for _ in range(2))
        self.product = PRODUCTS[product]
        self.product(self)  # compiles

    def time_product(self, *_: object) -> None:
        self.product(self)
