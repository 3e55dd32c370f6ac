from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbadrop.autograd import (
    Block,
    Variable,
    add,
    check_grads,
    multiply,
    negative,
    no_grad,
    primitive,
    subtract,
)
from numbadrop.index_set import IndexSet


@primitive
def cube(x):
    return x**3


@cube.gradient("x")
def _(g, out, x):
    return 3 * g * x * x


def leaf(*values):
    return Variable(np.array(values, float), requires_grad=True)


shapes = st.sampled_from([((), ()), ((3,), (3,)), ((2, 3), (3,)), ((2, 1), (3,)), ((), (2, 2))])


@pytest.mark.parametrize("op", [add, subtract, multiply])
@given(shapes=shapes, swap=st.booleans(), seed=st.integers(0, 99))
def test_arithmetic_has_the_gradients_of_broadcasting(op, shapes, swap, seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal(shape) for shape in (shapes[::-1] if swap else shapes))
    check_grads(op, [a, b])
    check_grads(negative, [a])


def test_operators_take_plain_numbers_and_arrays_on_either_side():
    x = leaf(2.0, 3.0)
    y = 1.0 - np.array([1.0, 2.0]) * x + x * 4.0 - (-x) - 5.0 + np.ones(2)
    np.testing.assert_array_equal(y.value, [5.0, 6.0])
    y.backward(np.ones(2))
    np.testing.assert_array_equal(x.grad, [4.0, 3.0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept(dtype):
    x = Variable(np.ones(2, dtype), requires_grad=True)
    y = cube(x * 0.5 - 1.0) + x
    assert y.dtype == dtype
    y.backward(np.ones(2, dtype))
    assert x.grad.dtype == dtype


@pytest.mark.parametrize("op", [add, subtract, multiply])
def test_a_promoted_argument_gets_a_gradient_of_its_own_dtype(op):
    a, b = Variable(np.ones(2, "f"), requires_grad=True), leaf(2.0, 3.0)
    op(a, b).backward(np.ones(2))
    op(b, a).backward(np.ones(2))
    assert (a.grad.dtype, b.grad.dtype) == (np.float32, np.float64)


def test_a_value_that_was_changed_since_the_forward_pass_is_not_used():
    a, b = leaf(2.0), leaf(3.0)
    before, after = a * b, a + b
    b.value += 1
    b.version += 1
    with pytest.raises(RuntimeError, match="argument 'b' of multiply has been changed since"):
        before.backward()
    (a * b).backward()
    assert a.grad == 4.0
    with pytest.raises(RuntimeError, match="argument 'b' of add has been changed since"):
        after.backward()


def test_a_variable_used_twice_gets_the_sum():
    # The diamond: y must not run back before both of its users have.
    x = leaf(2.0)
    y = cube(x)
    (y * y + y * x).backward(np.ones(1))
    np.testing.assert_allclose(x.grad, 6 * 2.0**5 + 4 * 2.0**3)


@given(seed=st.integers(0, 999))
def test_random_graphs(seed):
    def build(a, b):
        rng = np.random.default_rng(seed)
        nodes = [a, b]
        for _ in range(8):
            left, right = (nodes[rng.integers(len(nodes))] for _ in range(2))
            nodes.append([left + right, left - right, left * right, -left][rng.integers(4)])
        return nodes[-1] + 0.1 * a * b

    check_grads(build, [np.array([0.5, -0.7]), np.array([0.9, 0.3])], rtol=1e-5, atol=1e-7)


def test_accumulation_never_writes_into_a_shared_gradient():
    a, b = leaf(1.0, 2.0), leaf(3.0, 4.0)
    seed = np.array([1.0, 1.0])
    (a + b).backward(seed)
    assert a.grad is b.grad  # No copies are made ...
    (a * 5.0).backward(np.ones(2))
    np.testing.assert_array_equal(a.grad, [6.0, 6.0])
    np.testing.assert_array_equal(b.grad, [1.0, 1.0])  # ... and nobody is surprised.
    np.testing.assert_array_equal(seed, [1.0, 1.0])


def test_only_needed_rules_run():
    @primitive
    def product(a, b):
        return a * b

    @product.gradient("b")
    def _(g, out, a, b):
        return g * a

    w = leaf(3.0)
    product(np.array([2.0]), w).backward()  # There is no rule for a, and it is not missed.
    assert w.grad == 2.0
    with pytest.raises(TypeError, match="product has no gradient rule for argument 'a'"):
        product(w, w)


def test_rules_share_what_is_prepared_once():
    calls = []

    @primitive
    def product(a, b, factor):
        return factor * a * b

    @product.prepare
    def _(g, out, a, b, factor):
        calls.append(out)
        return {"scaled": factor * g}

    @product.gradient("a")
    def _(prepared, out, a, b, factor):
        return prepared["scaled"] * b

    @product.gradient("b")
    def _(prepared, out, a, b, factor):
        return prepared["scaled"] * a

    check_grads(product, [np.array([2.0, 3.0]), np.array([5.0, 7.0]), 4.0])
    calls.clear()
    product(leaf(2.0), leaf(3.0), 4.0).backward()
    np.testing.assert_array_equal(calls, [[24.0]])


def test_defaults_and_names_of_arguments():
    @primitive
    def shifted(x, by=1.0):
        return x + by

    @shifted.gradient("x")
    def _(g, out, x, by):
        return g * by

    x = leaf(0.0)
    (shifted(x) + shifted(by=10.0, x=x)).backward()
    assert x.grad == 11.0
    with pytest.raises(TypeError, match="unexpected keyword argument 'to'"):
        shifted(x, to=1.0)


def test_a_long_chain_needs_no_recursion():
    x = leaf(1.0)
    y = x
    for _ in range(20_000):
        y = y + 1.0
    y.backward()
    assert x.grad == 1.0


def test_backward_frees_the_records():
    x = leaf(2.0)
    y = cube(x)
    z = y + 1.0
    z.backward()
    for again in (z, y, y * 2.0):
        with pytest.raises(RuntimeError, match="already freed"):
            again.backward()
    assert x.grad == 12.0


def test_no_grad_is_of_one_thread_and_ends():
    x = leaf(1.0)
    seen = []
    with no_grad():
        thread = threading.Thread(target=lambda: seen.append(cube(x).requires_grad))
        thread.start()
        thread.join()
        seen.append(cube(x).requires_grad)
    seen.append(cube(x).requires_grad)
    assert seen == [True, False, True]
    with pytest.raises(RuntimeError, match="stop"), no_grad():
        raise RuntimeError("stop")
    assert cube(x).requires_grad


@given(
    rows=st.sets(st.integers(0, 3), min_size=1),
    cols=st.sets(st.integers(0, 2), min_size=1),
    other=st.sets(st.integers(0, 3), min_size=1),
)
def test_block_stands_for_its_dense_array(rows, cols, other):
    def block(rows):
        index = (IndexSet(sorted(rows), 4), IndexSet(sorted(cols), 3))
        return Block(np.arange(1.0, 1 + len(rows) * len(cols)).reshape(len(rows), -1), index)

    a, b, full = block(rows), block(other), np.ones((4, 3))
    dense = np.zeros((4, 3))
    for i, row in enumerate(sorted(rows)):
        for j, col in enumerate(sorted(cols)):
            dense[row, col] = a.values[i, j]
    np.testing.assert_array_equal(a.dense(), dense)
    total = a + b
    assert [set(units.indices) for units in total.index] == [set(rows) | set(other), set(cols)]
    np.testing.assert_array_equal(total.dense(), a.dense() + b.dense())
    single = Block(a.values.astype(np.float32), a.index)
    for doubled in (2 * single, single * 2.0, np.float64(2) * single):
        assert doubled.index == a.index
        assert doubled.dtype == np.float32
        np.testing.assert_array_equal(doubled.values, a.values * 2)
    np.testing.assert_array_equal(a + full, full + a)
    np.testing.assert_array_equal(a + full, 1 + dense)


def test_a_block_for_an_inner_variable_is_made_dense():
    @primitive
    def first(x):
        return x[:1]

    @first.gradient("x")
    def _(g, out, x):
        return Block(g, (IndexSet([0], 2),))

    x = leaf(3.0, 4.0)
    first(cube(x)).backward()
    np.testing.assert_array_equal(x.grad, [27.0, 0.0])
    y = leaf(3.0, 4.0)
    first(y).backward()
    assert isinstance(y.grad, Block)


class TestCheckGrads:
    def test_finds_one_wrong_element_of_one_argument(self):
        @primitive
        def bilinear(a, b):
            return a @ b

        @bilinear.gradient("a")
        def _(g, out, a, b):
            return g @ b.T

        @bilinear.gradient("b")
        def _(g, out, a, b):
            wrong = a.T @ g
            wrong[2, 1] *= 1.001
            return wrong

        a, b = np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(3, 2) - 2
        with pytest.raises(AssertionError, match=r"bilinear for b is wrong at \(2, 1\)"):
            check_grads(bilinear, [a, b])
        check_grads(bilinear, [a, Variable(b)])  # Held fixed, so not looked at.

    def test_nan_is_wrong(self):
        @primitive
        def nothing(x):
            return x * 1

        @nothing.gradient("x")
        def _(g, out, x):
            return g * np.nan

        with pytest.raises(AssertionError, match=r"nothing for x is wrong at \(\)"):
            check_grads(nothing, [np.array(1.0)])

    def test_a_gradient_that_never_arrives_is_wrong(self):
        with pytest.raises(AssertionError, match="the rule gives 0"):
            check_grads(lambda a, b: cube(a) + b.value * 2.0, [np.array([1.0]), np.array([1.0])])

    def test_wants_something_to_check(self):
        with pytest.raises(ValueError, match="at least one ndarray of floats"):
            check_grads(cube, [3])


class TestBadInput:
    def test_backward(self):
        with pytest.raises(RuntimeError, match="requires a gradient"):
            Variable(1.0).backward()
        x = leaf(1.0, 2.0)
        with pytest.raises(ValueError, match=r"gradient must be given for a value of shape \(2,\)"):
            cube(x).backward()
        with pytest.raises(ValueError, match=r"gradient must have shape \(2,\), got \(3,\)"):
            cube(x).backward(np.ones(3))
        with pytest.raises(TypeError, match="gradient must be float64, got float32"):
            cube(x).backward(np.ones(2, np.float32))

    @pytest.mark.parametrize(
        ("error", "message", "result"),
        [
            (ValueError, r"gradient of odd for argument 'x' must have shape \(2,\)", np.ones(3)),
            (TypeError, "gradient of odd for argument 'x' must be float64", np.ones(2, "f4")),
        ],
    )
    def test_a_rule_that_does_not_fit(self, error, message, result):
        @primitive
        def odd(x):
            return x * 1

        odd.gradient("x")(lambda g, out, x: result)
        with pytest.raises(error, match=message):
            odd(leaf(1.0, 2.0)).backward(np.ones(2))

    def test_declarations(self):
        with pytest.raises(ValueError, match=r"cube has no argument 'y', it has \['x'\]"):
            cube.gradient("y")
        with pytest.raises(TypeError, match=r"named arguments only, many has \*xs"):

            @primitive
            def many(*xs):
                return sum(xs)

        with pytest.raises(TypeError, match="must hold floats to have a gradient, got int64"):
            Variable([1, 2], requires_grad=True)
        with pytest.raises(ValueError, match=r"shape \(2,\), index wants \(1,\)"):
            Block(np.ones(2), (IndexSet([0], 2),))
