"""Machine code for a GPU, kept between processes.

Numba's own cache never hits for a kernel that is made for a tile, a layout or a dtype: it compares
pickles of what a kernel closes over, and those of two processes are not the same.
"""

from __future__ import annotations

import hashlib
import os
import threading
from contextlib import suppress
from functools import cache
from importlib import metadata
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from numbadrop.kernels.jit import cache_folder, sources_stamp

__all__ = ["load", "name_of", "save"]

_COMPILERS = (
    "numba", "numba-cuda", "llvmlite",
    "nvidia-nvvm", "nvidia-nvjitlink", "nvidia-cuda-nvcc-cu12", "nvidia-nvjitlink-cu12",
)  # fmt: skip


class _Foreign(Exception):
    """Code takes part that is not ours: an edit of it would be missed."""


def _describe(value: Any) -> Any:
    """Return what a kernel closes over, in words that are the same in each process.

    Of a function of ours its place is enough: the stamp of a file covers all sources.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, np.generic | np.dtype):
        return f"{value!r} {value.dtype if isinstance(value, np.generic) else ''}"
    if isinstance(value, tuple):
        return type(value).__qualname__, *map(_describe, value)
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, ModuleType):
        return value.__name__
    # Numba's device functions and intrinsics stand for functions.
    function = getattr(value, "py_func", getattr(value, "_defn", value))
    if not isinstance(function, FunctionType) or not function.__module__.startswith("numbadrop."):
        raise _Foreign
    cells = [_describe(cell.cell_contents) for cell in function.__closure__ or ()]
    return function.__module__, function.__qualname__, function.__code__.co_firstlineno, *cells


def _describe_type(kind: Any) -> Any:
    """Return a type of Numba in words: to Numba, two named tuples of one name are the same."""
    parts = tuple(map(_describe_type, getattr(kind, "types", ())))
    named = getattr(kind, "instance_class", None)
    if named is None:
        return str(kind), parts
    if not named.__module__.startswith("numbadrop."):
        raise _Foreign
    return named.__module__, named.__qualname__, named._fields, parts


def name_of(
    function: Any, kinds: tuple[Any, ...], bounds: tuple[int, int], capability: tuple[int, int]
) -> str | None:
    """Return a file name for a kernel that is compiled for these types and this GPU.

    None where code that is not ours takes part, such as a user's optimizer rule.
    """
    try:
        types = tuple(map(_describe_type, kinds))
        what = _describe(function), types, bounds, tuple(capability)
    except _Foreign:
        return None
    return f"{function.__name__}.{hashlib.sha256(repr(what).encode()).hexdigest()[:32]}.cubin"


@cache
def _stamp() -> bytes:
    versions = []
    for package in _COMPILERS:
        try:
            versions.append(metadata.version(package))
        except metadata.PackageNotFoundError:
            versions.append("")
    return hashlib.sha256(repr((sources_stamp(), versions)).encode()).digest()


def load(name: str) -> tuple[str, bytes] | None:
    """Return the entry's name and the code, None where there is none that is whole and of today."""
    folder = cache_folder()
    try:
        content = (folder / name).read_bytes() if folder else b""
    except OSError:
        return None
    stamp, digest, rest = content[:32], content[32:64], content[64:]
    if stamp != _stamp() or digest != hashlib.sha256(rest).digest():
        return None
    entry, _, code = rest.partition(b"\n")
    return entry.decode(), code


def save(name: str, entry: str, code: bytes) -> None:
    """Keep machine code, if there is a place for it; what had the name before is gone."""
    folder = cache_folder()
    if folder is None:
        return
    rest = entry.encode() + b"\n" + code
    partial = folder / f"{name}.{os.getpid()}.{threading.get_ident()}"
    try:
        partial.write_bytes(_stamp() + hashlib.sha256(rest).digest() + rest)
        partial.replace(folder / name)
    except OSError:  # A full disk: the next process compiles again.
        pass
    finally:
        with suppress(OSError):
            partial.unlink()
