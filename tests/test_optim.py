from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbadrop.autograd import Block
from numbadrop.index_set import IndexSet
from numbadrop.kernels import sample_units
from numbadrop.nn import Conv2d, Linear, Parameter, Sequential
from numbadrop.optim import NAG, SGD, Adam, AdamW, rules, schedules

ALL = [
    (SGD, {"lr": 0.1}),
    (SGD, {"lr": 0.1, "weight_decay": 0.3}),
    (SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3}),
    (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.4}),
    (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.3}),
    (NAG, {"lr": 0.1, "momentum": 0.9}),
    (Adam, {"lr": 0.1}),
    (Adam, {"lr": 0.1, "betas": (0.5, 0.8), "eps": 1e-3, "weight_decay": 0.3}),
    (AdamW, {"lr": 0.1, "weight_decay": 0.3}),
]
every_optimizer = pytest.mark.parametrize(("make", "options"), ALL)
LINEAR = [(make, options) for make, options in ALL if make in (SGD, NAG)]

units = st.sets(st.integers(0, 5), min_size=1).map(lambda kept: IndexSet(sorted(kept), 6))


def draw_blocks(rng, count):
    """Gradients of a (6, 6) matrix and a (6,) vector, as blocks on random units."""
    for _ in range(count):
        rows, cols = (sample_units(IndexSet.all(6), int(rng.integers(1, 7)), rng) for _ in range(2))
        yield (
            Block(rng.standard_normal((len(rows), len(cols))), (rows, cols)),
            Block(rng.standard_normal(len(cols)), (cols,)),
        )


def state_of(optimizer):
    return {name: np.copy(value) for name, value in optimizer.state_dict().items()}


class TestAgainstPyTorch:
    """Dense gradients: the same numbers as the optimizers of the same names."""

    @pytest.mark.parametrize(("make", "options"), [o for o in ALL if o[0] is not NAG])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_dense(self, make, options, dtype):
        torch = pytest.importorskip("torch")
        rng = np.random.default_rng(0)
        parameters = [Parameter(rng.standard_normal(n).astype(dtype)) for n in ((3, 4), 5)]
        theirs = [torch.tensor(p.value, requires_grad=True) for p in parameters]
        ours, other = make(parameters, **options), getattr(torch.optim, make.__name__)(theirs)
        for group in other.param_groups:
            group.update(options)
        for step in range(20):
            ours.lr_scale = 0.95**step
            other.param_groups[0]["lr"] = options["lr"] * 0.95**step
            for parameter, tensor in zip(parameters, theirs, strict=True):
                parameter.grad = rng.standard_normal(parameter.shape).astype(dtype)
                tensor.grad = torch.tensor(parameter.grad)
            ours.step()
            other.step()
        for parameter, tensor in zip(parameters, theirs, strict=True):
            assert parameter.dtype == dtype
            tolerance = 50 * np.finfo(dtype).eps
            expected = tensor.detach().numpy()
            np.testing.assert_allclose(parameter.value, expected, rtol=tolerance, atol=tolerance)

    @pytest.mark.parametrize(("make", "options"), [o for o in ALL if o[0] is SGD])
    def test_catching_up_is_a_masked_dense_step(self, make, options):
        torch = pytest.importorskip("torch")
        rng = np.random.default_rng(1)
        parameters = [Parameter(rng.standard_normal(shape)) for shape in ((6, 6), (6,))]
        theirs = [torch.tensor(p.value, requires_grad=True) for p in parameters]
        ours = make(parameters, **options, inactive="catch_up")
        other = torch.optim.SGD(theirs, **options)
        for step, blocks in enumerate(draw_blocks(rng, 600)):
            ours.lr_scale = other.param_groups[0]["lr"] = 1 / (1 + step)
            other.param_groups[0]["lr"] *= options["lr"]
            for parameter, tensor, block in zip(parameters, theirs, blocks, strict=True):
                parameter.grad, tensor.grad = block, torch.tensor(block.dense())
            ours.step()
            other.step()
            if step % 50 == 0:
                for parameter, tensor, block in zip(parameters, theirs, blocks, strict=True):
                    parameter.refresh(*block.index)
                    at = np.ix_(*(kept.indices for kept in block.index))
                    expected = tensor.detach().numpy()[at]
                    np.testing.assert_allclose(parameter.value[at], expected, rtol=1e-11)
        ours.catch_up()
        for parameter, tensor in zip(parameters, theirs, strict=True):
            np.testing.assert_allclose(parameter.value, tensor.detach().numpy(), rtol=1e-11)


class TestRules:
    """The rule that Numba compiles is the rule that NumPy runs."""

    @pytest.mark.parametrize(
        ("rule", "slots"),
        [
            (rules.SGDRule(0.1, 0.2), 0),
            (rules.MomentumRule(0.9, 0.7, 0.2, 0.1, 0.05), 1),
            (rules.NAGRule(0.9, 0.01, 1.9), 1),
            (rules.AdamRule(0.9, 0.1, 0.99, 0.01, 0.1, 1.5, 1e-3, 0.2, 0.95), 2),
        ],
    )
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @given(rows=units, cols=units, seed=st.integers(0, 99))
    def test_same_for_numba_and_numpy(self, rule, slots, dtype, rows, cols, seed):
        from numbadrop.kernels import reference, update_block

        function = {
            rules.SGDRule: rules.sgd,
            rules.MomentumRule: rules.momentum,
            rules.NAGRule: rules.nag,
            rules.AdamRule: rules.adam,
        }[type(rule)]
        rng = np.random.default_rng(seed)
        value = rng.standard_normal((6, 6)).astype(dtype)
        kept = rng.random((slots, 6, 6)).astype(dtype)
        grad = rng.standard_normal((len(rows), len(cols))).astype(dtype)
        expected_value, expected_kept = value.copy(), kept.copy()
        reference.update_block(function, rule, expected_value, expected_kept, grad, rows, cols)
        update_block(rule, value, kept, grad, rows, cols)
        tolerance = 8 * np.finfo(dtype).eps
        np.testing.assert_allclose(value, expected_value, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(kept, expected_kept, rtol=tolerance, atol=tolerance)

    def test_nag_is_momentum_descent_seen_one_step_ahead(self):
        # Sutskever et al. 2013, equations 3 and 4: v = mu v - step g(theta + mu v); theta += v.
        def gradient(theta):
            return np.array([1.0, 10.0]) * theta

        mu, lr = 0.8, 0.3
        theta, v = np.array([1.0, -2.0]), np.zeros(2)
        parameter = Parameter(theta)
        optimizer = NAG([parameter], lr, mu)
        for _ in range(10):
            parameter.grad = gradient(parameter.value)
            optimizer.step()
            v = mu * v - lr * (1 - mu) * gradient(theta + mu * v)
            theta = theta + v
            np.testing.assert_allclose(parameter.value, theta + mu * v, rtol=1e-12)


class TestFrozen:
    @every_optimizer
    @given(seed=st.integers(0, 99))
    def test_a_step_is_the_dense_step_where_active_and_nothing_elsewhere(self, make, options, seed):
        rng = np.random.default_rng(seed)
        w, b = rng.standard_normal((6, 6)), rng.standard_normal(6)
        ours, dense = ([Parameter(w), Parameter(b)] for _ in range(2))
        optimizer, other = make(ours, **options), make(dense, **options)
        for blocks in draw_blocks(rng, 4):
            before = [(p.value.copy(), np.copy(optimizer._states[p].slots)) for p in ours]
            for parameter, twin, block in zip(ours, dense, blocks, strict=True):
                parameter.grad, twin.grad = block, block.dense()
            optimizer.step()
            other.step()
            for parameter, twin, block, (value, slots) in zip(
                ours, dense, blocks, before, strict=True
            ):
                active = np.ix_(*(kept.indices for kept in block.index))
                expected, expected_slots = value, slots
                expected[active] = twin.value[active]
                new_slots = other._states[twin].slots
                expected_slots[(..., *active)] = new_slots[(..., *active)]
                np.testing.assert_array_equal(parameter.value, expected)
                np.testing.assert_array_equal(optimizer._states[parameter].slots, expected_slots)
                twin.value[...], new_slots[...] = expected, expected_slots

    def test_two_parameters_with_one_value_are_updated_in_turn(self):
        one, two = Parameter(np.ones(2)), Parameter(np.ones(2))
        two.value = one.value
        optimizer = SGD([one, two], lr=1.0)
        one.grad = two.grad = np.ones(2)
        optimizer.step()
        np.testing.assert_array_equal(one.value, -1)

    def test_a_parameter_without_a_gradient_is_left_alone(self):
        a, b = Parameter(np.ones(2)), Parameter(np.ones(2))
        optimizer = SGD([a, b], lr=1.0, weight_decay=0.5)
        a.grad = np.zeros(2)
        optimizer.step()
        np.testing.assert_array_equal(a.value, [0.5, 0.5])
        np.testing.assert_array_equal(b.value, [1, 1])
        optimizer.zero_grad()
        assert a.grad is None


class TestCatchUp:
    @pytest.mark.parametrize(("make", "options"), LINEAR)
    @pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-4), (np.float64, 1e-11)])
    def test_equals_dense_steps(self, make, options, dtype, tolerance):
        rng = np.random.default_rng(0)
        values = [rng.standard_normal(shape).astype(dtype) for shape in ((6, 6), (6,))]
        ours, dense = ([Parameter(v) for v in values] for _ in range(2))
        optimizer, other = make(ours, **options, inactive="catch_up"), make(dense, **options)
        for step, blocks in enumerate(draw_blocks(rng, 300)):
            optimizer.lr_scale = other.lr_scale = math.cos(step / 200)
            for parameter, twin, block in zip(ours, dense, blocks, strict=True):
                parameter.grad = Block(block.values.astype(dtype), block.index)
                twin.grad = parameter.grad.dense()
            optimizer.step()
            other.step()
        state, expected = optimizer.state_dict(), other.state_dict()
        for number, (parameter, twin) in enumerate(zip(ours, dense, strict=True)):
            np.testing.assert_allclose(parameter.value, twin.value, rtol=tolerance, atol=tolerance)
            assert state[f"{number}.steps"] == expected[f"{number}.steps"] == 300
            if f"{number}.slots" in expected:
                np.testing.assert_allclose(
                    state[f"{number}.slots"],
                    expected[f"{number}.slots"],
                    rtol=tolerance,
                    atol=tolerance,
                )

    def test_only_the_block_is_touched(self):
        parameter = Parameter(np.ones((3, 3)))
        optimizer = NAG([parameter], lr=0.1, inactive="catch_up")
        parameter.grad = np.ones((3, 3))
        optimizer.step()
        before = parameter.value.copy()
        some = IndexSet([1], 3)
        parameter.grad = Block(np.ones((1, 1)), (some, some))
        optimizer.step()
        outside = ~np.outer(some.mask(), some.mask())
        np.testing.assert_array_equal(parameter.value[outside], before[outside])
        parameter.refresh(some, None)
        assert (parameter.value[1] != before[1]).all()
        np.testing.assert_array_equal(parameter.value[[0, 2]], before[[0, 2]])
        parameter.refresh()
        assert (parameter.value != before).all()

    def test_a_model_never_shows_stale_weights(self):
        def run(inactive):
            net = Sequential(Linear(4, 3, dtype=np.float64)).seed(0)
            weight = net.layers[0].weight
            optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9, inactive=inactive)
            some = IndexSet([0], 4), IndexSet([1], 3)
            for _ in range(3):
                block = Block(np.ones((1, 1)), some)
                weight.grad = block if inactive == "catch_up" else block.dense()
                optimizer.step()
                weight.grad = np.ones((4, 3))
                optimizer.step()
                weight.grad = block if inactive == "catch_up" else block.dense()
                optimizer.step()
            return net, optimizer

        (net, _), (dense, _) = run("catch_up"), run("frozen")
        x = np.ones((2, 4))
        np.testing.assert_allclose(net(x).value, dense(x).value, rtol=1e-13)
        (net, _) = run("catch_up")
        for name, value in net.state_dict().items():
            np.testing.assert_allclose(value, dense.state_dict()[name], rtol=1e-13)
        net, optimizer = run("catch_up")
        fresh = {name: np.full_like(value, 2.0) for name, value in net.state_dict().items()}
        net, optimizer = run("catch_up")
        net.load_state_dict(fresh)  # No missed step may change what was loaded.
        optimizer.catch_up()
        assert (net.layers[0].weight.value == 2).all()
        net, optimizer = run("catch_up")
        net.seed(3)
        drawn = net.layers[0].weight.value.copy()
        optimizer.catch_up()
        np.testing.assert_array_equal(net.layers[0].weight.value, drawn)

    @pytest.mark.parametrize("make", [Adam, AdamW])
    def test_adam_refuses(self, make):
        with pytest.raises(
            ValueError, match="knows inactive='frozen' only: its step is not linear"
        ):
            make([Parameter(np.ones(2))], inactive="catch_up")

    @pytest.mark.parametrize("inactive", ["frozen", "catch_up"])
    def test_an_optimizer_takes_over_from_another(self, inactive):
        parameter = Parameter(np.ones(2))
        first = NAG([parameter], lr=0.1, inactive="catch_up")
        for grad in (np.ones(2), Block(np.ones(1), (IndexSet([0], 2),))):
            parameter.grad = grad
            first.step()
        stale = parameter.value.copy()
        NAG([parameter], lr=0.1, inactive=inactive)
        taken_over = parameter.value.copy()
        assert (taken_over != stale).any()
        parameter.refresh()
        first.catch_up()
        np.testing.assert_array_equal(parameter.value, taken_over)

    def test_who_was_taken_over_from_takes_no_step(self):
        parameter = Parameter(np.ones(2))
        first = NAG([parameter], lr=0.1, inactive="catch_up")
        Adam([parameter])
        parameter.grad = np.ones(2)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="parameter 0 belongs to an optimizer that was"):
                first.step()
        np.testing.assert_array_equal(parameter.value, 1)


class TestFrozenSums:
    def test_the_sum_of_two_blocks_leaves_the_rest_alone(self):
        parameter = Parameter(np.ones((4, 4)))
        optimizer = SGD([parameter], lr=0.1, weight_decay=0.5)
        for row, col in ((0, 1), (2, 1)):
            block = Block(np.ones((1, 1)), (IndexSet([row], 4), IndexSet([col], 4)))
            parameter.grad = block if parameter.grad is None else parameter.grad + block
        optimizer.step()
        changed = np.zeros((4, 4), bool)
        changed[[0, 2], 1] = True
        np.testing.assert_array_equal(parameter.value != 1, changed)


class TestGroups:
    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("lr", -0.1, r"lr must be in \[0, inf\), got -0.1"),
            ("lr", math.nan, r"lr must be in \[0, inf\), got nan"),
            ("betas", (0.9, 1.0), r"betas\[1\] must be in \[0, 1\), got 1"),
            ("lr_scale", math.nan, "lr_scale must be a finite number and not negative, got nan"),
            ("lr_scale", -1, "lr_scale must be a finite number and not negative, got -1"),
            ("lr_scale", None, "lr_scale must be a finite number and not negative, got None"),
        ],
    )
    def test_what_is_changed_later_is_checked(self, name, value, message):
        parameter = Parameter(np.ones(2))
        optimizer = Adam([parameter], lr=0.5)
        parameter.grad = np.ones(2)
        if name == "lr_scale":
            optimizer.lr_scale = value
        else:
            optimizer.param_groups[0][name] = value
        for _ in range(2):
            with pytest.raises(ValueError, match=message):
                optimizer.step()
        assert (parameter.value == 1).all()
        optimizer.lr_scale = 1.0
        optimizer.param_groups[0].update(lr=0.25, betas=(0.5, 0.5))
        optimizer.step()
        np.testing.assert_allclose(parameter.value, 0.75)

    def test_a_list_that_is_changed_is_checked(self):
        parameter = Parameter(np.ones(2))
        optimizer = Adam([parameter], betas=[0.5, 0.5])
        parameter.grad = np.ones(2)
        optimizer.step()
        optimizer.param_groups[0]["betas"][1] = 1.0
        with pytest.raises(ValueError, match=r"betas\[1\] must be in \[0, 1\), got 1"):
            optimizer.step()

    def test_a_number_that_the_type_of_the_weights_does_not_have(self):
        parameter = Parameter(np.ones(2, np.float32))
        optimizer = SGD([parameter], lr=1e39)
        parameter.grad = np.ones(2, np.float32)
        with pytest.raises(ValueError, match=r"lr must be at most 3\.4\d*e\+38 for float32"):
            optimizer.step()
        assert (parameter.value == 1).all()

    def test_a_value_that_becomes_read_only_is_not_written(self):
        parameter = Parameter(np.ones(2))
        optimizer = SGD([parameter], lr=0.5)
        parameter.grad = np.ones(2)
        optimizer.step()
        parameter.value.flags.writeable = False
        with pytest.raises(ValueError, match="value is read-only"):
            optimizer.step()
        assert (parameter.value == 0.5).all()

    def test_each_has_its_own_hyper_parameters(self):
        a, b, c = (Parameter(np.zeros(1)) for _ in range(3))
        optimizer = SGD([{"params": [a], "lr": 1.0}, {"params": iter([b, c])}], lr=10.0)
        for parameter in (a, b, c):
            parameter.grad = np.ones(1)
        optimizer.lr_scale = 0.5
        optimizer.step()
        optimizer.param_groups[1]["lr"] = 20.0
        optimizer.step()
        assert [float(p.value[0]) for p in (a, b, c)] == [-1.0, -15.0, -15.0]

    @pytest.mark.parametrize(
        ("error", "message", "make"),
        [
            (ValueError, "params is empty", lambda p: SGD([], lr=1)),
            (TypeError, "must hold Parameters, got ndarray", lambda p: SGD([np.ones(2)], lr=1)),
            (TypeError, "dicts with 'params', got dict", lambda p: SGD([{"lr": 1}], lr=1)),
            (ValueError, r"parameter of shape \(2,\) twice", lambda p: SGD([p, p], lr=1)),
            (
                ValueError,
                r"a group of params has \['beta'\], known are \['lr', 'momentum'\]",
                lambda p: NAG([{"params": [p], "beta": 1}], lr=1),
            ),
            (ValueError, r"lr must be in \[0, inf\), got -1", lambda p: SGD([p], lr=-1)),
            (ValueError, r"lr must be in \[0, inf\), got nan", lambda p: NAG([p], lr=math.nan)),
            (ValueError, r"lr must be .* got -2", lambda p: SGD([{"params": [p], "lr": -2}], lr=1)),
            (ValueError, r"momentum must be in \[0, 1\), got 1", lambda p: NAG([p], 1, 1)),
            (ValueError, "weight_decay must be", lambda p: AdamW([p], weight_decay=-1)),
            (ValueError, r"betas\[1\] must be in \[0, 1\), got 1", lambda p: Adam([p], 1, (0, 1))),
            (ValueError, "betas must be a pair, got 0.9", lambda p: Adam([p], 1, 0.9)),
            (ValueError, "betas must be a pair, got", lambda p: AdamW([p], 1, (0.9, 0.9, 0.9))),
            (ValueError, r"got a Parameter of shape \(\)", lambda p: SGD([Parameter(1.0)], lr=1)),
            (ValueError, r"eps must be in \[2.2\d*e-308, inf\), got 0", lambda p: Adam([p], eps=0)),
            (
                ValueError,
                r"eps must be in \[1.1\d*e-38, inf\), got 1e-40",
                lambda p: Adam([p, Parameter(np.ones(1, np.float32))], eps=1e-40),
            ),
            (ValueError, "nesterov wants momentum above 0", lambda p: SGD([p], 1, nesterov=True)),
            (ValueError, "'frozen' or 'catch_up', got 'x'", lambda p: SGD([p], 1, inactive="x")),
        ],
    )
    def test_bad_input(self, error, message, make):
        with pytest.raises(error, match=message):
            make(Parameter(np.ones(2)))

    def test_momentum_cannot_appear_later(self):
        parameter = Parameter(np.ones(2))
        optimizer = SGD([parameter], lr=1.0)
        optimizer.param_groups[0]["momentum"] = 0.9
        parameter.grad = np.ones(2)
        with pytest.raises(ValueError, match="momentum was 0 when SGD was made"):
            optimizer.step()

    @pytest.mark.parametrize(
        ("error", "message", "grad"),
        [
            (ValueError, r"parameter 1 must have shape \(2,\), got \(3,\)", np.ones(3)),
            (TypeError, "parameter 1 must be float64, got float32", np.ones(2, np.float32)),
        ],
    )
    def test_a_bad_gradient_changes_nothing(self, error, message, grad):
        a, b = Parameter(np.ones(2)), Parameter(np.ones(2))
        optimizer = SGD([a, b], lr=1.0)
        a.grad, b.grad = np.ones(2), grad
        with pytest.raises(error, match=message):
            optimizer.step()
        assert (a.value == 1).all()

    @pytest.mark.parametrize("inactive", ["frozen", "catch_up"])
    @pytest.mark.parametrize("fault", ["overlap", "read-only", "rule"])
    def test_a_step_is_done_whole_or_not_at_all(self, fault, inactive):
        a, b = Parameter(np.ones(2)), Parameter(np.ones(2))
        optimizer = NAG([{"params": [a]}, {"params": [b]}], lr=1.0, inactive=inactive)
        a.grad, b.grad = Block(np.ones(1), (IndexSet([0], 2),)), np.ones(2)
        kept = optimizer.param_groups[1]["momentum"]
        if fault == "overlap":
            b.grad = b.value
        elif fault == "read-only":
            b.value.flags.writeable = False
        else:
            optimizer.param_groups[1]["momentum"] = 0.5j
        before = state_of(optimizer)
        for _ in range(2):  # A second try must not find anything half done.
            with pytest.raises((ValueError, TypeError)):
                optimizer.step()
            np.testing.assert_array_equal(a.value, 1)
        for name, value in optimizer.state_dict().items():
            np.testing.assert_array_equal(value, before[name])
        b.grad, b.value.flags.writeable = np.ones(2), True
        optimizer.param_groups[1]["momentum"] = kept
        optimizer.step()
        assert a.value[0] < 1
        assert (b.value < 1).all()


class TestState:
    @pytest.mark.parametrize("inactive", ["frozen", "catch_up"])
    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
    def test_a_copy_of_net_and_optimizer_goes_on_alone(self, inactive, duplicate):
        net = Sequential(Linear(3, 4), Linear(4, 2), Conv2d(2, 3, 2)).seed(0)
        optimizer = NAG(net.parameters(), lr=0.1, inactive=inactive)

        def step(net, optimizer):
            for parameter in net.parameters():
                some = tuple(IndexSet(np.arange((n + 1) // 2), n) for n in parameter.shape)
                block = Block(np.ones([len(units) for units in some], np.float32), some)
                parameter.grad = block
                optimizer.step()
                parameter.grad = np.ones_like(parameter.value)
            optimizer.step()
            for parameter in net.parameters():  # Of this step the rest is put off.
                parameter.grad = block if parameter.shape == block.shape else None
            optimizer.step()

        step(net, optimizer)
        other_net, other = duplicate((net, optimizer))
        before = net.state_dict()
        step(other_net, other)
        after = other_net.state_dict()
        for name, value in net.state_dict().items():
            np.testing.assert_array_equal(value, before[name])
            assert (value != after[name]).all()
        step(net, optimizer)
        for name, value in net.state_dict().items():
            # What was put off has been done in one go there, in two here.
            np.testing.assert_allclose(value, after[name], rtol=0 if inactive == "frozen" else 1e-6)

    def test_a_value_that_is_replaced_is_the_one_that_is_updated(self):
        parameter = Parameter(np.ones(3))
        optimizer = SGD([parameter], lr=1.0)
        for _ in range(2):
            parameter.value = old = parameter.value.copy()
            parameter.grad = np.ones(3)
            before = old.copy()
            optimizer.step()
            np.testing.assert_array_equal(parameter.value, before - 1)

    def test_a_value_that_is_replaced_has_missed_no_steps(self):
        parameter = Parameter(np.ones(3))
        optimizer = SGD([parameter], lr=1.0, inactive="catch_up")
        parameter.value, parameter.grad = parameter.value.copy(), np.ones(3)
        with pytest.raises(ValueError, match=r"^value of parameter 0 was replaced"):
            optimizer.step()
        np.testing.assert_array_equal(parameter.value, 1)

    def test_a_state_that_is_loaded_has_missed_no_steps(self):
        parameter = Parameter(np.ones(3))
        optimizer = NAG([parameter], lr=0.1, inactive="catch_up")
        parameter.grad = np.ones(3)
        optimizer.step()
        state = optimizer.state_dict()
        parameter.grad = Block(np.ones(1), (IndexSet([0], 3),))
        optimizer.step()
        optimizer.load_state_dict(state)
        for name, value in optimizer.state_dict().items():
            np.testing.assert_array_equal(value, state[name])

    def test_without_momentum_nothing_is_dampened(self):
        values = []
        for inactive in ("frozen", "catch_up"):
            parameter = Parameter(np.ones(2))
            optimizer = SGD([parameter], lr=0.1, dampening=0.5, inactive=inactive)
            for _ in range(3):
                parameter.grad = np.ones(2)
                optimizer.step()
            values.append(parameter.value)
        np.testing.assert_allclose(values, 0.7)

    @pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4, 5)])
    def test_a_value_that_is_replaced_by_a_transposed_one_is_refused(self, shape):
        parameter = Parameter(np.ones(shape))
        optimizer = SGD([parameter], lr=1.0)
        parameter.value, parameter.grad = np.ones(shape[::-1]).T, np.ones(shape)
        with pytest.raises(ValueError, match=r"^value of parameter 0 must be C-contiguous"):
            optimizer.step()

    @every_optimizer
    def test_resumes_bit_for_bit(self, make, options):
        def start():
            rng = np.random.default_rng(0)
            parameters = [Parameter(rng.standard_normal(shape)) for shape in ((6, 6), (6,))]
            return parameters, make(parameters, **options)

        def train(parameters, optimizer, blocks):
            for pair in blocks:
                parameters[0].grad, parameters[1].grad = pair
                optimizer.step()

        blocks = list(draw_blocks(np.random.default_rng(1), 6))
        parameters, optimizer = start()
        train(parameters, optimizer, blocks[:3])
        optimizer.lr_scale = 0.25
        values, state = [p.value.copy() for p in parameters], optimizer.state_dict()
        train(parameters, optimizer, blocks[3:])

        resumed, again = start()
        for parameter, value in zip(resumed, values, strict=True):
            parameter.value[...] = value
        again.load_state_dict(state)
        train(resumed, again, blocks[3:])
        for parameter, twin in zip(parameters, resumed, strict=True):
            np.testing.assert_array_equal(parameter.value, twin.value)
        for name, value in state_of(optimizer).items():
            np.testing.assert_array_equal(value, state_of(again)[name])

    @every_optimizer
    @pytest.mark.parametrize("inactive", ["frozen", "catch_up"])
    @pytest.mark.parametrize("shape", [(2, 3, 6, 6), (4, 6, 6)])
    def test_axes_before_the_last_are_rows(self, make, options, inactive, shape):
        """The same steps on an array and on the matrix that it is in memory, bit for bit."""
        if inactive == "catch_up" and (make, options) not in LINEAR:
            pytest.skip("not linear")
        rng = np.random.default_rng(0)
        value = rng.standard_normal(shape)
        array, matrix = Parameter(value), Parameter(value.reshape(-1, 6))
        ours, other = (make([p], **options, inactive=inactive) for p in (array, matrix))
        for step in range(12):
            sets = [sample_units(IndexSet.all(n), int(rng.integers(1, n + 1)), rng) for n in shape]
            if step % 3 == 0:
                sets[:-2] = map(IndexSet.all, shape[:-2])
            mask = np.zeros(shape, bool)
            mask[np.ix_(*(kept.indices for kept in sets))] = True
            grad = rng.standard_normal([len(kept) for kept in sets])
            if step == 7:
                sets, grad = None, rng.standard_normal(shape)
            array.grad = grad if sets is None else Block(grad, tuple(sets))
            rows = mask.reshape(-1, 6).any(axis=1)
            matrix.grad = (
                grad.reshape(-1, 6)
                if sets is None
                else Block(grad.reshape(rows.sum(), -1), (IndexSet(rows, len(rows)), sets[-1]))
            )
            before = array.value.copy(), ours._states[array].slots.copy()
            ours.step()
            other.step()
            if sets is not None:
                for now, then in zip((array.value, *ours._states[array].slots),
                                     (before[0], *before[1]), strict=True):  # fmt: skip
                    np.testing.assert_array_equal(now[~mask], then[~mask])
            np.testing.assert_array_equal(array.value.reshape(-1, 6), matrix.value)
            if step == 9:
                array.refresh(None, *[None] * (len(shape) - 2), IndexSet([1, 4], 6))
                matrix.refresh(None, IndexSet([1, 4], 6))
                np.testing.assert_array_equal(array.value.reshape(-1, 6), matrix.value)
        # To a copy and back: the state is that of the array, and steps go on bit for bit.
        state = ours.state_dict()
        twin = Parameter(array.value)
        again = make([twin], **options, inactive=inactive)
        again.load_state_dict(state)
        if "0.slots" in state:
            assert state["0.slots"].shape[1:] == shape
            slots = other.state_dict()["0.slots"]
            np.testing.assert_array_equal(state["0.slots"].reshape(slots.shape), slots)
        for parameter, optimizer in ((array, ours), (twin, again)):
            parameter.grad = np.ones(shape)
            optimizer.step()
        np.testing.assert_array_equal(twin.value, array.value)

    @pytest.mark.parametrize(
        ("error", "message", "change"),
        [
            (KeyError, "state lacks 0.slots", {"0.slots": None}),
            (KeyError, "state has the unexpected 2.slots", {"2.slots": np.ones(2)}),
            (ValueError, r"'1.slots'\] must be .*\(1, 3\), got", {"1.slots": np.ones((2, 3))}),
            (ValueError, r"'0.slots'\] must be float64", {"0.slots": np.ones((1, 2), "f4")}),
            (ValueError, r"'1.steps'\] must be int64 .* got float64", {"1.steps": 2.0}),
        ],
    )
    def test_a_state_that_does_not_fit_changes_nothing(self, error, message, change):
        optimizer = NAG([Parameter(np.ones(2)), Parameter(np.ones(3))], lr=1.0)
        before = state_of(optimizer)
        state = {name: value + 1 for name, value in before.items()} | change
        with pytest.raises(error, match=message):
            optimizer.load_state_dict({k: v for k, v in state.items() if v is not None})
        for name, value in state_of(optimizer).items():
            np.testing.assert_array_equal(value, before[name])


class TestSchedules:
    def test_values(self):
        assert schedules.constant()(7.5) == 1
        assert schedules.exponential(0.5)(3) == math.exp(-1.5)
        cosine = schedules.cosine(4)
        expected = [1, (1 + math.sqrt(0.5)) / 2, 0.5, 0, 0]
        np.testing.assert_allclose([cosine(e) for e in (0, 1, 2, 4, 9)], expected, atol=1e-15)
        step = schedules.step(1.5, 0.1)
        np.testing.assert_allclose([step(e) for e in (0, 1.4, 1.5, 3)], [1, 1, 0.1, 0.01])

    @pytest.mark.parametrize(
        ("make", "arguments", "message"),
        [
            (schedules.exponential, [-1], "rate must be finite and not negative, got -1"),
            (schedules.exponential, [math.nan], "rate must be"),
            (schedules.cosine, [0], "epochs must be finite and positive, got 0"),
            (schedules.step, [0, 0.5], "every must be finite and positive, got 0"),
            (schedules.step, [1, 0], r"factor must be in \(0, 1\], got 0"),
        ],
    )
    def test_bad_input(self, make, arguments, message):
        with pytest.raises(ValueError, match=message):
            make(*arguments)
