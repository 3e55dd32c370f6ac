"""What all optimizers share: parameter groups, slots, and updates of the active block alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from numbadrop import kernels
from numbadrop.autograd import Block
from numbadrop.index_set import as_matrix_index
from numbadrop.kernels.arrays import check_same_memory
from numbadrop.kernels.device import host_copy, is_host, to_device, to_host
from numbadrop.nn import Parameter
from numbadrop.nn.module import check_state
from numbadrop.optim.catch_up import Lag

__all__ = ["Optimizer", "Parameters", "State", "check_range"]

Array = NDArray[Any]
Parameters = Iterable[Parameter] | Iterable[Mapping[str, Any]]


@dataclass(slots=True)
class State:
    """What the optimizer keeps of one parameter: slots, shape (S, *value.shape), and its steps."""

    slots: Array
    steps: int = 0
    lag: Lag | None = None
    update: kernels.BlockUpdate | None = None


class Optimizer:
    """Base class of the optimizers.

    A step changes the block of each parameter that the gradient covers. Every other weight, and
    its slots, momentum among them, stays bit-identical: it is frozen until it is active again. The
    sum of gradients, of several backward passes or of a layer that was used twice, covers all rows
    and all columns of either.
    Slots lie where their parameter does, and follow it at the next step if it is moved.

    Parameters
    ----------
    params : iterable of Parameter, or of dict
        Each dict is a group: its "params", and hyper-parameters of its own under their names.
    defaults : dict of str to float or bool
        Hyper-parameters of the groups that do not have their own.
    inactive : {"frozen", "catch_up"}
        "catch_up" makes each step equal, to rounding, to a step on all weights in which inactive
        ones have the gradient 0, so that momentum and weight decay go on for them. It costs two
        more passes over the block, and a byte a weight: a weight catches up, in one go, on all
        the steps that it has missed when it is needed next. A forward pass and `state_dict` see
        to that; before you read a parameter's value yourself, call `catch_up`. On the host alone.

    Attributes
    ----------
    param_groups : list of dict
        Hyper-parameters may be changed between steps.
    lr_scale : float
        A factor on the learning rate of every group, for schedules.

    Raises
    ------
    TypeError, ValueError
        If a hyper-parameter is out of range, or `params` is empty, repeats a parameter or holds
        something else.
    """

    # The element rule, where its step is linear in the weight, its one slot and the gradient.
    _linear: ClassVar[Callable[..., None] | None] = None

    def __init__(self, params: Parameters, defaults: dict[str, Any], inactive: str) -> None:
        if inactive not in ("frozen", "catch_up"):
            raise ValueError(f"inactive must be 'frozen' or 'catch_up', got {inactive!r}")
        if inactive == "catch_up" and self._linear is None:
            raise ValueError(
                f"{type(self).__name__} knows inactive='frozen' only: its step is not linear in "
                "the weights and slots, so that many steps cannot be made up for in one"
            )
        self.lr_scale = 1.0
        self.param_groups = _groups(params, defaults)
        for group in self.param_groups:
            self._check(group)
        self._checked = [_frozen(group) for group in self.param_groups]
        self._states: dict[Parameter, State] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter in self._states:
                    raise ValueError(f"params holds a parameter of shape {parameter.shape} twice")
                count = self._slots(group, inactive)
                slots = np.zeros((count, *parameter.shape), parameter.dtype, like=parameter.value)
                self._states[parameter] = State(slots)
        for parameter, state in self._states.items():
            # What another optimizer has put off is done now; from here on this one is in charge.
            parameter.refresh()
            parameter.before_read = None
            if inactive == "catch_up" and self._linear is not None:
                if not is_host(parameter.value):
                    raise ValueError(
                        "inactive='catch_up' works on the host alone, params holds a parameter of "
                        f"shape {parameter.shape} on the GPU: use 'frozen' there"
                    )
                state.lag = Lag(self._linear, parameter.value, state.slots)
                parameter.before_read = state.lag.refresh

    def _check(self, group: Mapping[str, Any]) -> None:
        """Raise a ValueError if a hyper-parameter is out of range."""
        raise NotImplementedError

    def _slots(self, group: Mapping[str, Any], inactive: str) -> int:
        """Return how many numbers are kept for each weight."""
        raise NotImplementedError

    def _rule(self, group: Mapping[str, Any], lr: float, state: State) -> tuple[float, ...]:
        """Return the rule for the next step of a parameter."""
        raise NotImplementedError

    def step(self) -> None:
        """Update each parameter that has a gradient.

        Raises
        ------
        TypeError, ValueError
            If a gradient does not fit its parameter, or a hyper-parameter was set to what is out of
            range. Nothing has been changed then.
        RuntimeError
            If an optimizer that was made later has taken over what this one was to catch up.
        """
        self._check_changed()
        # All are checked before one is done.
        due = []
        for group in self.param_groups:
            lr = group["lr"] * self.lr_scale
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self._states[parameter]
                    if state.lag is not None and parameter.before_read != state.lag.refresh:
                        raise RuntimeError(
                            f"parameter {self._number_of(parameter)} belongs to an optimizer that "
                            "was made later: this one's inactive='catch_up' no longer works on it"
                        )
                    rule = self._rule(group, lr, state)
                    due.append((parameter, state, self._due_update(rule, parameter, state)))
        for _, state, update in due:
            if state.lag is not None:
                state.lag.advance(update.rule, update.rows, update.cols)
        kernels.update_blocks([update for *_, update in due])
        for parameter, state, _ in due:
            parameter.version += 1
            state.steps += 1

    def _check_changed(self) -> None:
        """Check the hyper-parameters that are not those of the last step."""
        for number, group in enumerate(self.param_groups):
            now = _frozen(group)
            if now != self._checked[number]:
                self._check(group)
                self._checked[number] = now
        lr_scale = self.lr_scale
        is_number = type(lr_scale) is float or isinstance(lr_scale, Real)
        if not (is_number and 0 <= lr_scale < math.inf):
            raise ValueError(f"lr_scale must be a finite number and not negative, got {lr_scale!r}")

    def _number_of(self, parameter: Parameter) -> int:
        return list(self._states).index(parameter)

    def _due_update(
        self, rule: tuple[float, ...], parameter: Parameter, state: State
    ) -> kernels.Update:
        """Return what `kernels.update_blocks` takes."""
        grad, value = parameter.grad, parameter.value
        assert grad is not None
        values, index = (grad.values, grad.index) if isinstance(grad, Block) else (grad, ())
        update = state.update
        if update is not None and not (
            update.value is value and update.slots is state.slots and update.hyper is type(rule)
        ):
            update = None
        # What has not changed since the last step was checked then.
        if (
            update is None
            or grad.shape != value.shape
            or values.dtype is not value.dtype
            or type(values) is not type(value)
        ):
            _check_gradient(self._number_of(parameter), parameter, state)
        if update is None:
            if is_host(state.slots) != is_host(value):  # The parameter was moved.
                state.slots = (to_host if is_host(value) else to_device)(state.slots)
            update = state.update = kernels.BlockUpdate(type(rule), value, state.slots)
        if values.ndim > 2:  # To the kernel, all axes but the last are rows.
            values = values.reshape(-1, values.shape[-1])
        return update.check(rule, values, *as_matrix_index(index, value.shape))

    def catch_up(self) -> None:
        """Make up for all steps that inactive weights have missed. Does nothing if "frozen"."""
        for state in self._states.values():
            if state.lag is not None:
                state.lag.refresh()

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self._states:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return what the optimizer has learned: slots, copied to the host, steps, lr_scale.

        Hyper-parameters are not part of it. A name starts with the number of its parameter.
        """
        self.catch_up()
        return {
            name: value if isinstance(value, int | float) else host_copy(value)
            for name, value in self._named_state().items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Everything is checked before anything is written.

        Raises
        ------
        KeyError
            If a name is missing or unexpected.
        ValueError
            If a shape or dtype is not that of this optimizer.
        """
        check_state(self._named_state(), state)
        self.catch_up()
        self.lr_scale = float(state["lr_scale"])
        for number, own in enumerate(self._states.values()):
            own.steps = int(state[f"{number}.steps"])
            if len(own.slots):
                own.slots[...] = state[f"{number}.slots"]

    def _named_state(self) -> dict[str, Any]:
        named: dict[str, Any] = {"lr_scale": float(self.lr_scale)}
        for number, state in enumerate(self._states.values()):
            named[f"{number}.steps"] = state.steps
            if len(state.slots):
                named[f"{number}.slots"] = state.slots
        return named


def _groups(params: Parameters, defaults: dict[str, Any]) -> list[dict[str, Any]]:
    entries = list(params)
    if not entries:
        raise ValueError("params is empty")
    groups = []
    for entry in entries if isinstance(entries[0], Mapping) else [{"params": entries}]:
        if not isinstance(entry, Mapping) or "params" not in entry:
            raise TypeError(f"params must hold dicts with 'params', got {type(entry).__name__}")
        unknown = [name for name in entry if name != "params" and name not in defaults]
        if unknown:
            raise ValueError(f"a group of params has {unknown}, known are {list(defaults)}")
        group = {**defaults, **entry, "params": list(entry["params"])}
        for parameter in group["params"]:
            if not isinstance(parameter, Parameter):
                raise TypeError(f"params must hold Parameters, got {type(parameter).__name__}")
            if parameter.shape == ():
                raise ValueError("params must have at least one axis, got a Parameter of shape ()")
        groups.append(group)
    return groups


def _frozen(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group whose lists are tuples, that nobody changes."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in group.items()
    }


def check_range(
    name: str, value: float, low: float, high: float = np.inf, *, open_low: bool = False
) -> None:
    """Check that a hyper-parameter is in [low, high), or in (low, high)."""
    if not (low < value < high or (value == low and not open_low)):
        left = "(" if open_low else "["
        raise ValueError(f"{name} must be in {left}{low:g}, {high:g}), got {value}")


def _check_gradient(number: int, parameter: Parameter, state: State) -> None:
    grad = parameter.grad
    if grad is None:
        return
    if grad.shape != parameter.shape:
        raise ValueError(
            f"gradient of parameter {number} must have shape {parameter.shape}, got {grad.shape}"
        )
    if grad.dtype != parameter.dtype:
        raise TypeError(
            f"gradient of parameter {number} must be {parameter.dtype}, got {grad.dtype}"
        )
    values = grad.values if isinstance(grad, Block) else grad
    check_same_memory(f"gradient of parameter {number}", values, "its value", parameter.value)
    if state.lag is not None and state.lag.value is not parameter.value:
        raise ValueError(
            f"value of parameter {number} was replaced, and inactive='catch_up' has counted the "
            "steps of another: write into it, or make a new optimizer"
        )
    if is_host(parameter.value) and not parameter.value.flags.c_contiguous:
        raise ValueError(
            f"value of parameter {number} must be C-contiguous, its strides are "
            f"{parameter.value.strides}"
        )
