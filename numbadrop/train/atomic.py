"""Files that are either the old one or the new one, whenever the power goes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

__all__ = ["patiently", "write_atomically"]

Result = TypeVar("Result")

_PAUSES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Seconds between attempts at a file that somebody else has open."""


def patiently(change: Callable[[], Result]) -> Result:
    """Return the result of a change to a file, tried again where others hold the file for a moment.

    On Windows, what a virus scanner, an indexer or a spreadsheet has open cannot be replaced.
    """
    if os.name == "nt":
        for pause in _PAUSES:
            with suppress(PermissionError):
                return change()
            time.sleep(pause)
    return change()


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file at `path`, so that at any moment it is whole, old or new.

    The content goes to a file beside it, which is renamed over it once it has reached the disk. A
    process that is killed before leaves that file behind; the next write reuses its name.
    """
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    patiently(lambda: os.replace(partial, path))
    if os.name == "posix":
        # The renaming itself is on the disk once the folder is. Not all file systems can say so,
        # such as those that a virtual machine shares with its host.
        with suppress(OSError):
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
