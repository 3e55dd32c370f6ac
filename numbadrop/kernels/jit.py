"""How every kernel is compiled: cached on disk, and never served stale.

Numba keys a cached function by its own file only, so that after an edit of a *callee* in another
file, or an upgrade, the caller's old machine code would be served as a hit. Kernels call each
other across files; therefore the stamp of each cache entry is a hash of all the sources that can
reach a kernel.
"""

from __future__ import annotations

import gc
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.ccallback import CFunc
from numba.core.runtime import rtsys
from numba.core.sigutils import normalize_signature

from numbadrop.address import DATA, DESCR, FLAGS, NDIM, SHAPE, STRIDES
from numbadrop.errors import UnsupportedError

__all__ = [
    "DONE",
    "cache_folder",
    "entry",
    "inlined",
    "inner",
    "native_function",
    "native_kernel",
    "sources_stamp",
]

DONE = 1
"""What a kernel returns. One that fails, since there is no memory for what it needs, returns 0."""

_OPTIONS = {"nogil": True, "error_model": "numpy", "no_rewrites": True}
"""Without the interpreter lock; division without a zero check, which would branch in every loop;
and without rewrites of each function, which are for array expressions and for branches that types
decide: kernels have neither."""

_TRIED = (0, 68)
"""The newest Numba whose machine code is known to need no more than its runtime when it is loaded:
what is missing would end the process."""

_COMPILED: list[Any] = []
"""Owns the machine code whose addresses are handed out."""

_CALLEE = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, **_OPTIONS}

inner = numba.njit(**_CALLEE)
"""Compile a function that only other kernels call: it is cached with its callers.

A literal as an argument makes a specialisation of its own; to Numba ``np.int64(0)`` is none.
"""

inlined = numba.njit(inline="always", **_CALLEE)
"""The same for a large function that is called in one place or two, or contains the register tile.

Each level of calls compiles all that is below it again.
"""


if numba.config.DISABLE_JIT:
    raise UnsupportedError(
        "numbadrop's kernels are machine code: they need Numba's compiler, which the environment "
        "variable NUMBA_DISABLE_JIT switches off"
    )


@cache
def sources_stamp() -> str | None:
    """Return a hash of all sources that can reach a kernel, None where there are no files of them.

    So it is in a zip file or a program in one piece, whose own stamps Numba takes.
    """
    package = Path(__file__).parent.parent
    sources = [
        source
        for folder in ("bench", "kernels", "optim")
        for source in sorted((package / folder).rglob("*.py"))
    ]
    if not sources:
        return None
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.read_bytes())
    digest.update(repr((DATA, DESCR, FLAGS, NDIM, SHAPE, STRIDES)).encode())
    return digest.hexdigest()


def cache_folder() -> Path | None:
    """Return where machine code is kept between processes, None where nothing can be written."""
    try:
        return Path(_Cache(cache_folder).cache_path)
    except RuntimeError:
        return None


class _Stamped(CompileResultCacheImpl):  # type: ignore[misc]  # Numba's classes are Any here
    """Machine code with the stamp of its sources, of Numba and of the CPU.

    Numba stamps the index of a cache alone, and writes it first: who is killed before the code is
    written, or reads between, would take for new what an earlier version has left there.
    """

    if os.name == "nt":
        # Where all users share a Python, few may write beside its packages. Numba finds that out
        # with a temporary file, which there takes for ever (python/cpython#66305).
        _locator_classes = [
            locator
            for locator in CompileResultCacheImpl._locator_classes
            if not locator.__name__.lstrip("_").startswith("InTree")
        ]

    def reduce(self, compiled: Any) -> Any:
        return self._stamp(compiled.codegen), super().reduce(compiled)

    def rebuild(self, target_context: Any, payload: Any) -> Any:
        stamp, *rest = payload
        wanted = self._stamp(target_context.codegen())
        return super().rebuild(target_context, *rest) if stamp == wanted else None

    def _stamp(self, codegen: Any) -> tuple[Any, ...]:
        return sources_stamp(), numba.__version__, codegen.magic_tuple()


class _Cache(FunctionCache):  # type: ignore[misc]  # Numba's classes are Any here
    """A cache that loads machine code without all that Numba knows of types and functions.

    To make that ready takes longer than to load the kernels of a net, and only compiling needs it,
    which sees to it itself.
    """

    _impl_class = _Stamped

    def save_overload(self, sig: Any, data: Any) -> None:
        # Who cannot keep it, as where the disk is full, compiles it again the next time.
        with suppress(OSError):
            super().save_overload(sig, data)

    def _load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            found = super()._load_overload(sig, target_context)
        except (OSError, MemoryError):  # As where, on Windows, another process replaces the file.
            return None
        except Exception:  # Whatever unpickling finds in a file that a power cut has left.
            with suppress(OSError):
                self._cache_file.flush()  # An index of nothing, for what is compiled now.
            return None
        # Of two processes that compile for two types at once, one may have written the index and
        # the other the code.
        wanted, _ = normalize_signature(sig)
        return found if found is not None and found.signature.args == wanted else None

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        if numba.version_info.short > _TRIED:
            return super().load_overload(sig, target_context)
        rtsys.initialize(target_context)
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)


def _keep_on_disk(compiled: Any, function: Callable[..., Any]) -> None:
    """Let what will be compiled be kept between processes, if there is a place for it."""
    if cache_folder() is not None:
        compiled._cache = _Cache(function)
        file = compiled._cache._cache_file
        file._source_stamp = sources_stamp() or file._source_stamp


def entry(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls with arrays or numbers."""
    dispatcher = numba.njit(**_OPTIONS)(function)
    _keep_on_disk(dispatcher, function)
    return dispatcher


_collects_later = False


@contextmanager
def _no_collections() -> Iterator[None]:
    """Leave what the compiler drops for later: to look for it again and again is a tenth of it."""
    global _collects_later
    was_enabled = gc.isenabled()
    _collects_later |= was_enabled
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
            _collects_later = False


def _collect_again() -> None:
    """Undo that in a child by fork, whose parent was compiling in another thread."""
    if _collects_later:
        gc.enable()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_collect_again)


def native_function(function: Callable[..., Any], signature: Any) -> Any:
    """Compile a function of numbers for Python to call, now.

    Parameters
    ----------
    function : callable
        A module's own Python function, not a closure, which the cache could not tell apart.
    signature : numba signature
        Of numbers alone.

    Returns
    -------
    callable
        Releases the interpreter lock. It takes as many arguments as `function`, without defaults,
        and converts them: nobody looks for another specialisation.
    """
    compiled = entry(function)
    with _no_collections():
        compiled.compile(signature)
    _COMPILED.append(compiled)
    return compiled.overloads[signature.args].entry_point


def native_kernel(function: Callable[..., Any], first: Any, keep_on_disk: bool = True) -> int:
    """Compile ``function(task, part, parts)`` to a C function, now.

    Parameters
    ----------
    function : callable
        As for `native_function`; returns DONE.
    first : numba type
        The type of what a task begins with; it selects the specialisation.
    keep_on_disk : bool
        False where code that is not ours takes part: an edit of it would be missed.

    Returns
    -------
    int
        Its address, for `threads.run`. The machine code lives as long as the process.
    """
    i64 = numba.types.int64
    signature = i64(numba.types.CPointer(first), i64, i64)
    native = CFunc(
        function, (signature.args, signature.return_type), {}, {"nopython": True, **_OPTIONS}
    )
    if keep_on_disk:
        _keep_on_disk(native, function)
    with _no_collections():
        native.compile()
    _COMPILED.append(native)
    return native.address
