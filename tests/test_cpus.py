"""The default number of threads: what the user says, else what a container pays for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from numbadrop.kernels import cpus

SECOND = "0::/slice/own\n"
FIRST = "4:memory:/docker/a\n3:cpu,cpuacct:/docker/a\n"


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Return a function that makes a system of 16 CPUs with these files of control groups."""

    def make(membership, **files):
        monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
        config = SimpleNamespace(NUMBA_NUM_THREADS=16, NUMBA_DEFAULT_NUM_THREADS=16)
        monkeypatch.setattr(cpus.numba, "config", config)
        monkeypatch.setattr(cpus, "_GROUPS", tmp_path)
        monkeypatch.setattr(cpus, "_MEMBERSHIP", tmp_path / "membership")
        if membership is not None:
            (tmp_path / "membership").write_text(membership)
        for name, content in files.items():
            path = tmp_path / name.replace("_in_", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            (path.parent / path.name.replace("__", ".")).write_text(content)
        return config

    return make


@pytest.mark.parametrize(
    ("limit", "threads"),
    [
        ("max 100000", 16), ("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1),
        ("6400000 100000", 16), ("", 16), ("nonsense", 16), ("100000 0", 16),
    ],
)  # fmt: skip
@pytest.mark.parametrize("group", ["", "slice_in_", "slice_in_own_in_"])
def test_the_second_version_of_control_groups(system, group, limit, threads):
    system(SECOND, **{f"{group}cpu__max": f"{limit}\n"})
    assert cpus.default_threads() == threads


@pytest.mark.parametrize(("time", "threads"), [("-1", 16), ("300000", 3), ("1000", 1)])
@pytest.mark.parametrize("group", ["cpu_in_", "cpu_in_docker_in_a_in_"])
def test_the_first_version_of_control_groups(system, group, time, threads):
    quota, period = f"{group}cpu__cfs_quota_us", f"{group}cpu__cfs_period_us"
    system(FIRST, **{quota: f"{time}\n", period: "100000\n"})
    assert cpus.default_threads() == threads


def test_the_narrowest_counts(system):
    system(SECOND, cpu__max="800000 100000", slice_in_cpu__max="300000 100000")
    assert cpus.default_threads() == 3


@pytest.mark.parametrize("membership", [None, "", "no colons\n"])
def test_without_control_groups(system, membership):
    system(membership)
    assert cpus.default_threads() == 16


def test_what_the_user_sets_counts(system, monkeypatch):
    config = system(SECOND, cpu__max="200000 100000")
    monkeypatch.setenv("NUMBA_NUM_THREADS", "16")
    assert cpus.default_threads() == 16
    monkeypatch.delenv("NUMBA_NUM_THREADS")
    config.NUMBA_NUM_THREADS = 8  # as from Numba's file of settings
    assert cpus.default_threads() == 8
