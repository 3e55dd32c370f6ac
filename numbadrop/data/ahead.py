"""Results that a thread computes before they are asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

__all__ = ["DEPTH", "ahead"]

A = TypeVar("A")
R = TypeVar("R")

DEPTH = 2
"""Results that are ready or under way while the caller works on one."""


def ahead(function: Callable[[A], R], arguments: Iterable[A]) -> Iterator[R]:
    """Yield ``function(argument)`` of each argument in turn, computed by a thread of its own.

    The thread starts with the first result, so that a process may fork before, but not between
    results, and has ended when the iterator is exhausted, closed or dropped; at most one call has
    to finish for that. An exception of `function` is raised in place of its result.

    Examples
    --------
    >>> list(ahead(str, [1, 2, 3]))
    ['1', '2', '3']
    """
    rest = iter(arguments)
    # Leaving the block joins the thread.
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="numbadrop-data") as worker:
        pending = deque[Future[R]]()
        try:
            pending.extend(worker.submit(function, argument) for argument in islice(rest, DEPTH))
            while pending:
                result = pending.popleft()
                pending.extend(worker.submit(function, argument) for argument in islice(rest, 1))
                yield result.result()
        finally:
            for result in pending:
                result.cancel()
