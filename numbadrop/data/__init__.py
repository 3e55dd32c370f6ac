"""Data sets, file formats and minibatches. Plain NumPy: nothing here knows what a network is."""

from numbadrop.data.artificial import artificial
from numbadrop.data.augmentation import Augmentation
from numbadrop.data.cifar10 import load_cifar10
from numbadrop.data.dataset import DataError, Dataset
from numbadrop.data.digits import load_digits
from numbadrop.data.files import load_path
from numbadrop.data.floats import as_floats
from numbadrop.data.idx import load_idx, read_idx
from numbadrop.data.image_folder import load_image_folder
from numbadrop.data.minibatches import Minibatches
from numbadrop.data.mnist import load_mnist

__all__ = [
    "Augmentation",
    "DataError",
    "Dataset",
    "Minibatches",
    "artificial",
    "as_floats",
    "load_cifar10",
    "load_digits",
    "load_idx",
    "load_image_folder",
    "load_mnist",
    "load_path",
    "read_idx",
]
