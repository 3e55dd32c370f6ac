"""The tests that need a GPU, in Numba's simulator, which has to be switched on for a whole process;
and what is said where there is no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from kernel_checks import answer

HERE = Path(__file__).parent
INSTALLED = find_spec("numba_cuda") is not None


@pytest.mark.skipif(not INSTALLED, reason='numba-cuda is missing: pip install "numbadrop[cuda]"')
@pytest.mark.parametrize("file", ["test_cuda.py", "test_cuda_kernels.py"])
def test_in_the_simulator(file):
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / file],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-5000:]
    assert " passed" in ran.stdout
    assert "skipped" not in ran.stdout


def test_a_step_on_the_cpu_leaves_cuda_alone():
    program = """
import sys
import numpy as np
from numbadrop.nn import BatchwiseDropout, Linear, Sequential, cross_entropy
from numbadrop.optim import SGD

net = Sequential(BatchwiseDropout(0.5), Linear(4, 3)).seed(0)
optimizer = SGD(net.parameters(), lr=0.1)
cross_entropy(net(np.ones((2, 4), np.float32)), [0, 1]).backward()
optimizer.step()
print([name for name in ("numba.cuda", "numbadrop.kernels.cuda") if name in sys.modules])
"""
    assert answer("-c", program) == "[]"


def test_without_numba_cuda_the_extra_is_named():
    program = """
import sys
sys.modules["numba_cuda"] = None
from numbadrop.nn import Linear, Sequential
net = Sequential(Linear(4, 3)).seed(0)
try:
    net.to("cuda")
except ImportError as error:
    print(error)
print(net.device)
"""
    said, device = answer("-c", program).splitlines()
    assert said == 'a GPU needs numba_cuda, which is not installed: pip install "numbadrop[cuda]"'
    assert device == "cpu"


@pytest.mark.skipif(not INSTALLED, reason='numba-cuda is missing: pip install "numbadrop[cuda]"')
def test_without_a_gpu_that_is_said():
    program = """
from numba import cuda
from numbadrop.errors import UserError
from numbadrop.kernels import to_device
try:
    to_device([1.0])
except UserError as error:
    print("no GPU can be used" in str(error) and "NVIDIA" in str(error), "\\n" in str(error))
else:
    print(True, False)
"""
    assert answer("-c", program, env={"NUMBA_ENABLE_CUDASIM": "0"}) == "True False"
