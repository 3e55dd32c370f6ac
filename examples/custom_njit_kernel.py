"""The gathered products outside any net: from NumPy code, and inside your own compiled function.

    python examples/custom_njit_kernel.py

The example finds the largest singular value of a submatrix by power iteration. The submatrix is
never extracted: each product picks its rows and columns while it reads the full matrix.
"""

from __future__ import annotations

import argparse
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from numbadrop.kernels import gathered_matmul, gathered_matmul_t

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--quick", action="store_true", help="a smaller matrix")
size = 200 if parser.parse_args().quick else 2000


def largest_singular_value(
    w: NDArray[Any], rows: NDArray[np.int64], cols: NDArray[np.int64], iterations: int
) -> Any:
    """Return that of ``w[np.ix_(rows, cols)]``."""
    v = np.ones((1, len(rows)), w.dtype)
    norm = 0.0
    for _ in range(iterations):
        # v A and then (v A) A^T, for the submatrix A.
        v = gathered_matmul_t(gathered_matmul(v, w, rows, cols), w, rows, cols)
        norm = np.sqrt((v * v).sum())
        v /= norm
    return np.sqrt(norm)


# The same source, compiled: the kernels keep their names, and run on the calling thread.
compiled = numba.njit(largest_singular_value)

rng = np.random.default_rng(0)
w = rng.random((size, size))  # positive: one singular value stands out, the iteration is short
rows = np.sort(rng.permutation(size)[: size // 2])
cols = np.sort(rng.permutation(size)[: size // 4])

print("from NumPy code     ", largest_singular_value(w, rows, cols, iterations=20))
print("in your own @njit   ", compiled(w, rows, cols, 20))
expected = np.linalg.svd(w[np.ix_(rows, cols)], compute_uv=False)[0]
print("numpy.linalg.svd    ", expected)
np.testing.assert_allclose(compiled(w, rows, cols, 20), expected, rtol=1e-9)
