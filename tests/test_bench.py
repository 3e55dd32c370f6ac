from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from test_cli import COMMAND, ENVIRONMENT

from numbadrop import cli
from numbadrop.bench import bandwidth, clock, peak, quartiles
from numbadrop.bench.contest import Contest, Contestant, WrongResultError
from numbadrop.bench.products import convolutions, matmuls
from numbadrop.bench.steps import steps

pytest.importorskip("rich")
pytest.importorskip("matplotlib")


def test_quartiles_of_a_fake_clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    order = []

    def run(name, seconds):
        def call():
            order.append(name)
            now[0] += seconds

        return call

    found = quartiles({"a": run("a", 0.01), "b": run("b", 0.1)}, 2, turn=0.025, settling=0.01)
    assert found["a"] == pytest.approx((0.01, 0.01, 0.01))
    assert found["b"] == pytest.approx((0.1, 0.1, 0.1))
    # One or more calls that do not count, then the turn; the second round comes in reverse.
    assert order == [*"aaaa", "b", "b", "b", "b", *"aaaa"]


def test_a_wrong_result_is_never_timed():
    def run():
        pytest.fail("a wrong contestant was timed")

    contest = Contest(
        "sums",
        0.5,
        {"right": Contestant(run, lambda: 1e-7), "wrong": Contestant(run, lambda: np.nan)},
    )
    with pytest.raises(WrongResultError, match="sums: the result of wrong is wrong"):
        contest.measure(1, 0.0)


def _torch():
    try:
        import torch
    except ImportError:
        return None
    return torch


@pytest.mark.parametrize("keep", [0.3, 1.0])
def test_all_contestants_compute_the_same(keep):
    contests = [
        *matmuls(20, (30, 40), keep, _torch()),
        *convolutions(2, (8, 6), 5, keep, _torch()),
        steps((12, 20, 15, 5), 16, keep, _torch()),
    ]
    for contest in contests:
        for name, contestant in contest.contestants.items():
            assert contestant.error() < 1e-3, f"{contest.title}: {name}"
            contestant.run()


def test_a_step_that_updates_wrongly_is_found(monkeypatch):
    from numbadrop.bench import steps as module

    def forgetful(model, optimizer, x, labels):
        optimizer.lr_scale = 0.5

    monkeypatch.setattr(module, "train_step", forgetful)
    with pytest.raises(WrongResultError, match="batchwise"):
        steps((12, 20, 5), 16, 0.5).measure(1, 0.0)


def test_roofs_are_of_a_plausible_order():
    assert 1e8 < peak("float32", 1, work=1e7) < 1e13
    assert 1e7 < bandwidth(1, 1 << 20) < 1e13


def test_the_command(tmp_path):
    pytest.importorskip("rich")
    figures, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    ran = subprocess.run(
        [*COMMAND, "bench", "--quick", "--threads", "1", "--json", figures, "--plot", picture],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "numbadrop, batchwise dropout" in ran.stdout
    report = json.loads(figures.read_text())
    assert report["machine"]["threads"] == 1
    assert report["peak"] > 0
    assert list(report["sweeps"]) == ["matmul", "convolution", "training step"]
    for result in report["contests"]:
        for low, middle, high in result["seconds"].values():
            assert 0 < low <= middle <= high
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plot", "speed.xyz"], "--plot must end in .png, .svg or .pdf, got speed.xyz"),
        (["--json", "nowhere/bench.json"], "there is no folder nowhere"),
        (["--threads", "0"], "must be a whole number of at least 1"),
        (["--threads", "100000"], "--threads"),
    ],
)
def test_mistakes_are_found_before_anything_is_measured(arguments, message):
    ran = subprocess.run(
        [*COMMAND, "bench", *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 2
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr


def test_without_rich_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert cli.main(["bench"]) == 2
    assert 'pip install "numbadrop[train]"' in capsys.readouterr().err
