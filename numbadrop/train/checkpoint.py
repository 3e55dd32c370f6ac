"""Checkpoints: everything a run needs to go on as if it had never stopped, in one safetensors file.

The tensors are those of ``model.state_dict()`` and ``optimizer.state_dict()`` under the prefixes
``model.`` and ``optimizer.``. Everything else is JSON in the file's metadata, under the key
``numbadrop``. A checksum over both finds the damage that the format itself would not notice.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbadrop.errors import UserError, needs_extra
from numbadrop.nn import Module
from numbadrop.optim import Optimizer
from numbadrop.train.atomic import write_atomically

__all__ = ["Checkpoint", "CheckpointError", "load_checkpoint", "save_checkpoint"]

Array = NDArray[Any]

FORMAT_VERSION = 1
METADATA_KEY = "numbadrop"
CONTENT = {
    "format_version": int,
    "library_version": str,
    "optimizer_scalars": dict,
    "generators": list,
    "progress": dict,
    "config": dict,
}


class CheckpointError(UserError, ValueError):
    """A checkpoint that cannot be used; the message names the file and what is wrong with it."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a run between two steps.

    Attributes
    ----------
    model : dict of str to ndarray
        As from ``model.state_dict()``.
    optimizer : dict of str to ndarray or number
        As from ``optimizer.state_dict()``.
    generators : list of mappings
        States of the random generators that the model draws from.
    progress : dict
        Where the run stands. JSON.
    config : dict
        What made the run, for whoever wants to build its model again. JSON.
    source : str
        The file, for error messages.

    Examples
    --------
    >>> from numbadrop.nn import Linear
    >>> from numbadrop.optim import SGD
    >>> model = Linear(2, 1).seed(0)
    >>> optimizer = SGD(model.parameters(), lr=0.1)
    >>> then = Checkpoint.capture(model, optimizer, progress={}, config={})
    >>> drawn = model.rng.random()
    >>> model.weight.value[...] = np.nan
    >>> then.restore(model, optimizer)
    >>> bool(np.isnan(model.weight.value).any()), model.rng.random() == drawn
    (False, True)
    """

    model: Mapping[str, Array]
    optimizer: Mapping[str, Any]
    generators: list[Mapping[str, Any]]
    progress: dict[str, Any]
    config: dict[str, Any]
    source: str = ""

    @classmethod
    def capture(
        cls, model: Module, optimizer: Optimizer, progress: dict[str, Any], config: dict[str, Any]
    ) -> Checkpoint:
        """Copy the state of a model, its optimizer and its random generators."""
        generators = [generator.bit_generator.state for generator in _generators(model)]
        return cls(model.state_dict(), optimizer.state_dict(), generators, progress, config)

    def is_finite(self) -> bool:
        """Whether no weight, buffer or slot of the optimizer is NaN or infinite."""
        return all(
            bool(np.isfinite(value).all())
            for state in (self.model, self.optimizer)
            for value in state.values()
        )

    def restore_model(self, model: Module) -> None:
        """Write the weights and buffers into a model of the same architecture.

        Raises
        ------
        CheckpointError
            If a name, shape or dtype differs. Nothing has been changed then.
        """
        try:
            model.load_state_dict(self.model)
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{self.source} is of another architecture: {error.args[0]}"
            ) from error

    def restore(self, model: Module, optimizer: Optimizer) -> None:
        """Write the state into a model and an optimizer that were made as those of the run.

        Raises
        ------
        CheckpointError
            If a name, shape, dtype or kind of generator differs. Nothing has been changed then.
        """
        generators = _generators(model)
        kinds = [generator.bit_generator.state["bit_generator"] for generator in generators]
        saved_kinds = [state["bit_generator"] for state in self.generators]
        if kinds != saved_kinds:
            raise CheckpointError(
                f"{self.source} has the random generators {saved_kinds}, the model has {kinds}: "
                "seed the model as it was for the run"
            )
        before = model.state_dict()
        try:
            self.restore_model(model)
            try:
                optimizer.load_state_dict(self.optimizer)
            except (KeyError, ValueError, TypeError) as error:
                raise CheckpointError(
                    f"{self.source} is of another optimizer: {error.args[0]}"
                ) from error
        except Exception:  # Of the memory or the driver of a GPU, too.
            model.load_state_dict(before)
            raise
        for generator, state in zip(generators, self.generators, strict=True):
            generator.bit_generator.state = state


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, atomically.

    Raises
    ------
    MissingExtraError
        If safetensors is not installed.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> state = Checkpoint({"weight": np.ones(2)}, {}, [], progress={"epoch": 3}, config={})
    >>> with TemporaryDirectory() as folder:
    ...     save_checkpoint(Path(folder, "run.safetensors"), state)
    ...     load_checkpoint(Path(folder, "run.safetensors")).progress
    {'epoch': 3}
    """
    with needs_extra("train", "writing a checkpoint"):
        from safetensors.numpy import save

    optimizer_arrays, optimizer_scalars = {}, {}
    for name, value in checkpoint.optimizer.items():
        if isinstance(value, np.ndarray):
            optimizer_arrays[name] = value
        else:
            optimizer_scalars[name] = value
    tensors = {f"model.{name}": value for name, value in checkpoint.model.items()}
    tensors |= {f"optimizer.{name}": value for name, value in optimizer_arrays.items()}
    content = {
        "format_version": FORMAT_VERSION,
        "library_version": _library_version(),
        "optimizer_scalars": optimizer_scalars,
        "generators": checkpoint.generators,
        "progress": checkpoint.progress,
        "config": checkpoint.config,
    }
    text = json.dumps(content, default=_jsonable)
    metadata = {METADATA_KEY: text, "checksum": _checksum(tensors, text)}
    write_atomically(Path(path), save(tensors, metadata))


def check_config(config: Any) -> None:
    """Refuse what a checkpoint could not hold."""
    try:
        json.dumps(config, default=_jsonable)
    except (TypeError, ValueError) as error:
        raise TypeError(f"config must be JSON: {error}") from None


def _jsonable(value: Any) -> Any:
    """Return what JSON knows for what it does not.

    Some bit generators have arrays in their state, which take lists as well; a seed may be one of
    NumPy's integers.
    """
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint.

    Raises
    ------
    CheckpointError
        If the file does not exist, is truncated or damaged, or is no checkpoint of this format.
    MissingExtraError
        If safetensors is not installed.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from numbadrop.nn import Linear
    >>> state = Checkpoint({"weight": np.ones((1, 2), np.float32)}, {}, [], progress={}, config={})
    >>> model = Linear(1, 2, bias=False)
    >>> with TemporaryDirectory() as folder:
    ...     save_checkpoint(Path(folder, "run.safetensors"), state)
    ...     load_checkpoint(Path(folder, "run.safetensors")).restore_model(model)
    >>> model.weight.value
    array([[1., 1.]], dtype=float32)
    """
    with needs_extra("train", "reading a checkpoint"):
        from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: truncated or damaged, {error}") from error
    for key in (METADATA_KEY, "checksum"):
        if key not in metadata:
            raise CheckpointError(
                f"{path}: not a checkpoint of numbadrop, its metadata has no key {key!r}"
            )
    text = metadata[METADATA_KEY]
    if metadata["checksum"] != _checksum(tensors, text):
        raise CheckpointError(f"{path}: damaged, its checksum is not that of its content")
    content = json.loads(text)
    if content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {content.get('format_version')}, "
            f"this version of numbadrop reads {FORMAT_VERSION}"
        )
    for key, kind in CONTENT.items():
        if not isinstance(content.get(key), kind):
            raise CheckpointError(f"{path}: no {key!r} of type {kind.__name__} in its metadata")
    model, optimizer = {}, dict(content["optimizer_scalars"])
    for name, tensor in tensors.items():
        owner, _, rest = name.partition(".")
        if owner == "model":
            model[rest] = tensor
        elif owner == "optimizer":
            optimizer[rest] = tensor
        else:
            raise CheckpointError(
                f"{path}: unexpected tensor {name!r}, names begin with 'model.' or 'optimizer.'"
            )
    return Checkpoint(
        model,
        optimizer,
        content["generators"],
        content["progress"],
        content["config"],
        source=str(path),
    )


def _library_version() -> str:
    try:
        return version("numbadrop")
    except PackageNotFoundError:  # imported from a source tree that is not installed
        return "unknown"


def _generators(model: Module) -> list[np.random.Generator]:
    """Return the generators that the modules draw from, each once."""
    return list({id(module.rng): module.rng for module in model.modules()}.values())


def _checksum(tensors: Mapping[str, Array], text: str) -> str:
    checksum = zlib.crc32(text.encode())
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        checksum = zlib.crc32(f"{name} {tensor.dtype} {tensor.shape}".encode(), checksum)
        checksum = zlib.crc32(tensor.data, checksum)
    return f"{checksum:08x}"
