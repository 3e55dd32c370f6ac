"""Other instruction sets than this machine's best, in processes and cache folders of their own.

The same runs show what the cache does: a second process compiles nothing.
"""

from __future__ import annotations

import pytest
from kernel_checks import IS_X86, answer

PROGRAM = """
from kernel_checks import *
from numbadrop.kernels.elements import MACHINE

print(MACHINE.name, check_many([(1, 1, 1), (9, 1, 15), (17, 47, 33), (3, 515, 40)]))
"""


@pytest.mark.skipif(not IS_X86, reason="the names of these CPUs are those of x86-64")
@pytest.mark.parametrize(
    ("name", "cpu", "features"),
    [("AVX2", "haswell", "+avx2,+fma"), ("plain", "generic", "")],
)
def test_products_and_cache(name, cpu, features, tmp_path):
    if name == "AVX2" and not _has_avx2():
        pytest.skip("this CPU has no AVX2")
    env = {
        "NUMBA_CPU_NAME": cpu,
        "NUMBA_CPU_FEATURES": features,
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    first = answer("-c", PROGRAM, env=env)
    assert first.startswith(name)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb[ci]")}
    assert files
    assert answer("-c", PROGRAM, env=env) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb[ci]")} == files


@pytest.mark.skipif(not IS_X86, reason="the names of these CPUs are those of x86-64")
@pytest.mark.parametrize(
    ("cpu", "features", "name"),
    [
        ("bdver2", "", "plain"),  # fused multiply-add, but no AVX2 and so no permute
        ("znver3", "", "AVX2"),
        ("skylake-avx512", "", "AVX-512"),
    ],
)
def test_name_of_the_machine(cpu, features, name):
    program = "from numbadrop.kernels.elements import MACHINE; print(MACHINE.name)"
    env = {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features}
    assert answer("-c", program, env=env) == name


def _has_avx2() -> bool:
    import llvmlite.binding as llvm

    return bool(llvm.get_host_cpu_features().get("avx2"))
