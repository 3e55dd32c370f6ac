"""Updates of a sub-block, bit for bit against the same rule run by NumPy.

A rule is sums, products, quotients and roots, each rounded once, in the same order and type on
both sides, so that no tolerance is needed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import (
    DTYPES,
    IS_X86,
    LAYOUTS,
    SETS,
    assert_same_bits,
    block,
    canary,
    count,
    laid_out,
    make_set,
)

from numbadrop.index_set import IndexSet
from numbadrop.kernels import (
    BlockUpdate,
    element_rule,
    reference,
    sample_units,
    update_block,
    update_blocks,
)
from numbadrop.kernels import update as update_module
from numbadrop.optim import rules

RULES = [
    (rules.SGDRule(0.1, 0.01), rules.sgd, 0),
    (rules.MomentumRule(0.9, 0.8, 0.01, 0.1, 0.09), rules.momentum, 1),
    (rules.NAGRule(0.9, 0.01, 1.9), rules.nag, 1),
    (rules.AdamRule(0.9, 0.1, 0.999, 0.001, 0.01, 1.5, 1e-8, 0.01, 0.99), rules.adam, 2),
]


def start(shape, slots, dtype, inside, seed=0):
    """Return weights and slots: numbers in the block, a canary elsewhere."""
    rng = np.random.default_rng(seed)
    value, memory = canary(shape, dtype), canary((slots, *shape), dtype)
    value[inside] = rng.standard_normal(value[inside].shape)
    memory[(..., *inside)] = rng.uniform(0.1, 2, memory[(..., *inside)].shape)
    return value, memory


def assert_updates(case, shape, grad, rows, cols):
    """Run a rule on a block both ways and compare every bit of weights and slots."""
    rule, function, slots = case
    inside = block(shape, rows, cols)
    value, memory = start(shape, slots, grad.dtype, inside)
    wanted_value, wanted_memory = value.copy(), memory.copy()
    reference.update_block(function, rule, wanted_value, wanted_memory, grad, rows, cols)
    before = grad.tobytes()
    update_block(rule, value, memory, grad, rows, cols)
    assert_same_bits(value, wanted_value)
    assert_same_bits(memory, wanted_memory)
    assert grad.tobytes() == before


sizes = st.integers(0, 20) | st.integers(0, 80)


@settings(max_examples=100)
@given(
    case=st.sampled_from(RULES),
    dtype=st.sampled_from(DTYPES),
    shape=st.tuples(sizes, sizes),
    kinds=st.tuples(st.sampled_from(SETS), st.sampled_from(SETS)),
    layout=st.sampled_from([*LAYOUTS, "broadcast", "read-only"]),
    seed=st.integers(0, 999),
)
def test_against_reference(case, dtype, shape, kinds, layout, seed):
    rng = np.random.default_rng(seed)
    rows, cols = (make_set(kind, size, rng) for kind, size in zip(kinds, shape, strict=True))
    kept = count(rows, shape[0]), count(cols, shape[1])
    grad = rng.standard_normal(kept).astype(dtype)
    if layout == "broadcast":
        grad = np.broadcast_to(grad[:1, :], kept)
    elif layout == "read-only":
        grad.flags.writeable = False
    else:
        grad, _ = laid_out(grad, layout)
    assert_updates(case, shape, grad, rows, cols)


@pytest.mark.parametrize("case", RULES, ids=lambda case: type(case[0]).__name__)
@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_dimension(case, kind, dtype):
    rule, function, slots = case
    for size in (0, 1, 7, 100):
        rng = np.random.default_rng(size)
        cols = make_set(kind, size, rng)
        inside = (np.arange(size) if cols is None else cols.indices,)
        grad = rng.standard_normal(count(cols, size)).astype(dtype)
        value, memory = start((size,), slots, dtype, inside)
        wanted_value, wanted_memory = value.copy(), memory.copy()
        function(rule, wanted_value, wanted_memory, inside[0], grad)
        update_block(rule, value, memory, grad, cols=cols)
        assert_same_bits(value, wanted_value)
        assert_same_bits(memory, wanted_memory)
        doubled = np.repeat(grad, 2)[::2]
        update_block(rule, value, memory, doubled[::-1], cols=cols)
        function(rule, wanted_value, wanted_memory, inside[0], grad[::-1])
        assert_same_bits(value, wanted_value)


@pytest.mark.parametrize("case", RULES, ids=lambda case: type(case[0]).__name__)
def test_weights_in_part_of_an_array_leave_the_rest(case):
    whole = canary((9, 7, 5), np.float32)
    before = whole.copy()
    value = whole[4]  # C-contiguous, with neighbours on both sides
    value[...] = 1
    grad = np.ones((7, 2), np.float32)
    memory = np.ones((case[2], 7, 5), np.float32)
    update_block(case[0], value, memory, grad, cols=[1, 3])
    value[...] = before[4]
    assert_same_bits(whole, before)


@pytest.mark.parametrize("kinds", [("none", "none"), ("half", "most"), ("one", "none")])
def test_large_blocks_too(kinds):
    rng = np.random.default_rng(1)
    shape = (300, 500)
    rows, cols = (make_set(kind, size, rng) for kind, size in zip(kinds, shape, strict=True))
    grad = rng.standard_normal((count(rows, 300), count(cols, 500)))
    for case in RULES:
        assert_updates(case, shape, grad, rows, cols)


def test_all_axes_but_the_last_are_rows():
    value, slots = np.random.default_rng(0).random((2, 2, 3, 5))
    slots = slots[None]
    wanted, wanted_slots = value.copy().reshape(6, 5), slots.copy().reshape(1, 6, 5)
    rule, grad = rules.NAGRule(0.9, 0.1, 1.9), np.ones((2, 5))
    update_block(rule, value, slots, grad, rows=[1, 4])
    update_block(rule, wanted, wanted_slots, grad, rows=[1, 4])
    assert_same_bits(value.reshape(6, 5), wanted)
    assert_same_bits(slots.reshape(1, 6, 5), wanted_slots)


def test_several_updates_are_done_in_their_order():
    value, other = np.ones((2, 3))
    one, two = (BlockUpdate(rules.SGDRule, array, np.empty((0, 3))) for array in (value, other))
    rule, decay, grad = rules.SGDRule(1.0, 0.0), rules.SGDRule(0.5, 1.0), np.ones(3)
    update_blocks([one.check(rule, grad), two.check(rule, grad), one.check(decay, grad)])
    assert (value == -0.5).all()
    assert (other == 0).all()


def test_nan_in_a_gradient_stays_in_its_place():
    value, grad = np.zeros((3, 4)), np.zeros((3, 2))
    grad[1, 1] = np.nan
    update_block(rules.SGDRule(1.0, 0.0), value, np.zeros((0, 3, 4)), grad, cols=[0, 2])
    assert np.argwhere(np.isnan(value)).tolist() == [[1, 2]]


class TestBadInput:
    @staticmethod
    def call(**changes):
        call = {
            "rule": rules.NAGRule(0.9, 0.1, 1.9),
            "value": np.ones((4, 5)),
            "slots": np.ones((1, 4, 5)),
            "grad": np.ones((2, 5)),
            "rows": [0, 2],
            "cols": None,
        }
        return call | changes

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"rule": (0.9, 0.1)}, TypeError, "^no element rule is declared for tuple"),
            ({"rule": rules.NAGRule("a", 0, 0)}, TypeError, "^rule.*momentum.*'?(a|str)"),
            ({"value": [[1.0]]}, TypeError, "^value must be a NumPy array.*, got list"),
            ({"value": np.array(1.0)}, ValueError, r"^value .*dimension, got shape \(\)"),
            ({"value": np.ones((4, 5), int)}, TypeError, "^value must be float32 or .* int64"),
            ({"value": np.ones((4, 10))[:, ::2]}, ValueError, "^value must be .*C-contiguous"),
            ({"value": laid_out(np.ones((4, 5)), "F")[0]}, ValueError, "^value .*C-contiguous"),
            ({"value": np.broadcast_to(1.0, (4, 5))}, ValueError, "^value must be writeable"),
            ({"value": laid_out(np.ones((4, 5)), "unaligned")[0]}, ValueError, "^value .*aligned"),
            ({"slots": None}, TypeError, "^slots must be a NumPy array.*, got NoneType"),
            ({"slots": np.ones((2, 4, 5))}, ValueError, r"^slots .*\(1, 4, 5\), got \(2, 4, 5\)"),
            ({"slots": np.ones((4, 5))}, ValueError, r"^slots .*\(1, 4, 5\), got \(4, 5\)"),
            ({"slots": np.ones((1, 4, 5), "f")}, TypeError, "^slots .*float64, got float32"),
            ({"slots": np.ones((1, 5, 4)).swapaxes(1, 2)}, ValueError, "^slots .*C-contiguous"),
            ({"grad": [[1.0] * 5] * 2}, TypeError, "^grad must be a NumPy array.*, got list"),
            ({"grad": np.ones((4, 5))}, ValueError, r"^grad .*\(2, 5\), got \(4, 5\)"),
            ({"grad": np.ones(5)}, ValueError, r"^grad .*\(2, 5\), got \(5,\)"),
            ({"grad": np.ones((2, 5), "f")}, TypeError, "^grad .*float64, got float32"),
            ({"rows": [2, 0]}, ValueError, "^rows must be ascending and unique, got 2"),
            ({"rows": [0, 4]}, ValueError, r"^rows must be in \[0, 4\), got 4"),
            ({"rows": []}, ValueError, "^rows is empty"),
            ({"cols": [0.0] * 5}, TypeError, "^cols must hold integers or booleans, got .*float64"),
            ({"cols": [True] * 4}, ValueError, "^cols is a boolean mask of length 4"),
            ({"cols": IndexSet.all(6)}, ValueError, "^cols is a set of 6 units, the axis has 5"),
        ],
    )
    def test_is_refused_before_anything_is_changed(self, changes, error, message):
        call = self.call(**changes)
        before = {name: np.copy(call[name]) for name in ("value", "slots", "grad")}
        with pytest.raises(error, match=message):
            update_block(**call)
        for name, array in before.items():
            np.testing.assert_array_equal(np.asarray(call[name]), array)

    def test_rows_of_one_dimension(self):
        value = np.ones(5)
        with pytest.raises(ValueError, match=r"^rows must be None"):
            update_block(rules.SGDRule(0.1, 0.0), value, np.ones((0, 5)), np.ones(5), rows=[0])
        np.testing.assert_array_equal(value, 1)

    def test_arrays_that_overlap(self):
        memory = np.arange(40.0)
        value, rest = memory[:20].reshape(4, 5), memory[20:].reshape(1, 4, 5)
        for name, changes in {
            "slots overlaps value": {"slots": memory[8:28].reshape(1, 4, 5)},
            "grad overlaps value": {"grad": value[:2]},
            "grad overlaps slots": {"grad": rest[0, :2]},
        }.items():
            before = memory.copy()
            with pytest.raises(ValueError, match=name.replace(" ", ".*")):
                update_block(**self.call(**({"value": value, "slots": rest} | changes)))
            assert_same_bits(memory, before)

    @pytest.mark.parametrize("slots", [-1, 3, 1.5])
    def test_number_of_slots(self, slots):
        with pytest.raises(ValueError, match=f"^slots must be 0, 1 or 2, got {slots}"):
            element_rule(rules.SGDRule, slots)


def test_a_class_has_one_rule():
    """A second one would be ignored where the first was compiled, here or in the cache."""

    class Own(NamedTuple):
        lr: float

    def own(rule, w, slots, j, g):
        w[j] = w[j] - rule.lr * g

    element_rule(Own, slots=0)(own)
    element_rule(Own, slots=0)(own)  # the same again does no harm
    with pytest.raises(ValueError, match=r"^hyper .*Own"):
        element_rule(Own, slots=0)(lambda rule, w, slots, j, g: None)
    value = np.zeros((1, 3))
    update_block(Own(1.0), value, np.zeros((0, 1, 3)), np.ones((1, 3)))
    np.testing.assert_array_equal(value, -1)


def test_many_threads_on_few_rows(monkeypatch):
    monkeypatch.setattr(update_module, "_SERIAL_BELOW", 0)
    rng = np.random.default_rng(2)
    for shape in ((0, 4), (1, 9), (3, 50), (40, 1)):
        for case in RULES:
            assert_updates(case, shape, rng.standard_normal(shape), None, None)


def test_one_parameter_over_many_steps():
    rng = np.random.default_rng(0)
    value, slots = rng.standard_normal((9, 30)), np.zeros((1, 9, 30))
    expected_value, expected_slots = value.copy(), slots.copy()
    rule = rules.NAGRule(0.9, 0.01, 1.9)
    update = BlockUpdate(rules.NAGRule, value, slots)
    for _ in range(5):
        rows, cols = (sample_units(IndexSet.all(n), n // 2, rng) for n in (9, 30))
        grad = rng.standard_normal((len(rows), len(cols)))
        update(rule, grad, rows, cols)
        update_block(rule, expected_value, expected_slots, grad, rows, cols)
    np.testing.assert_array_equal(value, expected_value)
    np.testing.assert_array_equal(slots, expected_slots)
    with pytest.raises(TypeError, match=r"^rule must be a NAGRule, got MomentumRule"):
        update(rules.MomentumRule(0.9, 1.0, 0.0, 0.0, 0.1), grad, rows, cols)


@pytest.mark.skipif(not IS_X86, reason="other CPUs take denormal numbers as fast as any")
def test_momentum_that_fades_becomes_zero():
    tiny = np.finfo(np.float32).smallest_normal
    for cols in (None, np.arange(0, 40, 2)):
        active = slice(None) if cols is None else cols
        value, slots = np.ones((3, 40), np.float32), np.full((1, 3, 40), 4 * tiny, np.float32)
        update = BlockUpdate(rules.NAGRule, value, slots)
        grad = np.zeros(value[:, active].shape, np.float32)
        for _ in range(4):
            update(rules.NAGRule(0.5, 0.1, 1.5), grad, cols=cols)
            assert ((slots == 0) | (slots >= tiny)).all()
        np.testing.assert_array_equal(slots[0][:, active], 0)
    # The caller's arithmetic stays as it was.
    assert np.float32(tiny) / np.float32(2) > 0
