"""A data set from a path on the disk."""

from __future__ import annotations

import lzma
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbadrop.data.dataset import DataError, Dataset, dataset_of
from numbadrop.data.idx import load_idx
from numbadrop.data.image_folder import is_image_folder, load_image_folder

__all__ = ["load_path", "open_arrays"]

Array = NDArray[Any]

KEYS = ("x_train", "y_train", "x_test", "y_test")


def load_path(path: str | Path) -> Dataset:
    """Load a data set from a folder of IDX files, an ``.npz`` file or sorted images.

    Parameters
    ----------
    path : path
        A folder as `load_idx` reads it, a folder or archive as `load_image_folder` does, or an
        ``.npz`` file with the arrays ``x_train``, ``y_train``, ``x_test`` and ``y_test``. All axes
        but the first are flattened; where they are two or three, the samples are images of shape
        (height, width) or (height, width, channels).

    Returns
    -------
    Dataset
        Inputs are float32; those stored as bytes are taken for pixels and scaled to [0, 1]. Those
        of sorted images stay bytes with the divisor 255, by which `fit` divides each minibatch, and
        `evaluate` if it is told. A folder of IDX files has ten classes, others are for `load_idx`;
        in an ``.npz`` file their number is the largest label plus one.

    Raises
    ------
    DataError
        If the path does not exist or what is in it cannot be used.
    MissingExtraError
        If there are images, and Pillow is not installed.
    """
    path = Path(path)
    if is_image_folder(path):
        return load_image_folder(path)
    if path.is_dir():
        return load_idx(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder")
    arrays = open_arrays(path)
    missing = [key for key in KEYS if key not in arrays]
    if missing:
        raise DataError(f"{path}: no {', '.join(missing)}, it has {', '.join(arrays) or 'nothing'}")
    x_train, y_train, x_test, y_test = (arrays[key] for key in KEYS)
    for key, labels in (("y_train", y_train), ("y_test", y_test)):
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.size == 0:
            raise DataError(
                f"{path}: {key} must be integers of shape (samples,), "
                f"got {labels.dtype} of shape {labels.shape}"
            )
    for key, inputs in (("x_train", x_train), ("x_test", x_test)):
        if inputs.ndim < 2:
            raise DataError(
                f"{path}: {key} must be of shape (samples, ...), got shape {inputs.shape}"
            )
    classes = int(max(y_train.max(), y_test.max())) + 1
    return dataset_of(str(path), x_train, y_train, x_test, y_test, classes)


def open_arrays(path: Path) -> dict[str, Array]:
    """Return the arrays of a ``.npy`` file (under the name "") or of an ``.npz`` file.

    Pickled objects are refused: a data file must not be able to run code.
    """
    try:
        # Opened here because np.load leaves the file open where it is not a whole archive.
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            return {"": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    # In these ends what damage has made of a header, a shape or a method of compression.
    except (
        ValueError,
        EOFError,
        OSError,
        RuntimeError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        tokenize.TokenError,
    ) as error:
        raise DataError(f"{path}: not a readable .npy or .npz file, {error}") from error
