"""Adam, and Adam with decoupled weight decay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from numbadrop.optim.optimizer import Optimizer, Parameters, State, check_range
from numbadrop.optim.rules import AdamRule

__all__ = ["Adam", "AdamW"]


class Adam(Optimizer):
    """Adam; weight decay is part of the gradient.

    Weights that are not active in a step are frozen, and their moments with them: neither decays,
    both are bit-identical afterwards. The correction of the moments' bias counts the steps of the
    whole parameter.

    Parameters
    ----------
    params : iterable of Parameter, or of dict
        See `Optimizer`.
    lr : float
        Learning rate, not negative.
    betas : (float, float)
        Decay of the mean of the gradient and of its square in one step, in [0, 1).
    eps : float
        Added to the root of the corrected mean square. Not less than the smallest normal number of
        the parameters' dtype.
    weight_decay : float
        Not negative.
    inactive : {"frozen"}
        Adam's step is not linear in its slots, so there is no cheap "catch_up".

    Raises
    ------
    TypeError, ValueError
        If a hyper-parameter is out of range; see `Optimizer`.

    References
    ----------
    D. P. Kingma and J. Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from numbadrop.autograd import Block
    >>> from numbadrop.index_set import IndexSet
    >>> from numbadrop.nn import Parameter
    >>> w = Parameter(np.zeros(3))
    >>> w.grad = Block(np.array([0.01, -100.0]), (IndexSet([0, 2], 3),))
    >>> Adam([w], lr=0.5).step()
    >>> w.value.round(4)
    array([-0.5,  0. ,  0.5])
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        inactive: str = "frozen",
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults, inactive)

    def _check(self, group: Mapping[str, Any]) -> None:
        check_range("lr", group["lr"], 0)
        if not isinstance(group["betas"], tuple | list) or len(group["betas"]) != 2:
            raise ValueError(f"betas must be a pair, got {group['betas']}")
        for number, beta in enumerate(group["betas"]):
            check_range(f"betas[{number}]", beta, 0, 1)
        # Less than a normal number counts as zero in a step.
        dtypes = {parameter.dtype for parameter in group["params"]}
        least = max((float(np.finfo(dtype).tiny) for dtype in dtypes), default=0.0)
        check_range("eps", group["eps"], least)
        check_range("weight_decay", group["weight_decay"], 0)

    def _slots(self, group: Mapping[str, Any], inactive: str) -> int:
        return 2

    def _rule(self, group: Mapping[str, Any], lr: float, state: State) -> tuple[float, ...]:
        return self._adam(group, lr, state, decay=group["weight_decay"], shrink=1.0)

    def _adam(
        self, group: Mapping[str, Any], lr: float, state: State, decay: float, shrink: float
    ) -> AdamRule:
        steps = state.steps + 1
        beta1, beta2 = group["betas"]
        return AdamRule(
            beta1=beta1,
            rest1=1 - beta1,
            beta2=beta2,
            rest2=1 - beta2,
            step=lr / (1 - beta1**steps),
            correction=1 / math.sqrt(1 - beta2**steps),
            eps=group["eps"],
            decay=decay,
            shrink=shrink,
        )


class AdamW(Adam):
    """Adam with decoupled weight decay: ``w -= lr weight_decay w``, apart from the moments.

    Weights that are not active in a step are frozen as in `Adam`: they do not decay either.

    Parameters
    ----------
    params, lr, betas, eps, weight_decay, inactive
        As for `Adam`.

    References
    ----------
    I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> from numbadrop.autograd import Block
    >>> from numbadrop.index_set import IndexSet
    >>> from numbadrop.nn import Parameter
    >>> w = Parameter(np.ones(3))
    >>> w.grad = Block(np.zeros(1), (IndexSet([1], 3),))
    >>> AdamW([w], lr=0.5, weight_decay=0.2).step()
    >>> w.value
    array([1. , 0.9, 1. ])
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        inactive: str = "frozen",
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, inactive=inactive)

    def _rule(self, group: Mapping[str, Any], lr: float, state: State) -> tuple[float, ...]:
        return self._adam(group, lr, state, decay=0.0, shrink=1 - lr * group["weight_decay"])
