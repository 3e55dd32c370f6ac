"""Settings of the whole test session."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

# Compilation makes some example slow, so no profile has a deadline.
settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


class _WithoutNumbaCuda:
    """Looks for no examples in modules that cannot be imported."""

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        return True if collection_path.parts[-2:] == ("kernels", "cuda") else None


def pytest_configure(config: pytest.Config) -> None:
    # Registered, since the hooks of a conftest are for the files beside it alone.
    if find_spec("numba_cuda") is None:
        config.pluginmanager.register(_WithoutNumbaCuda())
