"""A disk that fills up, and files that are not as they were written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import done_files, records, wait_until
from fault_cases import EVERY

pytestmark = pytest.mark.e2e

METHODS = ["crd", "ab"]
#: Bytes that are freed before each attempt, from nothing to what a run takes.
STEP = 24_000 if EVERY else 200_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """Mount a small tmpfs; None, and a warning, where that is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        warnings.warn(
            f"no tmpfs, so a limit on the size of files fills the disk: {done.stderr}", stacklevel=1
        )
        yield None
        return
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(ballast: Path, free: int) -> None:
    """Leave `free` bytes on the disk of `ballast`."""
    room = shutil.disk_usage(ballast.parent).free
    size = ballast.stat().st_size if ballast.exists() else 0
    keep = max(0, size + room - free)
    with ballast.open("ab") as file:
        if keep > size:
            os.posix_fallocate(file.fileno(), 0, keep)
        else:
            file.truncate(keep)


@pytest.mark.faults
def test_full_disk(cases: Any, check: Any, kdbench: Any, tmp_path: Path, small_disk: Path | None) -> None:
    """It is full at the matrix, then at a cell, a log, a checkpoint, a record; each time a little later."""
    case = cases.get("few", methods=METHODS)
    runs = small_disk / "runs" if small_disk else tmp_path / "runs"
    faults: list[dict[str, Any]] = []
    before: dict[str, bytes] = {}
    free = 0
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    while True:
        if small_disk:
            fill(small_disk / "ballast", free)
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000 + free // 4, hard))
        try:
            done = kdbench.run(case.matrix, "--runs", runs, env=case.env)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        after = done_files(runs / case.name)
        assert {name: after[name] for name in before} == before
        before = after
        if done.returncode == 0:
            break
        assert done.returncode == 2, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith("kdbench: error: ")
        assert "No space left on device" in last or "File too large" in last
        assert str(runs / case.name) in last
        assert not [r for r in records(runs / case.name).values() if r["status"] != "done"]
        faults.append({"fault": "the disk is full", "moment": f"{free} bytes free: {last[-200:]}"})
        # later steps are longer: a run needs some hundred kilobytes
        free += STEP if faults else 0
        assert len(faults) < 200
    assert len(faults) >= 2
    check(case, runs / case.name, before, faults)
    # made again whole, though all cells were done
    assert files(runs / case.name / "board") == files(case.run / "board")


def files(folder: Path) -> set[tuple[Path, bool]]:
    return {(p.relative_to(folder), p.stat().st_size > 0) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.faults
def test_full_disk_of_the_tracking_store(
    cases: Any, check: Any, kdbench: Any, tmp_path: Path, small_disk: Path | None
) -> None:
    """The records are elsewhere; `kdbench sync` repairs the store."""
    assert small_disk, "this test needs to mount a tmpfs"
    case = cases.get("few", methods=METHODS)
    store = f"sqlite:///{small_disk / 'store.db'}"
    # the tables alone take about a megabyte
    for free in (200_000, 1_000_000):
        run = tmp_path / "runs" / case.name
        shutil.rmtree(run, ignore_errors=True)
        fill(small_disk / "ballast", free)
        done = kdbench.run(case.matrix, "--tracking-uri", store, env=case.env)
        assert done.returncode == 0, done.stderr
        assert "sink 'mlflow' is off for the rest of this run" in done.stderr
        check(case, run, {}, [{"fault": "the disk of the tracking store is full", "moment": f"{free} bytes"}])
        (small_disk / "ballast").unlink()
        for leftover in small_disk.glob("store.db*"):
            leftover.unlink()
    synced = kdbench("sync", case.name, "--tracking-uri", store)
    assert synced.returncode == 0, synced.stderr
    assert f"{len(case.expected)} written" in synced.stdout


def edited(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}, indent=2))


def other_number(path: Path) -> None:
    """Make a student better than it is, as one might in an editor."""
    record = json.loads(path.read_text())
    record["deployables"][record["primary"]]["last"]["top1"] += 1.0
    path.write_text(json.dumps(record, indent=2))


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 20),
    "not an object": lambda path: path.write_text("[]"),
    "another cell's id": lambda path: edited(path, cell_id="0" * 64),
    "another status": lambda path: edited(path, status="failed"),
    "another number": other_number,
    "no deployables": lambda path: edited(path, deployables={}),
}


def test_damaged_records(cases: Any, check: Any, kdbench: Any, tmp_path: Path) -> None:
    """A record that is not as it was written is set aside, and its cell runs again."""
    case = cases.get("few", methods=METHODS)
    run = tmp_path / "runs" / case.name
    faults: list[dict[str, Any]] = []
    todo = list(DAMAGES)
    shutil.copytree(case.run, run)
    while todo:
        cells = sorted(case.expected)
        hurt = dict(zip(cells, todo, strict=False))
        todo = todo[len(cells) :]
        before = done_files(run)
        for cell, damage in hurt.items():
            path = run / "cells" / cell / "result.json"
            before.pop(str(path.relative_to(run)))
            DAMAGES[damage](path)
            faults.append({"fault": f"a record: {damage}", "moment": "between two runs"})
        done = kdbench.run(case.matrix, env=case.env)
        assert done.returncode == 0, done.stdout + done.stderr
        assert {p.parent.parent.name for p in run.glob("cells/*/previous/*")} >= set(hurt)
    check(case, run, before, faults)


@pytest.mark.faults
def test_damaged_checkpoints(cases: Any, check: Any, kdbench: Any, tmp_path: Path) -> None:
    """A checkpoint that is not as it was written costs the epochs that it held."""
    case = cases.get("few", methods=METHODS)
    run = tmp_path / "runs" / case.name
    faults: list[dict[str, Any]] = []

    def saved() -> list[Path]:
        return list(run.glob("cells/*/checkpoint.safetensors"))

    def damages(data: bytes) -> dict[str, bytes]:
        middle = len(data) * 3 // 4
        return {
            "truncated": data[: len(data) // 2],
            "a bit": data[:middle] + bytes([data[middle] ^ 64]) + data[middle + 1 :],
            "empty": b"",
            "a byte too many": data + b"\0",
        }

    for number in range(4 if EVERY else 2):
        started = kdbench.start(case.matrix, "--gang", "off", env=case.env)
        wait_until(lambda started=started: saved() or started.process.poll() is not None, "a checkpoint")
        started.process.terminate()
        if started.wait() == 0:
            break
        for path in saved():
            if not path.stat().st_size:  # emptied by us, of a cell that has not begun again
                continue
            name, data = list(damages(path.read_bytes()).items())[number]
            path.write_bytes(data)
            faults.append({"fault": f"a checkpoint: {name}", "moment": path.parent.name[:12]})
    before = done_files(run)
    done = kdbench.run(case.matrix, env=case.env)
    assert done.returncode == 0, done.stdout + done.stderr
    check(case, run, before, faults)
