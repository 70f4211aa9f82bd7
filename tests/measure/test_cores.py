"""How many cores a process may use, with made-up control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdbench.measure import cores as module
from kdbench.measure.cores import cores, quota


def group(root: Path, path: str, **files: str) -> None:
    folder = root / path.strip("/")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("cpu_", "cpu.", 1)).write_text(text + "\n")


def mine(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "cgroup"
    path.write_text("".join(line + "\n" for line in lines))
    return path


def test_the_least_limit_up_the_tree_counts(tmp_path: Path) -> None:
    root = tmp_path / "fs"
    group(root, "/", cpu_max="max 100000")
    group(root, "/pod", cpu_max="150000 100000")
    group(root, "/pod/box", cpu_max="400000 100000")
    assert quota(root, mine(tmp_path, "0::/pod/box")) == 1.5
    assert quota(root, mine(tmp_path, "0::/")) is None


def test_a_container_that_sees_its_own_root_only(tmp_path: Path) -> None:
    root = tmp_path / "fs"
    group(root, "/", cpu_max="200000 100000")
    assert quota(root, mine(tmp_path, "0::/docker/not-mounted-here")) == 2.0


def test_version_1_of_the_hierarchy(tmp_path: Path) -> None:
    root = tmp_path / "fs"
    group(root, "/cpu,cpuacct/box", cpu_cfs_quota_us="300000", cpu_cfs_period_us="100000")
    lines = ("5:memory:/box", "4:cpu,cpuacct:/box", "3:cpuset:/box")
    assert quota(root, mine(tmp_path, *lines)) == 3.0
    group(root, "/cpu,cpuacct/box", cpu_cfs_quota_us="-1")
    assert quota(root, mine(tmp_path, *lines)) is None


@pytest.mark.parametrize("text", ["", "nonsense", "max", "a b"])
def test_what_cannot_be_read_is_no_limit(tmp_path: Path, text: str) -> None:
    group(tmp_path / "fs", "/", cpu_max=text)
    assert quota(tmp_path / "fs", mine(tmp_path, "0::/")) is None
    assert quota(tmp_path / "fs", tmp_path / "none") is None


@pytest.mark.parametrize(("limit", "expected"), [(None, 8), (0.5, 1), (1.9, 1), (3.0, 3), (64.0, 8)])
def test_cores_are_whole_and_at_least_one(
    monkeypatch: pytest.MonkeyPatch, limit: float | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(module, "quota", lambda: limit)
    assert cores() == expected


def test_affinity_is_obeyed() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, before)
