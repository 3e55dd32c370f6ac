"""Differentiable operations on arrays; each gradient rule stands right under its operation."""

from numbadrop.ops.convolution import conv2d
from numbadrop.ops.elementwise import leaky_relu, relu, sigmoid, tanh
from numbadrop.ops.linear import linear
from numbadrop.ops.losses import cross_entropy, mse
from numbadrop.ops.units import flatten, place_units, take_units

__all__ = [
    "conv2d",
    "cross_entropy",
    "flatten",
    "leaky_relu",
    "linear",
    "mse",
    "place_units",
    "relu",
    "sigmoid",
    "take_units",
    "tanh",
]
