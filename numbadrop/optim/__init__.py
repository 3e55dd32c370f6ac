"""Optimizers that touch only the active block, and learning-rate schedules."""

from numbadrop.optim import schedules
from numbadrop.optim.adam import Adam, AdamW
from numbadrop.optim.optimizer import Optimizer
from numbadrop.optim.sgd import NAG, SGD

__all__ = ["NAG", "SGD", "Adam", "AdamW", "Optimizer", "schedules"]
