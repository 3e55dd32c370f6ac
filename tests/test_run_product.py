"""The native door of the products does what the doors in Python do, or nothing."""

from __future__ import annotations

import time
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import DTYPES, assert_same_bits

from numbadrop import kernels
from numbadrop.index_set import IndexSet
from numbadrop.kernels import matmul, run_product
from numbadrop.kernels.epilogue import Epilogue

DOORS = (
    "gathered_matmul", "gathered_matmul_t", "gathered_linear", "matmul_at", "scatter_matmul",
)  # fmt: skip
BATCH, N_IN, N_OUT = 9, 12, 20
ROWS, COLS = IndexSet([0, 2, 3, 7, 11], N_IN), IndexSet(range(3, 19), N_OUT)


def call(name, dtype, gathers=True, given_out=True):
    """Return the arguments of a usual call."""
    rng = np.random.default_rng(0)
    rows, cols = (ROWS, COLS) if gathers and name != "matmul_at" else (None, None)
    kept_in, kept_out = (N_IN, N_OUT) if rows is None else (len(ROWS), len(COLS))

    def made(*shape):
        return rng.standard_normal(shape).astype(dtype)

    x, g, w = made(BATCH, kept_in), made(BATCH, kept_out), made(N_IN, N_OUT)
    first, second, shape = {
        "gathered_matmul": ("x", "w", g.shape),
        "gathered_matmul_t": ("g", "w", x.shape),
        "gathered_linear": ("x", "w", g.shape),
        "matmul_at": ("x", "g", w.shape),
        "scatter_matmul": ("x", "g", w.shape),
    }[name]
    arrays = {"x": x, "g": g, "w": w}
    arguments = {first: arrays[first], second: arrays[second]}
    if name != "matmul_at":
        arguments |= {"rows": rows, "cols": cols}
    if name == "gathered_linear":
        arguments |= {"b": made(N_OUT), "slope": 0.25, "scale": 2.0}
    if name == "scatter_matmul":
        arguments["alpha"] = -0.5
    if given_out or name == "scatter_matmul":
        arguments["out"] = made(*shape)
    return arguments


@pytest.mark.parametrize("gathers", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "given_out"),
    [*((name, True) for name in DOORS), *((name, False) for name in DOORS[:4])],
)
def test_a_usual_call_asks_nothing_in_python(name, dtype, gathers, given_out, monkeypatch):
    arguments = call(name, dtype, gathers, given_out)
    again = call(name, dtype, gathers, given_out)
    result = getattr(kernels, name)(**arguments)
    monkeypatch.setattr(matmul, "run_usual_product", lambda *arguments, **named: None)
    assert_same_bits(result, getattr(kernels, name)(**again))
    monkeypatch.undo()
    monkeypatch.setattr(matmul, "check_matrices", None)
    monkeypatch.setattr(matmul, "check_matrix", None)
    getattr(kernels, name)(**arguments)


def reaching_into(array, other):
    """Return an array of this shape whose last element is the other's first."""
    memory = np.zeros(array.size + other.size, array.dtype)
    moved = memory[max(array.size - 1, 0) :][: other.size].reshape(other.shape)
    moved[...] = other
    return memory[: array.size].reshape(array.shape), moved


OF_ARRAYS = {
    "list": lambda a: a.tolist(),
    "subclass": lambda a: a.view(np.matrix if a.ndim == 2 else np.recarray),
    "another dtype": lambda a: a.astype(np.float64 if a.dtype == np.float32 else np.float32),
    "integers": lambda a: a.astype(np.int64),
    "swapped bytes": lambda a: a.astype(a.dtype.newbyteorder()),
    "dtype of its own": lambda a: a.view(np.dtype(a.dtype, metadata={"some": "thing"})),
    "a row less": lambda a: a[:-1],
    "a row more": lambda a: np.concatenate([a, a[:1]]),
    "a column less": lambda a: a[..., :-1],
    "no rows": lambda a: a[:0],
    "one axis": lambda a: a.ravel(),
    "three axes": lambda a: a[None],
    "no axis": lambda a: a.dtype.type(1) + np.zeros((), a.dtype),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "backwards": lambda a: a[::-1].copy()[::-1],
    "columns backwards": lambda a: a[..., ::-1].copy()[..., ::-1],
    "Fortran": lambda a: np.asfortranarray(a),
    "spread": lambda a: np.repeat(np.repeat(a, 2, 0), 2, -1)[::2, ..., ::2] if a.ndim == 2 else a,
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
    "unaligned": lambda a: np.frombuffer(b"." + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
    "none": lambda a: None,
}
OF_SETS = {
    "list": lambda units: None if units is None else units.indices.tolist(),
    "mask": lambda units: None if units is None else units.mask(),
    "another axis": lambda units: IndexSet([0], 3),
    "one less": lambda units: None if units is None else IndexSet(units.indices[1:], units.size),
    "all": lambda units: None if units is None else IndexSet.all(units.size),
    "all of another": lambda units: IndexSet.all(7),
    "none": lambda units: None,
    "text": lambda units: "units",
}
OF_FACTORS = {
    str(value): lambda _, value=value: value
    for value in (
        0.0, -1.0, 1e-39, 2.0**-126, 2.0**127, 2.0**127 * (1 + 2.0**-40), 1e39, 1e300, np.inf,
        -np.inf, np.nan, 1, True, np.float32(2), np.float64(2), None, "2",
    )
}  # fmt: skip


@settings(max_examples=600)
@given(name=st.sampled_from(DOORS), dtype=st.sampled_from(DTYPES), data=st.data())
def test_what_it_does_python_allows_and_does_alike(name, dtype, data):
    gathers, given_out = data.draw(st.booleans()), data.draw(st.booleans())
    usual = list(call(name, dtype, gathers, given_out))
    changes = {}
    for argument in data.draw(st.lists(st.sampled_from(usual), max_size=2, unique=True)):
        kinds = (
            OF_FACTORS if argument in ("slope", "scale", "alpha")
            else OF_SETS if argument in ("rows", "cols")
            else OF_ARRAYS
        )  # fmt: skip
        changes[argument] = kinds[data.draw(st.sampled_from(sorted(kinds)))]
    overlapped = data.draw(st.sampled_from([None, *usual]))

    def arguments():
        made = call(name, dtype, gathers, given_out)
        made |= {argument: change(made[argument]) for argument, change in changes.items()}
        out, other = made.get("out"), made.get(overlapped)
        arrays = isinstance(out, np.ndarray) and isinstance(other, np.ndarray)
        if arrays and other is not out and other.dtype == out.dtype:
            made["out"], made[overlapped] = reaching_into(out, other)
        return made

    given_to = arguments()
    before = given_to["out"].tobytes() if isinstance(given_to.get("out"), np.ndarray) else None
    found = []

    def spied(*operands, **named):
        found.append(run_product.run_usual_product(*operands, **named))
        return found[-1]

    door = getattr(kernels, name)
    with mock.patch.object(matmul, "run_usual_product", return_value=None):
        try:
            wanted = door(**arguments())
        except (TypeError, ValueError):
            wanted = None
    with mock.patch.object(matmul, "run_usual_product", spied):
        if wanted is None:
            with pytest.raises((TypeError, ValueError)):
                door(**given_to)
            assert found == [None]
            assert before is None or given_to["out"].tobytes() == before
        else:
            assert_same_bits(door(**given_to), wanted)


def test_a_result_that_would_reach_into_an_operand_is_refused_at_each_of_its_ends():
    memory = np.ones(100)
    x, w = memory[40:46].reshape(2, 3), np.ones((3, 4))
    for start in range(100 - 8):
        out = memory[start : start + 8].reshape(2, 4)
        apart = start + 8 <= 40 or start >= 46
        assert (run_product.run_usual_product(x, w, out, None, None) is not None) == apart
        memory[:] = 1


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_large_products_wait_for_the_crew_and_then_begin_at_once(threads, monkeypatch):
    rng = np.random.default_rng(0)
    x, g = (rng.integers(-9, 10, (70, n)).astype(np.float32) for n in (80, 90))
    expected = x.T @ g
    runs, run = [], run_product.run_product

    def noted(*operands):
        runs.append(operands)
        run(*operands)

    monkeypatch.setattr(run_product, "run_product", noted)
    before = kernels.get_num_threads()
    try:
        kernels.set_num_threads(threads)
        np.testing.assert_array_equal(kernels.matmul_at(x, g), expected)
        assert len(runs) == (threads > 1)  # Python makes the crew,
        end = time.monotonic() + 60
        while runs:  # and wakes it, as often as it has fallen asleep meanwhile.
            assert time.monotonic() < end
            runs.clear()
            result = kernels.matmul_at(x, g)
            np.testing.assert_array_equal(result, expected)
    finally:
        kernels.set_num_threads(before)


def test_no_memory(monkeypatch):
    """A kernel that fails is no result."""
    dtype = np.dtype(np.float32)
    native = run_product.native_door(dtype)
    monkeypatch.setattr(
        run_product, "native_door", lambda dtype: native._replace(multiply=lambda *arguments: 1)
    )
    with pytest.raises(MemoryError, match="there is no memory for what a kernel needs"):
        kernels.matmul_at(np.ones((2, 3), dtype), np.ones((2, 4), dtype))


def test_factors_enter_in_the_type_of_the_elements():
    x = np.ones((1, 1), np.float32)
    for scale in (0.1, 1 + 2.0**-30):
        out = kernels.scatter_matmul(x, x, out=np.zeros((1, 1), np.float32), alpha=scale)
        assert out[0, 0] == np.float32(scale)
        out = np.zeros((1, 1), np.float32)
        run_product.run_product(x.T, x, out, None, None, None, Epilogue(1.0, scale), True)
        assert out[0, 0] == np.float32(scale)
