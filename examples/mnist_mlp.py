"""Train a net on MNIST with batchwise dropout, as you would write it yourself.

    python examples/mnist_mlp.py                  # downloads MNIST once
    python examples/mnist_mlp.py --data-dir DIR   # DIR holds its four IDX files
    python examples/mnist_mlp.py --quick          # the digits of scikit-learn, a few seconds

Needs: pip install "numbadrop[train]"
"""

from __future__ import annotations

import argparse

from numbadrop.data import load_digits, load_mnist
from numbadrop.nn import BatchwiseDropout, Linear, ReLU, Sequential
from numbadrop.optim import NAG, schedules
from numbadrop.train import evaluate, fit

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data-dir", help="folder with the four IDX files of MNIST")
parser.add_argument("--quick", action="store_true", help="a small data set, few epochs")
args = parser.parse_args()

data = load_digits() if args.quick else load_mnist(args.data_dir)
epochs = 10 if args.quick else 20

# `p` is the fraction dropped. The pattern behind a layer is drawn before that layer runs, so that
# its dropped outputs are never computed.
model = Sequential(
    BatchwiseDropout(0.2),
    Linear(data.features, 800),
    ReLU(),
    BatchwiseDropout(0.5),
    Linear(800, 800),
    ReLU(),
    BatchwiseDropout(0.5),
    Linear(800, data.classes),
).seed(0)
optimizer = NAG(model.parameters(), lr=0.2, momentum=0.9)

fit(model, optimizer, data, epochs=epochs, batch_size=100, schedule=schedules.cosine(epochs))

result = evaluate(model, data.test_inputs, data.test_labels, top_k=2)
print(f"test error {result.error:.2%}, not among the first two {result.top_k_error:.2%}")
