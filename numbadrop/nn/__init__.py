"""Layers, and nets of layers."""

from numbadrop.nn.activation import Activation
from numbadrop.nn.activations import LeakyReLU, ReLU, Sigmoid, Tanh
from numbadrop.nn.convolution import Conv2d
from numbadrop.nn.dropout import BatchwiseDropout, Dropout, Dropout2d, Pattern
from numbadrop.nn.linear import Linear
from numbadrop.nn.losses import cross_entropy, mse
from numbadrop.nn.module import Buffer, Module, Parameter
from numbadrop.nn.normalization import BatchNorm1d, BatchNorm2d
from numbadrop.nn.pooling import AvgPool2d, GlobalAvgPool2d, MaxPool2d
from numbadrop.nn.sequential import Residual, Sequential
from numbadrop.nn.shapes import Flatten, Unflatten

__all__ = [
    "Activation",
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchwiseDropout",
    "Buffer",
    "Conv2d",
    "Dropout",
    "Dropout2d",
    "Flatten",
    "GlobalAvgPool2d",
    "LeakyReLU",
    "Linear",
    "MaxPool2d",
    "Module",
    "Parameter",
    "Pattern",
    "ReLU",
    "Residual",
    "Sequential",
    "Sigmoid",
    "Tanh",
    "Unflatten",
    "cross_entropy",
    "mse",
]
