"""What a user waits for before the first step, each in a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FIRST_STEP = """
import numpy as np
from numbadrop.nn import BatchwiseDropout, Linear, ReLU, Sequential, cross_entropy
from numbadrop.optim import NAG
net = Sequential(Linear(784, 800), ReLU(), BatchwiseDropout(), Linear(800, 10)).seed(0)
optimizer = NAG(net.parameters(), lr=0.1, momentum=0.9)
cross_entropy(net(np.ones((100, 784), np.float32)), np.zeros(100, int)).backward()
optimizer.step()
"""


def _seconds(program: str, cache: str) -> float:
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "NUMBA_CACHE_DIR": cache}, check=True
    )
    return time.perf_counter() - began


class Startup:
    """From starting Python to the end of the first step of a small net."""

    def setup_cache(self) -> dict[str, float]:
        """Measure once for all: each figure needs the machine code that the first run leaves."""
        with tempfile.TemporaryDirectory() as folder:
            found = {"cold": _seconds(FIRST_STEP, folder)}
            found["cached"] = min(_seconds(FIRST_STEP, folder) for _ in range(5))
            found["import"] = min(_seconds("import numbadrop.nn", folder) for _ in range(5))
            # Of six runs; the later ones must add none.
            found["files"] = sum(1 for _ in Path(folder).rglob("*.nb?"))
        return found

    setup_cache.timeout = 300

    def track_first_step_cold(self, found: dict[str, float]) -> float:
        return found["cold"]

    def track_first_step_cached(self, found: dict[str, float]) -> float:
        return found["cached"]

    def track_import(self, found: dict[str, float]) -> float:
        return found["import"]

    def track_cache_files(self, found: dict[str, float]) -> float:
        return found["files"]

    track_first_step_cold.unit = track_first_step_cached.unit = track_import.unit = "s"
    track_cache_files.unit = "files"
