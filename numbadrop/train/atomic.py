"""Files that are either the old one or the new one, whenever the power goes."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["write_atomically"]


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
    os.replace(partial, path)
    if os.name == "posix":  # The renaming itself is on the disk once the folder is.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
