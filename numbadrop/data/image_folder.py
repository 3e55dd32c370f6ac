"""Images in one folder a class, on the disk or in an archive."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbadrop.data.archives import is_archive, read_archive
from numbadrop.data.dataset import DataError, Dataset
from numbadrop.errors import needs_extra

__all__ = ["is_image_folder", "load_image_folder"]

Array = NDArray[Any]
Files = dict[str, Path | bytes]

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".pbm", ".pnm"}
TEST_FOLDERS = ("test", "val", "valid")
GREY = {"1", "L", "LA"}
DEEP = ("I", "F")
"""How Pillow's modes of more than 8 bits begin."""
CHUNK = 100
"""Images that a thread decodes at a time: small ones take less time than handing them out."""


def is_image_folder(path: Path) -> bool:
    """Whether a path is what `load_image_folder` reads."""
    return is_archive(path) or (path / "train").is_dir()


def load_image_folder(path: str | Path) -> Dataset:
    """Load images sorted into folders: ``train/CLASS/IMAGE`` and ``test/CLASS/IMAGE``.

    Parameters
    ----------
    path : path
        A folder, or a tar or zip archive of one; ``val`` or ``valid`` may stand in place of
        ``test``. Images are PNG, JPEG, BMP, GIF, WebP or PNM files, all of one size; other and
        hidden files are skipped.

    Returns
    -------
    Dataset
        uint8 inputs, divisor 255. Classes are numbered in the order of their sorted names, images
        sorted by name. There is one channel if all images are grey, else three.

    Raises
    ------
    DataError
        If there are no images, an image is broken, has more than 8 bits a channel or another size
        than the rest, or the classes of training and test differ. The message names the file.
    MissingExtraError
        If Pillow is not installed.
    """
    path = Path(path)
    files = _find(path)
    there = {name.split("/")[0] for name in files}
    test = next((folder for folder in TEST_FOLDERS if folder in there), "test")
    parts = {
        part: [name for name in files if name.startswith(f"{part}/")] for part in ("train", test)
    }
    for part, names in parts.items():
        if not names:
            raise DataError(f"{path}: no images in {part}/CLASS/")
    classes = {part: {name.split("/")[1] for name in names} for part, names in parts.items()}
    if classes["train"] != classes[test]:
        odd = ", ".join(sorted(classes["train"] ^ classes[test]))
        raise DataError(f"{path}: the classes of train and {test} must be the same, {odd} is not")
    number = {name: label for label, name in enumerate(sorted(classes["train"]))}
    names = [*parts["train"], *parts[test]]
    labels = np.array([number[name.split("/")[1]] for name in names])
    images = _decode(path, {name: files[name] for name in names})
    count = len(parts["train"])
    inputs = images.reshape(len(images), -1)
    return Dataset(
        path.name,
        inputs[:count],
        labels[:count],
        inputs[count:],
        labels[count:],
        classes=len(number),
        divisor=255.0,
        image_shape=images.shape[1:],
    )


def _find(path: Path) -> Files:
    """Return the image files, sorted, under names of the form ``train/CLASS/IMAGE``."""
    members: Iterable[tuple[str, Path | bytes]]
    if path.is_dir():
        members = ((file.relative_to(path).as_posix(), file) for file in path.glob("*/*/*"))
    elif is_archive(path):
        members = read_archive(path)
    else:
        raise DataError(f"{path}: no such folder, nor a tar or zip archive")
    files: Files = {}
    for member, file in members:
        # An archive may hold the folder, or only what is in it.
        parts = PurePosixPath(member).parts[-3:]
        name = "/".join(parts)
        is_image = PurePosixPath(name).suffix.lower() in SUFFIXES
        if len(parts) < 3 or not is_image or parts[-1].startswith("."):
            continue
        if name in files:
            raise DataError(f"{path}: more than one {name}")
        files[name] = file
    return dict(sorted(files.items()))


def _decode(path: Path, files: Files) -> Array:
    """Return the pixels of all images, uint8 of shape (images, height, width, channels)."""
    with needs_extra("data", "reading images"):
        from PIL import Image

    names = list(files)

    @contextmanager
    def opened(name: str) -> Iterator[Image.Image]:
        file = files[name]
        try:
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
                if image.mode.startswith(DEEP):
                    raise ValueError(f"it has more than 8 bits a channel (mode {image.mode})")
                yield image
        # A broken file makes Pillow's decoders fail in any way.
        except Exception as error:
            raise DataError(f"{path}/{name}: not a readable image, {error}") from error

    def is_grey(name: str) -> bool:
        with opened(name) as image:
            return image.mode in GREY

    mode = "L" if all(map(is_grey, names)) else "RGB"

    def read(name: str) -> Array:
        with opened(name) as image:
            # Straight from a palette, Pillow warns of colours that are transparent.
            whole = image.convert("RGBA") if "transparency" in image.info else image
            return np.asarray(whole if whole.mode == mode else whole.convert(mode))

    first = read(names[0])
    height, width = first.shape[:2]
    pixels = np.empty((len(names), *first.shape), dtype=np.uint8)

    def decode(start: int) -> None:
        for index, name in enumerate(names[start : start + CHUNK], start):
            image = read(name)
            if image.shape != first.shape:
                raise DataError(
                    f"{path}/{name}: must be of {width} x {height} pixels as {names[0]} is, got "
                    f"{image.shape[1]} x {image.shape[0]}"
                )
            pixels[index] = image

    # Pillow's decoders let other threads run: that helps with images of more than a few thousand
    # pixels.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(decode, range(0, len(names), CHUNK)):
            pass
    return pixels.reshape(len(names), height, width, -1)
