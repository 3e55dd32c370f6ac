"""Add an operation of your own: its gradient, the check of the gradient, and a layer around it.

    python examples/custom_primitive.py

The operation is softplus, ``log(1 + exp(x))``, a smooth relative of the ReLU.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbadrop.autograd import check_grads, primitive
from numbadrop.data import artificial
from numbadrop.index_set import IndexSet
from numbadrop.nn import Activation, BatchwiseDropout, Linear, Module, Sequential
from numbadrop.optim import Adam
from numbadrop.train import fit

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--quick", action="store_true", help="fewer epochs")
epochs = 3 if parser.parse_args().quick else 15

Array = NDArray[Any]


# A primitive is a function of plain arrays...
@primitive
def softplus(x: Array) -> Array:
    """Return log(1 + exp(x)), without overflow."""
    y: Array = np.logaddexp(x, np.zeros((), x.dtype))
    return y


# ... with a rule, right under it, from the gradient of its output to that of its argument.
@softplus.gradient("x")
def _(g: Array, out: Array, x: Array) -> Any:
    return g * np.exp(x - out)  # exp(x) / (1 + exp(x))


check_grads(softplus, [np.array([-800.0, -1.5, 0.0, 2.0, 800.0])])
print("the gradient agrees with central differences")


class Softplus(Module):
    """Apply softplus to each unit."""

    # Output unit k depends on input unit k alone: dropout behind this layer can be drawn ahead,
    # before the layer in front of it.
    unitwise = True

    def __call__(self, x: Any, units: IndexSet | None = None) -> Activation:
        """Return log(1 + exp(x)), shape (batch, ..., len(units))."""
        x = Activation.of(x).take(units)
        return Activation(softplus(x.values), x.units)


data = artificial(classes=10, train_samples=4000, test_samples=1000, features=200, noise=0.3)
model = Sequential(
    Linear(data.features, 256), Softplus(), BatchwiseDropout(0.5), Linear(256, data.classes)
).seed(0)
history = fit(model, Adam(model.parameters(), lr=1e-3), data, epochs=epochs)
print(f"test error {history[-1].test_error:.2%}, by chance 90 %")
