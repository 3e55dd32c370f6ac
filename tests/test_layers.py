"""The layers of the house: every import in the package goes down.

The sources are read, not imported, so that a deferred import inside a function counts too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import numbadrop

PACKAGE = Path(numbadrop.__file__).parent

# A unit may import the units of a lower level, and itself. "__init__" is the package's own face.
LEVELS = {
    "address": 0,
    "errors": 0,
    "index_set": 1,
    "autograd": 2,
    "kernels": 2,
    "ops": 3,
    "nn": 4,
    "optim": 5,
    "data": 5,
    "train": 6,
    "__init__": 7,
    "bench": 8,
    "cli": 9,
    "__main__": 10,
}
# Of those, data gets by with less: it is arrays and files, and knows nothing of nets.
NARROWER = {"data": {"errors"}}

NUMBA = {"numba", "numba_cuda", "cuda", "llvmlite"}
# The kernels, and the command, which sets the threads and shows versions.
MAY_IMPORT_NUMBA = ("kernels.", "cli.")


@dataclass(frozen=True)
class Import:
    """One module imported by another, both by their dotted names below the package's root."""

    importer: str
    target: str
    line: int
    deferred: bool
    external: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


def read_imports(package: Path) -> list[Import]:
    """Return every import that is written in the package."""
    files = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "__init__"] = path
    return [
        Import(name, *found)
        for name, path in files.items()
        for found in _imports_of(name, path, package.name, files.keys())
    ]


def _imports_of(
    importer: str, path: Path, root: str, modules: Collection[str]
) -> Iterator[tuple[str, int, bool, bool]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    deferred = {
        inner
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(outer)
    }
    here = [] if importer == "__init__" else importer.split(".")
    if path.name != "__init__.py":
        here = here[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([root, *here[: len(here) + 1 - node.level], base]).rstrip(".")
            # `from package import name` names a submodule, or something the package holds.
            targets = [
                f"{base}.{alias.name}"
                if base == "numba" or f"{base}.{alias.name}".removeprefix(f"{root}.") in modules
                else base
                for alias in node.names
            ]
        else:
            continue
        for target in dict.fromkeys(targets):
            external = target.split(".")[0] != root
            below = target if external else target.removeprefix(root).lstrip(".") or "__init__"
            yield below, node.lineno, node in deferred, external


def upward(imports: list[Import]) -> list[Import]:
    """Return the imports that leave their unit and do not go down."""
    wrong = []
    for found in imports:
        if found.external:
            continue
        unit, target = found.importer.split(".")[0], found.target.split(".")[0]
        lower = {name for name, level in LEVELS.items() if level < LEVELS[unit]}
        if target not in NARROWER.get(unit, lower) | {unit}:
            wrong.append(found)
    return wrong


def of_a_gpu(imports: list[Import]) -> list[Import]:
    """Return the imports that would bring a GPU's kernels to those who have none."""
    return [
        found
        for found in imports
        if not found.importer.startswith("kernels.cuda")
        and f"{found.target}.".startswith(("kernels.cuda.", "numba.cuda.", "numba_cuda."))
    ]


def find_cycle(imports: list[Import]) -> list[str]:
    """Return the modules of one import cycle, an empty list where there is none."""
    graph = TopologicalSorter[str]()
    for found in imports:
        if not found.external:
            graph.add(found.importer, found.target)
    try:
        graph.prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def foreign(imports: list[Import]) -> list[Import]:
    """Return the imports of packages that do not belong where they stand."""
    wrong = []
    for found in imports:
        package = found.target.split(".")[0]
        if not found.external or package in sys.stdlib_module_names or package == "numpy":
            continue
        if package in NUMBA:
            if not f"{found.importer}.".startswith(MAY_IMPORT_NUMBA):
                wrong.append(found)
        elif not found.deferred:
            wrong.append(found)
    return wrong


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return read_imports(PACKAGE)


def test_every_unit_has_a_level(imports: list[Import]) -> None:
    units = {found.importer.split(".")[0] for found in imports}
    assert units <= LEVELS.keys()


def test_imports_go_down(imports: list[Import]) -> None:
    assert not upward(imports), "\n".join(map(str, upward(imports)))


def test_kernels_of_a_gpu_are_imported_by_name_alone(imports: list[Import]) -> None:
    assert not of_a_gpu(imports), "\n".join(map(str, of_a_gpu(imports)))


def test_no_cycles(imports: list[Import]) -> None:
    assert not find_cycle(imports), " -> ".join(find_cycle(imports))


def test_numba_in_kernels_only_and_extras_deferred(imports: list[Import]) -> None:
    assert not foreign(imports), "\n".join(map(str, foreign(imports)))


@pytest.mark.parametrize(
    ("file", "source", "rule"),
    [
        ("ops/linear.py", "from numbadrop.nn import Linear", upward),
        ("ops/linear.py", "def f():\n    import numbadrop.nn.linear", upward),
        ("ops/linear.py", "from ..nn.linear import Linear", upward),
        ("autograd.py", "from numbadrop import kernels", upward),
        ("train/fit.py", "from numbadrop import __version__", upward),
        ("data/idx.py", "from numbadrop.index_set import IndexSet", upward),
        ("nn/linear.py", "from numbadrop.nn import module", find_cycle),
        ("nn/linear.py", "from . import module", find_cycle),
        ("ops/linear.py", "import numba as nb", foreign),
        ("optim/rules.py", "def f():\n    from numba import njit", foreign),
        ("data/idx.py", "import pooch", foreign),
        ("kernels/matmul.py", "def f():\n    from numbadrop.kernels import cuda", of_a_gpu),
        ("kernels/jit.py", "from numba import cuda", of_a_gpu),
    ],
)
def test_a_planted_fault_is_found(
    tmp_path: Path, file: str, source: str, rule: Callable[[list[Import]], object]
) -> None:
    package = tmp_path / "numbadrop"
    house = {
        "__init__.py": "from numbadrop.nn import Linear",
        "nn/__init__.py": "from numbadrop.nn.linear import Linear",
        "nn/linear.py": "",
        "nn/module.py": "from .linear import Linear",
        "kernels/__init__.py": "import numba",
        "kernels/cuda/__init__.py": "from numba import cuda",
        "data/__init__.py": "def load():\n    import pooch",
    }
    for name, text in house.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert not rule(read_imports(package))

    path = package / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    assert rule(read_imports(package))
