"""Differentiable operations on arrays; each gradient rule stands right under its operation."""

from numbadrop.ops.convolution import conv2d
from numbadrop.ops.elementwise import leaky_relu, relu, sigmoid, tanh
from numbadrop.ops.linear import linear
from numbadrop.ops.losses import cross_entropy, mse
from numbadrop.ops.normalization import batch_norm
from numbadrop.ops.pooling import avg_pool2d, max_pool2d
from numbadrop.ops.units import flatten, place_units, take_units, unflatten

__all__ = [
    "avg_pool2d",
    "batch_norm",
    "conv2d",
    "cross_entropy",
    "flatten",
    "leaky_relu",
    "linear",
    "max_pool2d",
    "mse",
    "place_units",
    "relu",
    "sigmoid",
    "take_units",
    "tanh",
    "unflatten",
]
