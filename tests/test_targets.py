"""Other instruction sets than this machine's best, in processes and cache folders of their own.

The same runs show what the cache does: a second process compiles nothing.
"""

from __future__ import annotations

import pytest
from kernel_checks import IS_X86, answer

PROGRAM = """
import functools
from kernel_checks import *
from numbadrop.optim.rules import AdamRule, NAGRule, SGDRule, adam, nag, sgd
from numbadrop.kernels.elements import MACHINE

print(MACHINE.name, check_many([(1, 1, 1), (9, 40, 3), (65, 70, 4), (17, 47, 33), (3, 515, 40)]))
print(check_winograd())
with winograd_from(sys.maxsize):  # to one channel, and of whole cache lines
    print(check_convolutions([GEOMETRIES[2], GEOMETRIES[-2]]))
for dtype in DTYPES:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((7, 40)).astype(dtype), rng.standard_normal((80, 90)).astype(dtype)
    b, rows, cols = w[0].copy(), np.arange(0, 80, 2), np.sort(rng.permutation(90)[:35])
    factors = {"slope": 0.25, "scale": 1.5}
    labels = rng.integers(35, size=7)
    y = kernels.gathered_linear(x, w, b, rows, cols, **factors)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    close(y, reference.gathered_linear(x, w, b, rows, cols, **factors))
    for one, other in zip(
        kernels.rectifier_gradient(y, y, **factors),
        reference.rectifier_gradient(y, y, **factors),
        strict=True,
    ):
        close(one, other)
    close(kernels.take_columns(w, cols, 2.0), reference.take_columns(w, cols, 2.0))
    close(kernels.cross_entropy(y, labels), reference.cross_entropy(y, labels))
    close(
        kernels.cross_entropy_gradient(y, labels), reference.cross_entropy_gradient(y, labels)
    )
    grad = w[: len(rows), : len(cols)].copy()
    for number, rule, function in (
        (0, SGDRule(0.1, 0.01), sgd), (1, NAGRule(0.9, 0.1, 1.9), nag),
        (2, AdamRule(*[0.5] * len(AdamRule._fields)), adam),
    ):
        value, slots = w.copy(), np.ones((number, *w.shape), dtype)
        want = value.copy(), slots.copy()
        kernels.update_block(rule, value, slots, grad, rows, cols)
        reference.update_block(function, rule, *want, grad, rows, cols)
        close(value, want[0])
        close(slots, want[1])
"""


@pytest.mark.skipif(not IS_X86, reason="the names of these CPUs are those of x86-64")
@pytest.mark.parametrize(
    ("name", "cpu", "features"),
    [
        ("AVX2", "haswell", "+avx2,+fma"),
        ("AVX2", "znver3", "+avx2,+fma"),  # whose masked stores are slow
        ("plain", "generic", ""),
    ],
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
    ("cpu", "machine"),
    [
        ("bdver2", "plain False"),  # fused multiply-add, but no AVX2 and so no permute
        ("haswell", "AVX2 True"),
        ("znver3", "AVX2 False"),
        ("znver4", "AVX-512 True"),
        ("skylake-avx512", "AVX-512 True"),
    ],
)
def test_machine_and_its_masked_stores(cpu, machine):
    program = """
from numbadrop.kernels.elements import MACHINE
print(MACHINE.name, MACHINE.masked_stores)
"""
    env = {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": ""}
    assert answer("-c", program, env=env) == machine


def _has_avx2() -> bool:
    import llvmlite.binding as llvm

    return bool(llvm.get_host_cpu_features().get("avx2"))
