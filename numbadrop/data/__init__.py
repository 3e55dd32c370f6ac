"""Data sets, file formats and minibatches. Plain NumPy: nothing here knows what a network is."""

from numbadrop.data.artificial import artificial
from numbadrop.data.dataset import DataError, Dataset
from numbadrop.data.digits import load_digits
from numbadrop.data.files import load_path
from numbadrop.data.idx import load_idx, read_idx
from numbadrop.data.minibatches import Minibatches, as_floats
from numbadrop.data.mnist import load_mnist

__all__ = [
    "DataError",
    "Dataset",
    "Minibatches",
    "artificial",
    "as_floats",
    "load_digits",
    "load_idx",
    "load_mnist",
    "load_path",
    "read_idx",
]
