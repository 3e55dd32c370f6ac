"""The handwritten digits that ship with scikit-learn: real images without a download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbadrop.data.dataset import Dataset
from numbadrop.errors import needs_extra

__all__ = ["load_digits"]


def load_digits() -> Dataset:
    """Load the optical digits of scikit-learn: 1,797 images of 8x8 pixels, 10 classes.

    Returns
    -------
    Dataset
        64 features, float32 in [0, 1]. One fifth of each class, drawn with a fixed seed, is the
        test set.

    Raises
    ------
    MissingExtraError
        If scikit-learn is not installed.

    Notes
    -----
    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
    Learning Repository, 1998; scikit-learn ships its test part.

    Examples
    --------
    >>> data = load_digits()
    >>> len(data.train_inputs) + len(data.test_inputs), data.features, data.classes
    (1797, 64, 10)
    """
    pixels_and_label = _table()
    inputs = (pixels_and_label[:, :-1] / 16).astype(np.float32)
    labels = pixels_and_label[:, -1].astype(np.int64)

    rng = np.random.default_rng(0)
    is_test = np.zeros(len(labels), dtype=np.bool_)
    for label in range(10):
        members = rng.permutation(np.flatnonzero(labels == label))
        is_test[members[: round(len(members) / 5)]] = True
    return Dataset(
        "digits",
        inputs[~is_test],
        labels[~is_test],
        inputs[is_test],
        labels[is_test],
        classes=10,
        divisor=16.0,
        image_shape=(8, 8, 1),
    )


def _table() -> NDArray[Any]:
    """Return the images and, in the last column, their labels: shape (1797, 65)."""
    # Importing sklearn takes longer than the rest of a warm start, so its file is read directly.
    package = find_spec("sklearn")
    if package is not None and package.origin is not None:
        table = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if table.is_file():
            return np.loadtxt(table, delimiter=",")
    with needs_extra("data", "the digits data set"):
        from sklearn.datasets import load_digits as load_sklearn_digits

    pixels, labels = load_sklearn_digits(return_X_y=True)
    return np.column_stack((pixels, labels))
