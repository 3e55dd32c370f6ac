"""MNIST, from a folder or downloaded once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from numbadrop.data.dataset import DataError, Dataset
from numbadrop.data.idx import IDX_FILES, load_idx
from numbadrop.errors import needs_extra

__all__ = ["load_mnist"]

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
SHA256 = {
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}


def load_mnist(data_dir: str | Path | None = None) -> Dataset:
    """Load MNIST: 60,000 training and 10,000 test images of handwritten digits.

    Parameters
    ----------
    data_dir : path, optional
        Folder with the four IDX files (see `load_idx`). Without it they are downloaded once to
        the user's cache folder and their checksums are compared.

    Returns
    -------
    Dataset
        784 features, float32 in [0, 1]; 10 classes.

    Raises
    ------
    DataError
        If a file in `data_dir` is missing or broken, or if nothing could be downloaded.
    MissingExtraError
        If a download is wanted and pooch is not installed.
    """
    folder = Path(data_dir) if data_dir is not None else _download()
    return replace(load_idx(folder), name="mnist")


def _download() -> Path:
    with needs_extra("data", "downloading MNIST"):
        import pooch

    folder = Path(pooch.os_cache("numbadrop")) / "mnist"
    for name in IDX_FILES:
        refusals = []
        for mirror in MIRRORS:
            try:
                pooch.retrieve(
                    f"{mirror}{name}.gz", f"sha256:{SHA256[name]}", f"{name}.gz", path=folder
                )
                break
            except (OSError, ValueError) as error:  # no network; another checksum
                refusals.append(f"{mirror}: {error}")
        else:
            raise DataError(
                f"{name}.gz could not be downloaded ({'; '.join(refusals)}). Without a network, "
                f"put {', '.join(f'{name}.gz' for name in IDX_FILES)} into {folder}, or name the "
                "folder that holds them with data_dir (--data-dir)"
            )
    return folder
