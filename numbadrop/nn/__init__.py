"""Layers, and nets of layers."""

from numbadrop.nn.activation import Activation
from numbadrop.nn.activations import Flatten, LeakyReLU, ReLU, Sigmoid, Tanh
from numbadrop.nn.convolution import Conv2d
from numbadrop.nn.dropout import BatchwiseDropout, Dropout, Pattern
from numbadrop.nn.linear import Linear
from numbadrop.nn.losses import cross_entropy, mse
from numbadrop.nn.module import Module, Parameter
from numbadrop.nn.sequential import Residual, Sequential

__all__ = [
    "Activation",
    "BatchwiseDropout",
    "Conv2d",
    "Dropout",
    "Flatten",
    "LeakyReLU",
    "Linear",
    "Module",
    "Parameter",
    "Pattern",
    "ReLU",
    "Residual",
    "Sequential",
    "Sigmoid",
    "Tanh",
    "cross_entropy",
    "mse",
]
