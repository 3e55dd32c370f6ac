"""Train a convolutional net on MNIST; dropout of channels, and of hidden units.

    python examples/mnist_lenet.py                  # downloads MNIST once
    python examples/mnist_lenet.py --data-dir DIR   # DIR holds its four IDX files
    python examples/mnist_lenet.py --quick          # the digits of scikit-learn, a few seconds

Needs: pip install "numbadrop[train]"
"""

from __future__ import annotations

import argparse

from numbadrop.data import load_digits, load_mnist
from numbadrop.nn import (
    BatchwiseDropout,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    ReLU,
    Sequential,
    Unflatten,
)
from numbadrop.optim import Adam, schedules
from numbadrop.train import evaluate, fit

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data-dir", help="folder with the four IDX files of MNIST")
parser.add_argument("--quick", action="store_true", help="a small data set, few epochs")
args = parser.parse_args()

data = load_digits() if args.quick else load_mnist(args.data_dir)
epochs = 10 if args.quick else 20
assert data.image_shape is not None
height, width, channels = data.image_shape

# Images are (batch, height, width, channels) inside the net. The pattern behind the second
# convolution is drawn before it runs: half of its channels are never computed, and `Flatten` hands
# on which positions of the hidden layer's weights are left.
model = Sequential(
    Unflatten(data.image_shape, "NHWC"),
    Conv2d(channels, 32, 5, padding=2, gain=6**0.5),
    ReLU(),
    MaxPool2d(2),
    Conv2d(32, 64, 5, padding=2, gain=6**0.5),
    ReLU(),
    MaxPool2d(2),
    BatchwiseDropout(0.5),
    Flatten(),
    Linear((height // 4) * (width // 4) * 64, 512, gain=6**0.5),
    ReLU(),
    BatchwiseDropout(0.5),
    Linear(512, data.classes),
).seed(0)
optimizer = Adam(model.parameters(), lr=1e-3)

fit(
    model,
    optimizer,
    data,
    epochs=epochs,
    batch_size=50 if args.quick else 100,
    schedule=schedules.cosine(epochs),
)

result = evaluate(model, data.test_inputs, data.test_labels, top_k=2)
print(f"test error {result.error:.2%}, not among the first two {result.top_k_error:.2%}")
