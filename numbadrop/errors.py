"""Errors that tell a user what to put right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "DeviceError", "DeviceMemoryError", "MissingExtraError", "UnsupportedError", "UserError",
    "needs_extra",
]  # fmt: skip


class UserError(Exception):
    """An error whose message is all that a user needs: the command line shows no traceback.

    Attributes
    ----------
    exit_code : int
        What the command line ends with.
    """

    exit_code = 2


class MissingExtraError(UserError, ImportError):
    """A feature was asked for whose optional dependency is not installed."""


class UnsupportedError(UserError, ImportError):
    """Numbadrop's kernels cannot run in this process."""


class DeviceError(UserError, RuntimeError):
    """A GPU was asked for, and there is none that can be used."""


class DeviceMemoryError(UserError, MemoryError):
    """The memory of the GPU is full."""


@contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Turn a failed import in the block into the command that installs what is missing.

    Parameters
    ----------
    extra : str
        The extra of ``pyproject.toml`` that brings the package.
    what : str
        What the package is wanted for.

    Raises
    ------
    MissingExtraError
        If a module imported in the block is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise MissingExtraError(
            f'{what} needs {package}, which is not installed: pip install "numbadrop[{extra}]"'
        ) from error
