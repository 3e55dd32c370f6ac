"""The tests of the GPU, run where there is none: Numba's simulator stands in for it.

It is chosen when Numba is imported, and so needs a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = ["test_cuda.py", "test_cuda_kernels.py"]


@pytest.mark.skipif(find_spec("numba_cuda") is None, reason="numba-cuda is missing")
@pytest.mark.skipif(os.environ.get("NUMBA_ENABLE_CUDASIM") == "1", reason="they run by themselves")
def test_under_the_simulator():
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    arguments = ["-q", "-p", "no:cacheprovider", *(str(HERE / name) for name in FILES)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
