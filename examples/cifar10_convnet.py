"""Train a deep convolutional net on CIFAR-10, with dropout that grows with depth.

    python examples/cifar10_convnet.py                  # downloads CIFAR-10 once; an hour
    python examples/cifar10_convnet.py --data-dir DIR   # DIR holds a release, or folders of images
    python examples/cifar10_convnet.py --epochs 4       # see how it begins
    python examples/cifar10_convnet.py --quick          # the digits of scikit-learn, a few seconds

Needs: pip install "numbadrop[train]"
"""

from __future__ import annotations

import argparse

from numbadrop.data import Augmentation, load_cifar10, load_digits
from numbadrop.nn import (
    BatchNorm2d,
    BatchwiseDropout,
    Conv2d,
    Flatten,
    LeakyReLU,
    Linear,
    MaxPool2d,
    Module,
    Sequential,
    Unflatten,
)
from numbadrop.optim import Adam, schedules
from numbadrop.train import evaluate, fit

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data-dir", help="folder with CIFAR-10 in any of its forms")
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--quick", action="store_true", help="a small data set, a small net")
args = parser.parse_args()

data = load_digits() if args.quick else load_cifar10(args.data_dir)
epochs = 40 if args.quick else args.epochs
width = 16 if args.quick else 64
assert data.image_shape is not None
height, _, channels = data.image_shape

SLOPE = 1 / 3
GAIN = (6 / (1 + SLOPE**2)) ** 0.5  # keeps the variance of a leaky rectifier, layer by layer

# The pixels are standardized, each channel by the statistics of the batch.
layers: list[Module] = [
    Unflatten(data.image_shape, "NHWC"),
    BatchNorm2d(channels, affine=False),
]
dropped = 0.0
for block in range(3):
    for _ in range(2):
        if dropped:
            layers.append(BatchwiseDropout(dropped))
        layers += [Conv2d(channels, width << block, 3, padding=1, gain=GAIN), LeakyReLU(SLOPE)]
        channels = width << block
        dropped += 0.1
    layers.append(MaxPool2d(2))
side = height // 8
layers += [
    BatchwiseDropout(0.5),
    Flatten(),
    Linear(side * side * channels, 8 * width, gain=GAIN),
    LeakyReLU(SLOPE),
    BatchwiseDropout(0.5),
    Linear(8 * width, data.classes),
]
model = Sequential(*layers).seed(0)
optimizer = Adam(model.parameters(), lr=1e-3)

fit(
    model,
    optimizer,
    data,
    epochs=epochs,
    batch_size=32 if args.quick else 128,
    schedule=schedules.cosine(epochs),
    augmentation=None if args.quick else Augmentation(shift=4, flip=True),
)

result = evaluate(model, data.test_inputs, data.test_labels, divisor=data.divisor, top_k=2)
print(f"test error {result.error:.2%}, not among the first two {result.top_k_error:.2%}")
