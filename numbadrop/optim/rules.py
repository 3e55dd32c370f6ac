"""What an optimizer does to one weight: each rule is written once, for Numba and for NumPy.

The fields of a rule hold every constant that the arithmetic needs: they take the dtype of the
weights, where a literal in the code would be float64 and double the width of all sums.
"""

# Numba compares signatures with their annotations, so that the rules have none.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

from numpy import sqrt

from numbadrop.kernels.update import element_rule

__all__ = ["AdamRule", "MomentumRule", "NAGRule", "SGDRule", "adam", "momentum", "nag", "sgd"]


class SGDRule(NamedTuple):
    """Hyper-parameters of `sgd`."""

    lr: float
    decay: float


@element_rule(SGDRule, slots=0)
def sgd(rule, w, slots, j, g):
    """Gradient descent: ``w -= lr (g + decay w)``."""
    w[j] = w[j] - rule.lr * (g + rule.decay * w[j])


class MomentumRule(NamedTuple):
    """Hyper-parameters of `momentum`: lr_gradient, lr_momentum = 0, lr, or Nesterov's lr, lr mu."""

    momentum: float
    undamped: float
    decay: float
    lr_gradient: float
    lr_momentum: float


@element_rule(MomentumRule, slots=1)
def momentum(rule, w, slots, j, g):
    """Gradient descent with momentum, as PyTorch has it.

    ``d = g + decay w``; ``m = momentum m + undamped d``; ``w -= lr_gradient d + lr_momentum m``.
    """
    d = g + rule.decay * w[j]
    m = rule.momentum * slots[0][j] + rule.undamped * d
    slots[0][j] = m
    w[j] = w[j] - (rule.lr_gradient * d + rule.lr_momentum * m)


class NAGRule(NamedTuple):
    """Hyper-parameters of `nag`: step = lr (1 - momentum), ahead = 1 + momentum."""

    momentum: float
    step: float
    ahead: float


@element_rule(NAGRule, slots=1)
def nag(rule, w, slots, j, g):
    """Nesterov's gradient in look-ahead form.

    ``w -= momentum m``; ``m = momentum m - step g``; ``w += ahead m``.
    """
    kept = rule.momentum * slots[0][j]
    m = kept - rule.step * g
    slots[0][j] = m
    w[j] = w[j] - kept + rule.ahead * m


class AdamRule(NamedTuple):
    """Hyper-parameters of `adam`.

    At step t: rest1 = 1 - beta1, rest2 = 1 - beta2, step = lr / (1 - beta1^t),
    correction = 1 / sqrt(1 - beta2^t). One of decay = 0 (AdamW) and shrink = 1 (Adam).
    """

    beta1: float
    rest1: float
    beta2: float
    rest2: float
    step: float
    correction: float
    eps: float
    decay: float
    shrink: float


@element_rule(AdamRule, slots=2)
def adam(rule, w, slots, j, g):
    """Adam and AdamW.

    ``d = g + decay w``; ``m = beta1 m + rest1 d``; ``v = beta2 v + rest2 d²``;
    ``w = shrink w - step m / (correction sqrt(v) + eps)``.
    """
    d = g + rule.decay * w[j]
    m = rule.beta1 * slots[0][j] + rule.rest1 * d
    v = rule.beta2 * slots[1][j] + rule.rest2 * d * d
    slots[0][j] = m
    slots[1][j] = v
    w[j] = rule.shrink * w[j] - rule.step * m / (rule.correction * sqrt(v) + rule.eps)
