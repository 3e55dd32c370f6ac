"""The products in a user's own jitted functions: the Python doors' bits, checks and names.

Functions are compiled once for each type of array, so that all tests share those below: `user`
sees arrays of any strides in float32, `in_parallel` contiguous ones in float64.
"""

from __future__ import annotations

import importlib

import numba
import numpy as np
import pytest
from kernel_checks import answer, assert_same_bits, block, canary, make_set, operands
from numba.core.errors import TypingError

from numbadrop import kernels
from numbadrop.index_set import IndexSet

USER = """
import numba
import numpy as np
from numbadrop.kernels import gathered_matmul, gathered_matmul_t, matmul_at, scatter_matmul


@numba.njit(cache=True)
def user(x, g, w, rows, cols, y, dw):
    gathered_matmul(x, w, rows, cols, out=y)
    dx = gathered_matmul_t(g, w, rows=rows, cols=cols)
    block = matmul_at(x, g)
    scatter_matmul(x, g, rows, cols, out=dw, alpha=-0.5)
    return dx, block


@numba.njit(cache=True, parallel=True)
def in_parallel(xs, w, mask):
    ys = np.empty((len(xs), xs.shape[1], w.shape[1]))
    for i in numba.prange(len(xs)):
        # The operand is a temporary, which nothing but the product itself keeps alive.
        gathered_matmul(xs[i] * 2.0, w, rows=mask, out=ys[i])
    return ys
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("user") / "user_module.py"
    path.write_text(USER, "utf-8")
    return path


@pytest.fixture(scope="module")
def module(path):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)
        yield importlib.import_module(path.stem)


def arguments(sizes=(7, 30, 45), kinds=("half", "sparse"), seed=0):
    """Return arguments of `user`: strided arrays, sets as arrays, outputs full of NaN."""
    rng = np.random.default_rng(seed)
    rows, cols = map(make_set, kinds, sizes[1:], (rng, rng))
    rows = rows or IndexSet.all(sizes[1])
    cols = cols or IndexSet.all(sizes[2])
    x, w = operands("gathered_matmul", np.float32, sizes, rows, cols, rng)
    g, _ = operands("gathered_matmul_t", np.float32, sizes, rows, cols, rng)
    x, g, w = (np.repeat(array, 2, axis=1)[:, ::2] for array in (x, g, w))
    y = np.full((sizes[0], 2 * len(cols)), np.nan, np.float32)[:, ::2]
    dw = np.repeat(canary(sizes[1:], np.float32), 2, axis=1)[:, ::2]
    dw[block(dw.shape, rows, cols)] = 1
    return x, g, w, rows.indices.copy(), cols.indices.copy(), y, dw


@pytest.mark.parametrize("sizes", [(2, 2, 3), (7, 30, 45), (20, 700, 90), (600, 9, 50)])
@pytest.mark.parametrize("kinds", [("none", "none"), ("half", "sparse"), ("one", "run")])
def test_the_same_bits_as_from_python(module, sizes, kinds):
    x, g, w, rows, cols, y, dw = arguments(sizes, kinds)
    wanted = dw.copy()
    dx, compact = module.user(x, g, w, rows, cols, y, dw)
    assert_same_bits(y, kernels.gathered_matmul(x, w, rows, cols))
    assert_same_bits(dx, kernels.gathered_matmul_t(g, w, rows, cols))
    assert_same_bits(compact, kernels.matmul_at(x, g))
    assert_same_bits(dw, kernels.scatter_matmul(x, g, rows, cols, out=wanted, alpha=-0.5))


def parallel_case():
    rng = np.random.default_rng(0)
    xs, w, mask = rng.standard_normal((20, 6, 25)), rng.standard_normal((50, 70)), np.arange(50) % 2
    return xs, w, mask.astype(bool)


@pytest.mark.parametrize("shape", [(20, 6), (1, 1), (3, 0), (0, 3)])
def test_within_a_users_own_prange(module, shape):
    xs, w, mask = parallel_case()
    xs = np.resize(xs, (*shape, xs.shape[2]))
    ys = module.in_parallel(xs, w, mask)
    assert ys.shape == (*shape, w.shape[1])
    for x, y in zip(xs, ys, strict=True):
        assert_same_bits(y, kernels.gathered_matmul(2 * x, w, rows=mask))


@pytest.mark.parametrize("layer", ["omp", "tbb", "workqueue"])
def test_a_second_process_under_each_threading_layer(layer, module, path):
    """It finds the machine code in the cache, and its numbers are those of this process."""
    module.user(*arguments())
    expected = module.in_parallel(*parallel_case())
    program = f"""
import sys
sys.path.insert(0, {str(path.parent)!r})
import numba, user_module
from test_jitted import *

try:
    results = user_module.in_parallel(*parallel_case())
except ValueError as error:  # the only error that Numba has for it
    print("none" if "threading layer" in str(error) else error)
    sys.exit()
assert numba.threading_layer() == {layer!r}
user_module.user(*arguments())
for function in (user_module.user, user_module.in_parallel):
    assert function.stats.cache_hits and not function.stats.cache_misses, function.stats
print(results.tobytes().hex())
"""
    printed = answer("-c", program, env={"NUMBA_THREADING_LAYER": layer})
    if printed == "none":
        pytest.skip(f"Numba has no threading layer {layer} here")
    assert printed == expected.tobytes().hex()


class TestBadInput:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"x": np.s_[:, :-1]}, ("x, axis 1", 14, 15)),
            ({"g": np.s_[:, :-1]}, ("g, axis 1", 4, 5)),
            ({"y": np.s_[:-1]}, ("out, axis 0", 6, 7)),
            ({"y": np.s_[:, :-1]}, ("out, axis 1", 4, 5)),
            ({"rows": np.s_[:0]}, ("empty index set: name", "rows")),
            ({"rows": lambda rows: rows - rows[0] - 1}, ("rows", -1, 30)),
            ({"rows": lambda rows: rows - rows[-1] + 30}, ("rows", 30, 30)),
            ({"rows": lambda rows: rows * 0 + 3}, ("rows", 3, 3)),
            ({"cols": lambda cols: cols[::-1].copy()}, ("cols",)),
        ],
    )
    def test_is_refused_before_anything_is_written(self, module, changes, words):
        names = ("x", "g", "w", "rows", "cols", "y", "dw")
        call = dict(zip(names, arguments(), strict=True))
        for name, change in changes.items():
            call[name] = change(call[name]) if callable(change) else call[name][change]
        before = call["y"].copy(), call["dw"].copy()
        with pytest.raises(ValueError, match=r".") as caught:
            module.user(*call.values())
        for word in words:
            assert word in caught.value.args
        if changes.keys() != {"g"}:  # which is needed after `y` was made
            assert_same_bits(call["y"], before[0])
        assert_same_bits(call["dw"], before[1])

    def test_out_that_overlaps(self, module):
        x, g, w, rows, cols, _, dw = arguments()
        memory = np.ones((60, 90), np.float32)
        w = memory[:30, ::2]
        for y in (w[:7, :5], w[::-1][3:10, :5]):
            before = memory.copy()
            with pytest.raises(ValueError, match="out"):
                module.user(x, g, w, rows, cols, y, dw)
            assert_same_bits(memory, before)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"w": np.ones((3, 4), np.float32)}, "one dtype, got x of float64, w of float32"),
            ({"x": np.ones((2, 3), int)}, "x must be a two-dimensional .* got array.int64, 2d"),
            ({"x": np.ones(3)}, "x must be a two-dimensional .* got array.float64, 1d"),
            ({"w": np.ones((3, 4, 1))}, "w must be a two-dimensional .* got array.float64, 3d"),
            ({"rows": np.ones(3)}, "rows must be None or .* integers or booleans, got array.float"),
            ({"rows": [0, 1, 2]}, "rows must be None or a one-dimensional array .* got .*list"),
            ({"out": np.ones((2, 4), np.float32)}, "one dtype, got .* out of float32"),
            ({"out": np.broadcast_to(1.0, (2, 4))}, "out is read-only"),
            ({"out": np.ones(8)}, "out must be a two-dimensional"),
        ],
    )
    def test_wrong_types_are_refused_while_compiling(self, changes, message):
        @numba.njit
        def function(x, w, rows, out):
            return kernels.gathered_matmul(x, w, rows, out=out)

        call = {"x": np.ones((2, 3)), "w": np.ones((3, 4)), "rows": None, "out": None} | changes
        with pytest.raises(TypingError, match=message):
            function(**call)

    def test_a_scatter_needs_out(self):
        @numba.njit
        def function(x):
            return kernels.scatter_matmul(x, x)

        with pytest.raises(TypingError, match=r"out must be a two-dimensional .* got none"):
            function(np.ones((2, 3)))
