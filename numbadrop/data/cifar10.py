"""CIFAR-10, from a folder or downloaded once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbadrop.data.archives import is_archive, read_archive
from numbadrop.data.dataset import DataError, Dataset, check_labels
from numbadrop.data.image_folder import load_image_folder
from numbadrop.data.pickles import read_pickle
from numbadrop.errors import needs_extra

__all__ = ["load_cifar10"]

Array = NDArray[Any]

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
IMAGES = 10_000
"""Images of a file, five of which are for training."""
SIDE, CHANNELS, CLASSES = 32, 3, 10
FEATURES = SIDE * SIDE * CHANNELS


class _Release(NamedTuple):
    """A form in which the authors give the data away, and how one of its files is read."""

    folder: str
    archive: str
    files: tuple[str, ...]
    read: Callable[[str, bytes], tuple[Array, Array]]


def load_cifar10(data_dir: str | Path | None = None) -> Dataset:
    """Load CIFAR-10: 50,000 training and 10,000 test images of ten kinds of things.

    Parameters
    ----------
    data_dir : path, optional
        Folder that is, or holds, ``cifar-10-batches-py`` or ``cifar-10-batches-bin``; or that
        holds the images in ``train/CLASS/`` and ``test/CLASS/``; or one archive of one of these,
        which is not unpacked. Without it the binary release is downloaded once to the user's
        cache folder and its checksum is compared.

    Returns
    -------
    Dataset
        3072 features, uint8, divisor 255, image_shape (32, 32, 3); 10 classes.

    Raises
    ------
    DataError
        If a file in `data_dir` is missing or broken, or if nothing could be downloaded.
    MissingExtraError
        If a download is wanted and pooch is not installed, or images and Pillow is not.

    Notes
    -----
    Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. The
    releases store an image as three planes; it is turned here, once, so that channels come last.
    """
    folder = Path(data_dir) if data_dir is not None else _download()
    for release in RELEASES:
        for inner in (folder, folder / release.folder):
            paths = [inner / name for name in release.files if (inner / name).is_file()]
            if paths:
                return _load(inner, release, ((str(path), path.read_bytes()) for path in paths))
    if (folder / "train").is_dir():
        return _load_images(folder)
    archives = sorted(filter(is_archive, folder.iterdir())) if folder.is_dir() else []
    for release in RELEASES:
        archive = folder / release.archive
        if archive in archives:
            members = ((f"{archive}/{name}", content) for name, content in read_archive(archive))
            return _load(archive, release, members)
    if len(archives) == 1:
        return _load_images(archives[0])
    raise DataError(
        f"no CIFAR-10 in {folder}: it must hold {PYTHON.folder}, {BINARY.folder}, images in "
        "train/CLASS/ and test/CLASS/, or one archive of one of these, "
        f"got {', '.join(path.name for path in archives) or 'none'}"
    )


def _load(source: Path, release: _Release, files: Iterable[tuple[str, bytes]]) -> Dataset:
    """Return the data set of a release of which `files` are the paths and contents."""
    images = np.empty((len(release.files), IMAGES, SIDE, SIDE, CHANNELS), dtype=np.uint8)
    labels = np.empty((len(release.files), IMAGES), dtype=np.int64)
    missing = set(release.files)
    for path, content in files:
        name = PurePosixPath(path).name
        if name not in missing:
            continue
        missing.remove(name)
        at = release.files.index(name)
        planes, labels[at] = release.read(path, content)
        images[at] = planes.reshape(-1, CHANNELS, SIDE, SIDE).transpose(0, 2, 3, 1)
    if missing:
        raise DataError(f"no {', '.join(sorted(missing))} in {source}")
    inputs = images.reshape(-1, FEATURES)
    tests = slice(-IMAGES, None)
    rest = slice(None, -IMAGES)
    return Dataset(
        "cifar10",
        inputs[rest],
        labels.reshape(-1)[rest],
        inputs[tests],
        labels.reshape(-1)[tests],
        classes=CLASSES,
        divisor=255.0,
        image_shape=(SIDE, SIDE, CHANNELS),
    )


def _read_python(path: str, content: bytes) -> tuple[Array, Array]:
    """Read a pickle of a dict with the images, uint8 of shape (images, features), and labels."""
    batch = read_pickle(path, content)
    if not isinstance(batch, dict) or not {b"data", b"labels"} <= batch.keys():
        raise DataError(f"{path}: must hold a dict with b'data' and b'labels'")
    try:
        planes, labels = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"])
    except ValueError as error:  # lists of lists of different lengths
        raise DataError(f"{path}: b'data' and b'labels' must be arrays, {error}") from error
    if planes.shape != (IMAGES, FEATURES) or planes.dtype != np.uint8:
        raise DataError(
            f"{path}: b'data' must be uint8 of shape {(IMAGES, FEATURES)}, "
            f"got {planes.dtype} of shape {planes.shape}"
        )
    check_labels(f"{path}: b'labels'", labels, IMAGES, CLASSES)
    return planes, labels


def _read_binary(path: str, content: bytes) -> tuple[Array, Array]:
    """Read records of one byte for the label and one for each feature."""
    size = IMAGES * (1 + FEATURES)
    if len(content) != size:
        raise DataError(f"{path}: must be of {size} bytes, got {len(content)}")
    records = np.frombuffer(content, dtype=np.uint8).reshape(IMAGES, 1 + FEATURES)
    labels = records[:, 0]
    check_labels(f"{path}: labels", labels, IMAGES, CLASSES)
    return records[:, 1:], labels


def _load_images(path: Path) -> Dataset:
    data = load_image_folder(path)
    found = (len(data.train_inputs), len(data.test_inputs), data.classes, data.image_shape)
    wanted = (5 * IMAGES, IMAGES, CLASSES, (SIDE, SIDE, CHANNELS))
    if found != wanted:
        raise DataError(
            f"{path} is not CIFAR-10: numbers of training and test images, classes and shape of an "
            f"image must be {wanted}, got {found}"
        )
    return replace(data, name="cifar10")


def _download() -> Path:
    with needs_extra("data", "downloading CIFAR-10"):
        import pooch

    folder = Path(pooch.os_cache("numbadrop")) / "cifar10"
    try:
        pooch.retrieve(URL, f"sha256:{SHA256}", BINARY.archive, path=folder)
    except (OSError, ValueError) as error:  # no network; another checksum
        raise DataError(
            f"{URL} could not be downloaded ({error}). Without a network, put {BINARY.archive} "
            f"into {folder}, or name the folder that holds it with data_dir (--data-dir)"
        ) from error
    return folder


PYTHON = _Release(
    "cifar-10-batches-py",
    "cifar-10-python.tar.gz",
    (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"),
    _read_python,
)
BINARY = _Release(
    "cifar-10-batches-bin",
    "cifar-10-binary.tar.gz",
    tuple(f"{name}.bin" for name in PYTHON.files),
    _read_binary,
)
RELEASES = (PYTHON, BINARY)
