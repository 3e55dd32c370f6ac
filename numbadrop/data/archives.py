"""Archives that are read without being unpacked onto the disk."""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from numbadrop.data.dataset import DataError

__all__ = ["is_archive", "read_archive"]

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")


def is_archive(path: Path) -> bool:
    """Whether a path is a file that is called as an archive is."""
    return path.name.lower().endswith(SUFFIXES) and path.is_file()


def read_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each file in an archive, in the order in which they lie there.

    Raises
    ------
    DataError
        If the archive is truncated or broken.
    """
    try:
        yield from _read_zip(path) if path.suffix.lower() == ".zip" else _read_tar(path)
    # zipfile says with a RuntimeError that a password is needed, and with a NotImplementedError,
    # which is one too, that it does not know the compression.
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        OSError,
        RuntimeError,
    ) as error:
        raise DataError(f"{path}: not a readable archive, {error}") from error


def _read_zip(path: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename
            if member.create_system == 0:  # Windows, whose own separators some programs write.
                name = name.replace("\\", "/")
            if not name.endswith("/"):
                yield name, archive.read(member)


def _read_tar(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as archive:
        for member in archive:
            # Links and devices are not followed: no name in an archive reaches out of it.
            if member.isreg():
                file = archive.extractfile(member)
                assert file is not None  # as for every regular file
                yield member.name, file.read()
        # tarfile takes whatever is no header for the end. But zeros end an archive, and only who
        # reads them too is told that the checksum of a compressed one is wrong.
        assert archive.fileobj is not None
        rest = archive.fileobj.read(-1)
        if not rest or rest.strip(b"\0"):
            raise tarfile.ReadError("truncated or damaged")
