"""Gradient rules against central differences."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from numbadrop.autograd.block import Block
from numbadrop.autograd.tape import Variable, no_grad

__all__ = ["check_grads"]


def check_grads(
    function: Callable[..., Variable],
    args: Sequence[Any],
    *,
    eps: float = 1e-6,
    rtol: float = 1e-6,
    atol: float = 1e-8,
) -> None:
    """Compare the gradient rules behind `function` with central differences, in float64.

    Parameters
    ----------
    function : callable
        A primitive, or any deterministic function of variables that returns a variable.
    args : sequence
        What `function` is called with. Each ndarray of floats is checked, element by element;
        everything else is passed on as it is, so that an array wrapped in a Variable is left out.
    eps : float
        Step of the differences. Keep the points away from kinks by more than this.
    rtol, atol : float
        An element passes where ``abs(rule - difference) <= atol + rtol * abs(difference)``.

    Raises
    ------
    AssertionError
        If a gradient is wrong; the message names the argument and its worst element.
    ValueError
        If there is nothing to check.

    Examples
    --------
    >>> from numbadrop.autograd import multiply, primitive
    >>> check_grads(multiply, [np.array([1.0, 2.0]), np.array([3.0, -1.0])])
    >>> @primitive
    ... def cube(x):
    ...     return x**3
    >>> @cube.gradient("x")
    ... def _(g, out, x):
    ...     return 2 * g * x**2
    >>> check_grads(cube, [np.array([0.0, 2.0])])
    Traceback (most recent call last):
        ...
    AssertionError: gradient of cube for x is wrong at (1,): the rule gives ...
    """
    inputs = list(args)
    checked = [i for i, a in enumerate(args) if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
    if not checked:
        raise ValueError("args must hold at least one ndarray of floats")
    for position in checked:
        inputs[position] = Variable(np.array(args[position], np.float64), requires_grad=True)
    out = function(*inputs)
    # A fixed random weight for each output makes one scalar of them, in which no two can cancel.
    weights = np.random.default_rng(0).uniform(0.5, 1.5, out.shape)
    out.backward(weights)
    names = list(inspect.signature(function).parameters)
    for position in checked:
        variable = inputs[position]
        rule = variable.grad.dense() if isinstance(variable.grad, Block) else variable.grad
        if rule is None:
            rule = np.zeros(variable.shape)
        difference = np.empty(variable.shape)
        for at in np.ndindex(variable.shape):
            center = variable.value[at]
            ends = []
            for point in (center - eps, center + eps):
                variable.value[at] = point
                with no_grad():
                    ends.append(np.vdot(weights, function(*inputs).value))
            variable.value[at] = center
            difference[at] = (ends[1] - ends[0]) / (2 * eps)
        excess = np.abs(rule - difference) - (atol + rtol * np.abs(difference))
        excess = np.where(np.isnan(excess), np.inf, excess)
        if (excess > 0).any():
            worst = tuple(int(i) for i in np.unravel_index(np.argmax(excess), excess.shape))
            name = names[position] if len(names) == len(args) else f"args[{position}]"
            of = getattr(function, "__name__", repr(function))
            raise AssertionError(
                f"gradient of {of} for {name} is wrong at {worst}: the rule gives "
                f"{rule[worst]:.9g}, central differences give {difference[worst]:.9g}"
            )
