"""Compare two commits by interleaved ratios, and fail if one is slower beyond doubt.

    pip install ".[bench]"
    python asv_benchmarks/gate.py main            # the last commit, against another
    python asv_benchmarks/gate.py HEAD~1 HEAD --bench "training|conv" --json ratios.json

Both commits are taken from git, run in the active environment, and measured with the benchmarks of
this working tree (those called time_*). A process of each waits for its turn, so that both meet
the same machine; what differs from process to process, such as where memory lies, is met by
starting new pairs of them. A pair gives one ratio for each benchmark: the median over many turns.

Screening finds what looks slower by half the limit. That alone proves nothing when a hundred
benchmarks are looked at, so the worst of these are measured again by as many new pairs as
`--confirm` says, and only that second measurement counts: a benchmark fails if its ratio is above
the limit and the whole confidence interval of the ratio above 1. The interval is Student's on the
logarithms of the ratios of the pairs, at 99 % for all that were confirmed together (Bonferroni).

Exit code: 0 if nothing is slower, 1 if something is, 2 for a mistake in the arguments.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import itertools
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
MODULES = ("kernels", "convolutions", "training", "batches", "machine")
TURN, TURNS = 0.02, 5
"""Seconds that a process measures at a time, and turns of each process for each benchmark."""
CONFIDENCE = 0.99
MOST_CONFIRMED = 16


class Name(NamedTuple):
    """A benchmark with one combination of its parameters; they are known by their positions."""

    module: str
    klass: str
    method: str
    params: tuple[int, ...]


def benchmarks() -> Iterator[tuple[str, Name]]:
    """Yield every timed benchmark with its description."""
    for module in MODULES:
        for klass, found in vars(importlib.import_module(f"benchmarks.{module}")).items():
            if not inspect.isclass(found) or found.__module__ != f"benchmarks.{module}":
                continue
            params = getattr(found, "params", ())
            axes = params if params and isinstance(params[0], tuple) else (params,)
            for method in (name for name in vars(found) if name.startswith("time_")):
                for values in itertools.product(*(range(len(axis)) for axis in axes)):
                    chosen = (axis[value] for axis, value in zip(axes, values, strict=True))
                    described = ", ".join(map(str, chosen))
                    yield f"{module}.{klass}({described})", Name(module, klass, method, values)


# The process that measures one commit


def work() -> None:
    """Answer the requests on standard input, one a line, until it ends."""
    from numbadrop import kernels  # of the commit that this process measures

    running: Any = None
    arguments: tuple[Any, ...] = ()
    method, calls = "", 1
    threads = kernels.get_num_threads()
    for line in sys.stdin:
        request = json.loads(line)
        answer: Any = None
        if request is not None:
            name = Name(*request)
            found = getattr(importlib.import_module(f"benchmarks.{name.module}"), name.klass)
            axes = found.params if isinstance(found.params[0], tuple) else (found.params,)
            arguments = tuple(axis[at] for axis, at in zip(axes, name.params, strict=True))
            running, method = found(), name.method
            kernels.set_num_threads(threads)  # One that wants fewer leaves it so.
            try:
                running.setup(*arguments)
                calls = max(1, round(TURN / max(_seconds(running, method, arguments, 3), 1e-9)))
                answer = calls
            except NotImplementedError:
                pass  # A commit that does not have it yet.
        else:
            _seconds(running, method, arguments, 1)  # wakes threads and caches up
            answer = _seconds(running, method, arguments, calls)
        print(json.dumps(answer), flush=True)


def _seconds(running: Any, method: str, arguments: tuple[Any, ...], calls: int) -> float:
    run = getattr(running, method)
    began = time.perf_counter()
    for _ in range(calls):
        run(*arguments)
    return (time.perf_counter() - began) / calls


class Worker:
    """A process that runs the benchmarks on one commit's sources."""

    def __init__(self, sources: Path) -> None:
        paths = {"PYTHONPATH": str(sources), "NUMBA_CACHE_DIR": str(sources / "jit")}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "gate.py"), "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **paths},
            text=True,
        )

    def ask(self, request: Any) -> Any:
        """Send a request and wait for the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the benchmark {request} has ended its process")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


# The comparison


class Ratio(NamedTuple):
    """Time of the newer commit over that of the older, with its confidence interval."""

    middle: float
    low: float
    high: float


def measured(
    sources: tuple[Path, Path], names: dict[str, Name], pairs: int
) -> dict[str, list[float]]:
    """Return the ratios of several pairs of processes for each benchmark that both commits know."""
    found: dict[str, list[float]] = {}
    for pair in range(pairs):
        base, head = workers = tuple(map(Worker, sources))
        try:
            for number, (described, name) in enumerate(names.items()):
                _progress(f"pair {pair + 1} of {pairs}, {number + 1} of {len(names)}: {described}")
                if not all(worker.ask(name) for worker in workers):
                    continue
                ratios = []
                for turn in range(TURNS):
                    order = (base, head) if (turn + pair) % 2 else (head, base)
                    seconds = {worker: worker.ask(None) for worker in order}
                    ratios.append(seconds[head] / seconds[base])
                found.setdefault(described, []).append(statistics.median(ratios))
        finally:
            for worker in workers:
                worker.close()
    _progress("")
    return found


def interval(ratios: list[float], among: int) -> Ratio:
    """Return the mean and the interval that holds, for all of `among` together, with CONFIDENCE."""
    from scipy.stats import t as student  # the workers do without

    logarithms = [math.log(ratio) for ratio in ratios]
    middle = statistics.fmean(logarithms)
    error = statistics.stdev(logarithms) / math.sqrt(len(ratios))
    reach = error * student.ppf(1 - (1 - CONFIDENCE) / (2 * among), len(ratios) - 1)
    return Ratio(*map(math.exp, (middle, middle - reach, middle + reach)))


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text[:100]}", end="", file=sys.stderr, flush=True)


def _take(commit: str, folder: Path) -> Path:
    """Write the package of a commit into a folder."""
    folder.mkdir()
    archive = subprocess.run(
        ["git", "-C", str(HERE.parent), "archive", commit, "numbadrop"],
        check=True,
        stdout=subprocess.PIPE,
    )
    subprocess.run(
        ["tar", "--extract", "--directory", str(folder)], input=archive.stdout, check=True
    )
    return folder


def main() -> int:
    if sys.argv[1:] == ["--worker"]:
        work()
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", help="the older commit")
    parser.add_argument("head", nargs="?", default="HEAD", help="the newer one (default HEAD)")
    parser.add_argument("--bench", default="", metavar="REGEX", help="only those that match")
    parser.add_argument("--limit", type=float, default=1.1, help="ratio that fails (default 1.1)")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of processes (default 3)")
    parser.add_argument("--confirm", type=int, default=9, help="pairs that confirm (default 9)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all ratios")
    options = parser.parse_args()
    names = {d: name for d, name in benchmarks() if re.search(options.bench, d)}
    if not names:
        parser.error(f"--bench {options.bench} matches nothing")
    commits = []
    for commit in (options.base, options.head):
        parsed = subprocess.run(
            ["git", "-C", str(HERE.parent), "rev-parse", "--verify", f"{commit}^{{commit}}"],
            capture_output=True,
            text=True,
        )
        if parsed.returncode:
            parser.error(f"{commit} is no commit of this repository")
        commits.append(parsed.stdout.strip())
    with tempfile.TemporaryDirectory(prefix="numbadrop-gate") as scratch:
        base, head = (
            _take(commit, Path(scratch, name))
            for commit, name in zip(commits, ("base", "head"), strict=True)
        )
        began = time.perf_counter()
        screened = measured((base, head), names, options.pairs)
        middles = {d: statistics.geometric_mean(ratios) for d, ratios in screened.items()}
        doubtful = [d for d, ratio in middles.items() if ratio > 1 + (options.limit - 1) / 2]
        suspects = sorted(doubtful, key=lambda d: -middles[d])[:MOST_CONFIRMED]
        confirmed: dict[str, Ratio] = {}
        if suspects:
            again = measured((base, head), {d: names[d] for d in suspects}, options.confirm)
            confirmed = {d: interval(ratios, len(again)) for d, ratios in again.items()}
    slower = [d for d, r in confirmed.items() if r.low > 1 and r.middle > options.limit]
    if options.json:
        report = {"base": commits[0], "head": commits[1], "screened": screened, "slower": slower}
        report["confirmed"] = {d: ratio._asdict() for d, ratio in confirmed.items()}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    whole = statistics.geometric_mean(middles.values())
    print(
        f"{commits[1][:10]} against {commits[0][:10]}: {len(middles)} benchmarks in "
        f"{time.perf_counter() - began:.0f} s, ratio of times {whole:.3f} (geometric mean), "
        f"{min(middles.values()):.2f} to {max(middles.values()):.2f} when screened"
    )
    for described in suspects:
        r = confirmed[described]
        verdict = "SLOWER" if described in slower else "not confirmed"
        print(
            f"  {verdict:13} {r.middle:.2f} ({r.low:.2f} to {r.high:.2f}), "
            f"screened {middles[described]:.2f}  {described}"
        )
    if len(doubtful) > len(suspects):
        print(f"  {len(doubtful) - len(suspects)} more looked slower, but less so")
    print(f"{len(slower)} slower by more than {options.limit - 1:.0%}")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
