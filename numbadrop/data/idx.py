"""The IDX format of MNIST: a magic number, the sizes of the axes, then the elements.

The magic number is two zero bytes, a code for the element's type and the number of axes; each
size is a big-endian uint32, and so are the elements big-endian.
Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits".
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbadrop.data.dataset import DataError, Dataset, check_labels, dataset_of

__all__ = ["IDX_FILES", "load_idx", "read_idx"]

Array = NDArray[Any]

ELEMENTS = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
GZIP_MAGIC = b"\x1f\x8b"


def read_idx(path: str | Path) -> Array:
    """Read an array from an IDX file, gzipped or plain.

    Parameters
    ----------
    path : path
        Whether it is gzipped is told by its content, not by its name.

    Returns
    -------
    ndarray
        In the machine's byte order.

    Raises
    ------
    DataError
        If the file is not an IDX file, or is longer or shorter than its header says.
    OSError
        If the file cannot be opened.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "labels-idx1-ubyte")
    ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
    ...     read_idx(path)
    array([7, 2, 1], dtype=uint8)
    """
    path = Path(path)
    content = path.read_bytes()
    if content.startswith(GZIP_MAGIC):
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"{path}: broken gzip file, {error}") from error
    magic = content[:4]
    if len(magic) == 4 and magic[:2] != b"\0\0":
        raise DataError(
            f"{path}: not an IDX file, the magic number must be 00 00, a type, the number of axes, "
            f"got {magic.hex(' ')}"
        )
    if len(magic) == 4 and magic[2] not in ELEMENTS:
        known = ", ".join(f"{code:02x}" for code in ELEMENTS)
        raise DataError(f"{path}: unknown IDX element type {magic[2]:02x}, known are {known}")
    header = 4 + 4 * magic[3] if len(magic) == 4 else 4
    if len(content) < header:
        raise DataError(
            f"{path}: truncated, the IDX header takes {header} bytes, the file has {len(content)}"
        )
    element = np.dtype(ELEMENTS[magic[2]])
    shape = tuple(int(size) for size in np.frombuffer(content[4:header], dtype=">u4"))
    wanted = header + element.itemsize * math.prod(shape)
    if len(content) != wanted:
        fault = "truncated" if len(content) < wanted else "too long"
        raise DataError(
            f"{path}: {fault}, an IDX file of shape {shape} takes {wanted} bytes, "
            f"got {len(content)}"
        )
    array = np.frombuffer(content, dtype=element, offset=header).reshape(shape)
    return array.astype(element.newbyteorder("="))


def load_idx(folder: str | Path, classes: int = 10) -> Dataset:
    """Load the four IDX files of MNIST, or of a data set in its form, from a folder.

    Parameters
    ----------
    folder : path
        Holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``,
        ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``, each plain or with ``.gz``.
    classes : int, default 10

    Returns
    -------
    Dataset
        Inputs are float32, one row an image. Pixels stored as bytes are scaled to [0, 1].

    Raises
    ------
    DataError
        If a file is missing or broken, images and labels differ in number, training and test
        images in shape, or a label is not in ``[0, classes)``. The message names the file.
    """
    folder = Path(folder)
    train_images, train_labels = _images_and_labels(folder, *IDX_FILES[:2], classes)
    test_images, test_labels = _images_and_labels(folder, *IDX_FILES[2:], classes)
    return dataset_of(folder.name, train_images, train_labels, test_images, test_labels, classes)


def _images_and_labels(
    folder: Path, images_name: str, labels_name: str, classes: int
) -> tuple[Array, Array]:
    images_path, labels_path = _find(folder, images_name), _find(folder, labels_name)
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim < 2:
        raise DataError(f"{images_path}: images have at least 2 axes, got shape {images.shape}")
    if labels.ndim != 1:
        raise DataError(f"{labels_path}: labels have 1 axis, got shape {labels.shape}")
    if len(images) != len(labels):
        raise DataError(
            f"{images_path} has {len(images)} images, {labels_path} has {len(labels)} labels"
        )
    check_labels(str(labels_path), labels, len(images), classes)
    return images, labels


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"no {name} or {name}.gz in {folder}, the four files {', '.join(IDX_FILES)}")
