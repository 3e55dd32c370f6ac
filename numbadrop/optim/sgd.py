"""Gradient descent, with the momentum of PyTorch and with the look-ahead of Nesterov."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numbadrop.optim import rules
from numbadrop.optim.optimizer import Optimizer, Parameters, State, check_range

__all__ = ["NAG", "SGD"]


class SGD(Optimizer):
    """Stochastic gradient descent, in PyTorch's form.

    ``d = g + weight_decay w``; ``m = momentum m + (1 - dampening) d``, but ``m = d`` in the first
    step; ``w -= lr m``, or with Nesterov's momentum ``w -= lr (d + momentum m)``. Without momentum
    nothing is dampened.

    Weights that are not active in a step are frozen, and their momentum with them: neither decays,
    both are bit-identical afterwards. What a dense step with masks does, as PyTorch's, is
    inactive="catch_up".

    Parameters
    ----------
    params : iterable of Parameter, or of dict
        See `Optimizer`.
    lr : float
        Learning rate, not negative.
    momentum, dampening : float
        In [0, 1).
    nesterov : bool
        Wants momentum and no dampening.
    weight_decay : float
        Not negative; part of the gradient.
    inactive : {"frozen", "catch_up"}
        See `Optimizer`.

    Raises
    ------
    TypeError, ValueError
        If a hyper-parameter is out of range; see `Optimizer`.

    Examples
    --------
    >>> import numpy as np
    >>> from numbadrop.autograd import Block
    >>> from numbadrop.index_set import IndexSet
    >>> from numbadrop.nn import Parameter
    >>> w = Parameter(np.ones(3))
    >>> w.grad = Block(np.ones(1), (IndexSet([1], 3),))
    >>> SGD([w], lr=0.5).step()
    >>> w.value
    array([1. , 0.5, 1. ])
    """

    _linear = staticmethod(rules.momentum)

    def __init__(
        self,
        params: Parameters,
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        *,
        inactive: str = "frozen",
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults, inactive)

    def _check(self, group: Mapping[str, Any]) -> None:
        check_range("lr", group["lr"], 0)
        check_range("momentum", group["momentum"], 0, 1)
        check_range("dampening", group["dampening"], 0, 1)
        check_range("weight_decay", group["weight_decay"], 0)
        if group["nesterov"] and not (group["momentum"] > 0 and group["dampening"] == 0):
            raise ValueError(
                "nesterov wants momentum above 0 and dampening 0, got "
                f"{group['momentum']} and {group['dampening']}"
            )

    def _slots(self, group: Mapping[str, Any], inactive: str) -> int:
        return int(group["momentum"] > 0 or inactive == "catch_up")

    def _rule(self, group: Mapping[str, Any], lr: float, state: State) -> tuple[float, ...]:
        momentum, decay = group["momentum"], group["weight_decay"]
        if len(state.slots) == 0:
            if momentum:
                raise ValueError(f"momentum was 0 when SGD was made, it cannot become {momentum}")
            return rules.SGDRule(lr, decay)
        undamped = 1 - group["dampening"] if momentum and state.steps else 1.0
        ahead = (lr, lr * momentum) if group["nesterov"] else (0.0, lr)
        return rules.MomentumRule(momentum, undamped, decay, *ahead)


class NAG(Optimizer):
    """Nesterov's accelerated gradient, in the look-ahead form of Graham et al.

    ``w -= momentum m``; ``m = momentum m - lr (1 - momentum) g``; ``w += (1 + momentum) m``. The
    weights that are kept, and that the gradient is taken at, are those one momentum step ahead.

    Weights that are not active in a step are frozen, and their momentum with them: neither moves,
    both are bit-identical afterwards. This is what the paper's code does. A dense step with masks
    is inactive="catch_up".

    Parameters
    ----------
    params : iterable of Parameter, or of dict
        See `Optimizer`.
    lr : float
        Learning rate, not negative.
    momentum : float
        In [0, 1).
    inactive : {"frozen", "catch_up"}
        See `Optimizer`.

    Raises
    ------
    TypeError, ValueError
        If a hyper-parameter is out of range; see `Optimizer`.

    References
    ----------
    B. Graham, J. Reizenstein, L. Robinson, "Efficient batchwise dropout training using
    submatrices", arXiv:1502.02478 (2015), and its code.

    Examples
    --------
    >>> import numpy as np
    >>> from numbadrop.autograd import Block
    >>> from numbadrop.index_set import IndexSet
    >>> from numbadrop.nn import Parameter
    >>> w = Parameter(np.zeros(3))
    >>> optimizer = NAG([w], lr=1.0, momentum=0.5)
    >>> for unit in (0, 1):
    ...     w.grad = Block(np.ones(1), (IndexSet([unit], 3),))
    ...     optimizer.step()
    >>> w.value
    array([-0.75, -0.75,  0.  ])
    """

    _linear = staticmethod(rules.nag)

    def __init__(
        self, params: Parameters, lr: float, momentum: float = 0.9, *, inactive: str = "frozen"
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum}, inactive)

    def _check(self, group: Mapping[str, Any]) -> None:
        check_range("lr", group["lr"], 0)
        check_range("momentum", group["momentum"], 0, 1)

    def _slots(self, group: Mapping[str, Any], inactive: str) -> int:
        return 1

    def _rule(self, group: Mapping[str, Any], lr: float, state: State) -> tuple[float, ...]:
        momentum = group["momentum"]
        return rules.NAGRule(momentum, lr * (1 - momentum), 1 + momentum)
