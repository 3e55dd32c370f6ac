"""The cache of compiled code: it is hit, it is never stale, and it does not grow.

Each test works on a copy of the package with a cache of its own. Updates of a block compile
fastest, so that they stand for all kernels: one function compiles them all.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numba
import pytest
from kernel_checks import answer

import numbadrop
from numbadrop.kernels import jit

UPDATE = """
import numpy as np
from numbadrop.kernels import update_block
from numbadrop.optim.rules import SGDRule

value = np.zeros((1, 3))
update_block(SGDRule(2.0, 0.0), value, np.zeros((0, 1, 3)), np.ones((1, 2)), cols=[0, 2])
print(value[0].tolist())
"""


def compiled(folder: Path) -> dict[str, int]:
    """Return the files of a cache and when each was written."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*.nb[ci]")
    }


@pytest.fixture
def package(tmp_path):
    """Return the folder of a copy of the package that was never imported."""
    return shutil.copytree(
        Path(numbadrop.__file__).parent,
        tmp_path / "site" / "numbadrop",
        ignore=shutil.ignore_patterns("__pycache__"),
    )


@pytest.fixture
def run(package, tmp_path):
    """Return a function that runs a program in a fresh process on the copy."""

    def run(program: str, **env: str | None) -> str:
        paths = {"PYTHONPATH": str(package.parent), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
        return answer("-c", program, env=paths | env)

    return run


EDITS = [
    # A file that `update_block`'s kernel is compiled from, an edit of it, and what then comes.
    (
        "optim/rules.py",
        lambda text: text.replace("w[j] - rule.lr *", "w[j] + rule.lr *"),
        "[2.0, 0.0, 2.0]",
    ),
    (
        "kernels/shares.py",
        lambda text: f"{text}\n\n@inner\ndef share(total, parts, number):\n    return 0\n",
        "[0.0, 0.0, 0.0]",
    ),
]


def test_an_edit_of_a_callee_is_never_missed(package, run, tmp_path):
    unchanged = "[-2.0, 0.0, -2.0]"
    assert run(UPDATE) == unchanged
    files = compiled(tmp_path / "cache")
    assert files
    assert run(UPDATE) == unchanged
    assert compiled(tmp_path / "cache") == files  # nothing was compiled
    for name, edit, expected in EDITS:
        source = package / name
        original = source.read_text("utf-8")
        assert edit(original) != original
        source.write_text(edit(original), "utf-8")
        assert run(UPDATE) == expected
        source.write_text(original, "utf-8")
    assert run(UPDATE) == unchanged
    assert compiled(tmp_path / "cache").keys() == files.keys()  # new code replaced old code


def test_code_that_an_earlier_version_has_left_is_not_taken(package, run, tmp_path):
    """As where a process was killed between index and code, or another one reads there."""
    run(UPDATE)
    old = {path: path.read_bytes() for path in (tmp_path / "cache").rglob("*.nbc")}
    name, edit, expected = EDITS[0]
    source = package / name
    source.write_text(edit(source.read_text("utf-8")), "utf-8")
    assert run(UPDATE) == expected
    for path, content in old.items():
        path.write_bytes(content)
    assert run(UPDATE) == expected


@pytest.mark.parametrize("content", [b"", b"\0" * 1000, b"\x80\x04nonsense"])
@pytest.mark.parametrize("kind", ["nbi", "nbc"])
def test_a_damaged_file_is_replaced(run, tmp_path, kind, content):
    """As a power cut may leave it, or half of it."""
    run(UPDATE)
    for path in (tmp_path / "cache").rglob(f"*.{kind}"):
        path.write_bytes(content or path.read_bytes()[:-5])
    assert run(UPDATE) == "[-2.0, 0.0, -2.0]"
    files = compiled(tmp_path / "cache")
    assert run(UPDATE) == "[-2.0, 0.0, -2.0]"
    assert compiled(tmp_path / "cache") == files


def test_a_full_disk_is_no_reason_to_fail(run, tmp_path):
    program = """
import errno
from numba.core.caching import IndexDataCacheFile

def full(self, name, data):
    raise OSError(errno.ENOSPC, "No space left on device")

IndexDataCacheFile._save_data = full
"""
    for _ in range(2):
        assert run(program + UPDATE) == "[-2.0, 0.0, -2.0]"
    assert run(UPDATE) == "[-2.0, 0.0, -2.0]"
    assert not any(path.suffix == ".tmp" for path in (tmp_path / "cache").rglob("*"))


def test_code_for_another_type_is_not_taken(run, tmp_path):
    """As where two processes have compiled for two types at once."""
    twice = UPDATE + UPDATE.replace("np.ones((1, 2))", "np.ones((1, 2), 'f')").replace(
        "3))", "3), 'f')"
    )
    both = "[-2.0, 0.0, -2.0]\n[-2.0, 0.0, -2.0]"
    assert run(twice) == both
    one, other = sorted((tmp_path / "cache").rglob("*_update_part*.nbc"))
    mixed = other.read_bytes(), one.read_bytes()
    for path, content in zip((one, other), mixed, strict=True):
        path.write_bytes(content)
    assert run(twice) == both
    assert run(twice) == both


def test_without_numbas_compiler_the_import_says_so(run):
    program = """
try:
    import numbadrop.kernels
except ImportError as error:
    print("NUMBA_DISABLE_JIT" in str(error))
"""
    assert run(program, NUMBA_DISABLE_JIT="1") == "True"


@pytest.mark.parametrize("constant", ["DATA", "SHAPE", "STRIDES"])
def test_code_for_another_structure_of_arrays_is_not_taken(constant, monkeypatch):
    stamp = jit.sources_stamp.__wrapped__
    before = stamp()
    assert stamp() == before
    monkeypatch.setattr(jit, constant, 0)
    assert stamp() != before


def test_an_edit_of_a_users_own_rule_is_never_missed(run, tmp_path):
    rule = """
from typing import NamedTuple
from numbadrop.kernels import element_rule

class Own(NamedTuple):
    lr: float

@element_rule(Own, slots=0)
def own(rule, w, slots, j, g):
    w[j] = w[j] - FACTOR * rule.lr * g
"""
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r})" + UPDATE.replace(
        "numbadrop.optim.rules import SGDRule", "own_rule import Own"
    ).replace("SGDRule(2.0, 0.0)", "Own(2.0)")
    for factor in ("1.0", "3.0"):
        (tmp_path / "own_rule.py").write_text(rule.replace("FACTOR", factor), "utf-8")
        moved = -2.0 * float(factor)
        assert run(program, PYTHONDONTWRITEBYTECODE="1") == str([moved, 0.0, moved])


@pytest.mark.skipif(numba.version_info.short > jit._TRIED, reason="a newer Numba loads its own way")
def test_loading_leaves_out_what_only_compiling_needs():
    """In a fresh process, all kernels: what one of them misses would end the process."""
    program = """
import sys
from numbadrop.train.warmup import warm_up

warm_up(("sgd", "nag", "adam", "adamw"), images=True)
print("numba.np.arraymath" in sys.modules)
"""
    answer("-c", program, timeout=600)  # Compiles what no other test has yet.
    assert answer("-c", program) == "False"


def test_a_package_that_cannot_be_written_to(package, run, tmp_path):
    """The folder of the user's cache serves then, and a process without any still computes."""
    for folder in [package, *package.rglob("*/")]:
        if folder.is_dir():
            (folder / "__pycache__").touch()  # a file where a folder should be: holds for root too
    home = tmp_path / "home"
    home.mkdir()
    where = {"NUMBA_CACHE_DIR": None, "HOME": str(home), "XDG_CACHE_HOME": None}
    assert run(UPDATE, **where) == "[-2.0, 0.0, -2.0]"
    files = compiled(home)
    assert files
    assert run(UPDATE, **where) == "[-2.0, 0.0, -2.0]"
    assert compiled(home) == files
    nowhere = {**where, "HOME": str(package / "__pycache__")}
    assert run(UPDATE, **nowhere) == "[-2.0, 0.0, -2.0]"
