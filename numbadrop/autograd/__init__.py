"""Reverse-mode differentiation of sums, products and functions that `primitive` declares."""

from numbadrop.autograd.block import Block
from numbadrop.autograd.check import check_grads
from numbadrop.autograd.tape import (
    Primitive,
    Variable,
    add,
    multiply,
    negative,
    no_grad,
    primitive,
    subtract,
)

__all__ = [
    "Block",
    "Primitive",
    "Variable",
    "add",
    "check_grads",
    "multiply",
    "negative",
    "no_grad",
    "primitive",
    "subtract",
]
