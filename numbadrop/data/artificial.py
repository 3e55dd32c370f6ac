"""Graham's artificial data set: classes that only many weak inputs together can tell apart."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbadrop.data.dataset import Dataset

__all__ = ["artificial"]


def artificial(
    classes: int = 100,
    train_samples: int = 100_000,
    test_samples: int = 10_000,
    *,
    features: int = 1000,
    steps: int = 1000,
    noise: float = 0.4,
    seed: int = 0,
) -> Dataset:
    """Make Graham's artificial data set.

    Each class is a random walk of `steps` points on the hypercube ``{0, 1}^features``: from one
    point to the next, one random bit flips. A sample is a random point of its class's walk in
    which then each bit is flipped with probability `noise`.

    Parameters
    ----------
    classes : int, default 100
    train_samples, test_samples : int, default 100,000 and 10,000
        Split evenly over the classes; the first classes get one more where that is not possible.
    features : int, default 1000
        Dimension of the hypercube.
    steps : int, default 1000
        Points of a walk.
    noise : float, default 0.4
        Probability that a bit of a sample is flipped.
    seed : int, default 0

    Returns
    -------
    Dataset
        uint8 inputs, 0 or 1. A byte a bit keeps the default set at 110 MB, where floats would take
        440; minibatches cast what they draw.

    Raises
    ------
    ValueError
        If a size is below 1 or `noise` is not in [0, 1].

    Notes
    -----
    Source: B. Graham, J. Reizenstein, L. Robinson, "Efficient batchwise dropout training using
    submatrices", arXiv:1502.02478, 2015.

    Examples
    --------
    >>> data = artificial(classes=3, train_samples=30, test_samples=6, features=20, steps=5)
    >>> data.train_inputs.shape, data.train_inputs.dtype
    ((30, 20), dtype('uint8'))
    """
    sizes = {
        "classes": classes,
        "train_samples": train_samples,
        "test_samples": test_samples,
        "features": features,
        "steps": steps,
    }
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if not 0 <= noise <= 1:
        raise ValueError(f"noise must be in [0, 1], got {noise}")

    rng = np.random.default_rng(seed)
    train_labels = np.arange(train_samples) % classes
    test_labels = np.arange(test_samples) % classes
    train_inputs = np.empty((train_samples, features), dtype=np.uint8)
    test_inputs = np.empty((test_samples, features), dtype=np.uint8)
    for label in range(classes):
        walk = _random_walk(rng, steps, features)
        for inputs in (train_inputs, test_inputs):
            members = inputs[label::classes]
            points = walk[rng.integers(steps, size=len(members))]
            flips = rng.random(members.shape, dtype=np.float32) < noise
            np.bitwise_xor(points, flips, out=members)
    return Dataset("artificial", train_inputs, train_labels, test_inputs, test_labels, classes)


def _random_walk(rng: np.random.Generator, steps: int, features: int) -> NDArray[Any]:
    """Return the points of a walk, uint8 of shape (steps, features)."""
    changes = np.zeros((steps, features), dtype=np.uint8)
    changes[0] = rng.integers(2, size=features)
    changes[np.arange(1, steps), rng.integers(features, size=steps - 1)] = 1
    return np.bitwise_xor.accumulate(changes, axis=0)
