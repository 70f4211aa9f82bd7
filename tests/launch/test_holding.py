"""One process at a time works on a cell: who comes second waits, who lost it writes nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from factories import make_record
from gang_world import World

from kdbench.errors import KdbenchError
from kdbench.launch.gang_worker import run_gang
from kdbench.launch.holding import DONE, INTERRUPTED, Busy, hold, hold_run, refuse_held
from kdbench.launch.worker import run_folder
from kdbench.results import fence, holder
from kdbench.results import lease as leases
from kdbench.results.holder import newest_holder
from kdbench.results.lease import Lease
from kdbench.results.store import remove_unfinished


def put(folder: Path, status: str) -> None:
    (folder / "result.json").write_text(json.dumps(make_record(cell_id="a" * 64, status=status)))


def take_over(folder: Path) -> None:
    """Do what a taker does that thinks the holder dead."""
    (folder / ".lease-2").write_text(json.dumps({"token": "other", "host": "node7", "pid": 12}))
    (folder / ".lease-1").unlink()


def test_free_cell_is_held(tmp_path: Path) -> None:
    lease = hold(tmp_path, lambda: False)
    assert isinstance(lease, Lease)
    lease.check()
    lease.close()


@pytest.mark.parametrize("status", ["done", "failed"])
def test_record_that_came_while_waiting_is_enough(tmp_path: Path, status: str) -> None:
    other = Lease(tmp_path)
    assert other.take()

    def stop() -> bool:  # asked while waiting: the other ends in the meantime
        put(tmp_path, status)
        other.close()
        return False

    got = hold(tmp_path, stop)
    if status == "done":
        assert got == DONE
        assert newest_holder(tmp_path) is None
    else:
        assert isinstance(got, Lease)
        got.close()


def test_record_from_before_is_not(tmp_path: Path) -> None:
    put(tmp_path, "done")  # a teacher that is run again for its weights
    other = Lease(tmp_path)
    assert other.take()
    asked = iter([False])

    def stop() -> bool:
        other.close()
        return next(asked)

    got = hold(tmp_path, stop)
    assert isinstance(got, Lease)
    got.close()


def test_waiting_ends(tmp_path: Path) -> None:
    other = Lease(tmp_path)
    assert other.take()
    assert hold(tmp_path, lambda: True) == INTERRUPTED
    with pytest.raises(Busy):
        hold(tmp_path, lambda: False, patience_s=0.0)
    other.close()


@pytest.mark.parametrize("name", ["kd", "odd:raise@6"])
def test_cell_that_was_taken_over_keeps_nothing(world: World, tmp_path: Path, name: str, capfd: Any) -> None:
    folder = world.folder(tmp_path, name)
    before: list[bytes] = []

    def look(event: Any) -> None:
        if event["event"] == "epoch" and not before:
            before.append((folder / "checkpoint.safetensors").read_bytes())
            take_over(folder)

    assert run_folder(folder, look, threading.Event()) == INTERRUPTED
    assert not (folder / "result.json").exists()
    assert (folder / "checkpoint.safetensors").read_bytes() == before[0]
    assert "process 12 on node7 took over" in capfd.readouterr().err


def test_gang_leaves_cells_that_others_have(world: World, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("kdbench.launch.gang_worker.PATIENCE_S", 0.0)
    monkeypatch.setattr("kdbench.launch.gang_worker.redirect", lambda log: None)
    mine, theirs = (world.folder(tmp_path, name) for name in ("kd", "dkd"))
    other = Lease(theirs)
    assert other.take()
    events: list[dict[str, Any]] = []
    assert run_gang([mine, theirs], lambda e: events.append(dict(e)), threading.Event()) == DONE
    other.check()
    other.close()
    told = {e["cell_id"]: e for e in events if e["event"] in ("ended", "released")}
    assert told[mine.name]["code"] == DONE
    assert told[theirs.name]["why"] == "busy"
    assert not (theirs / "result.json").exists()


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "done before"])
@pytest.mark.parametrize(
    ("role", "kept", "weights", "over"),
    [
        ("student", [], False, True),
        ("teacher", [], True, True),
        ("teacher", [], False, False),
        ("teacher", [3], True, False),
    ],
)
def test_finished_cell_is_run_again_only_for_files_that_it_lacks(
    tmp_path: Path, role: str, kept: list[int], weights: bool, over: bool, killed: bool
) -> None:
    put(tmp_path, "done")
    (tmp_path / "cell.json").write_text(json.dumps({"labels": {"role": role}, "keep_epochs": kept}))
    if weights:
        (tmp_path / "model.safetensors").touch()
    if killed:
        dead = {**json.loads(holder.myself("dead", 60.0)), "born": 1}
        (tmp_path / ".lease-1").write_text(json.dumps(dead))
    got = hold(tmp_path, lambda: False)
    if over:
        assert got == DONE
        assert newest_holder(tmp_path) is None
    else:
        assert isinstance(got, Lease)
        got.close()


def test_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint.safetensors.0123456789ab.tmp").touch()
    lease = hold(tmp_path, lambda: False)
    assert isinstance(lease, Lease)
    lease.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["checkpoint.safetensors", "curves.jsonl", "result.json", "model.safetensors"]
)
def test_cell_that_is_taken_over_in_the_middle_of_a_write(
    world: World, tmp_path: Path, name: str, monkeypatch: Any
) -> None:
    """The process stops after its last look at the lease, until another one has run the cell to its end."""
    folder = world.folder(tmp_path, "kd")
    asked = fence.ask

    def stopped(path: Path) -> None:
        asked(path)
        if path.name == name:
            monkeypatch.setattr(fence, "ask", asked)
            take_over(folder)
            remove_unfinished(folder)
            (folder / name).write_bytes(b"theirs")

    monkeypatch.setattr(fence, "ask", stopped)
    assert run_folder(folder, lambda e: None, threading.Event()) == INTERRUPTED
    assert (folder / name).read_bytes() == b"theirs"
    if name != "result.json":
        assert not (folder / "result.json").exists()
    assert not list(folder.rglob(".*.*.????????????.tmp"))


STOPPED = """
import sys
from pathlib import Path
from kdbench.results import lease as leases
leases.alive = lambda holder: None  # as on a machine of its own
from kdbench.launch.holding import hold
from kdbench.results.store import atomic_write_bytes
folder = Path(sys.argv[1])
lease = hold(folder, lambda: False)
print("held", flush=True)
sys.stdin.readline()
try:
    atomic_write_bytes(folder / "checkpoint.safetensors", b"late")
except leases.LeaseLost as error:
    print(error)
lease.close()
"""


def test_process_that_was_stopped_writes_nothing_when_it_goes_on(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("KDBENCH_LEASE_S", "0.4")
    line = [sys.executable, "-c", STOPPED, str(tmp_path)]
    child = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    child.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(leases, "alive", lambda holder: None)
    lease = hold(tmp_path, lambda: False)
    assert isinstance(lease, Lease)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"theirs")
    child.send_signal(signal.SIGCONT)
    said, _ = child.communicate("go on\n", timeout=60)
    assert "took over; nothing is written here" in said
    lease.check()
    lease.close()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"checkpoint.safetensors": b"theirs"}


def test_run_folder_has_one_parent(tmp_path: Path) -> None:
    lease = hold_run(tmp_path)
    told = rf"another kdbench is running this matrix \(process {os.getpid()} on .*\)"
    with pytest.raises(KdbenchError, match=told):
        hold_run(tmp_path)
    lease.close()


def test_a_run_that_is_held_is_refused_before_planning_where_the_holder_surely_lives(tmp_path: Path) -> None:
    refuse_held(tmp_path / "nowhere")
    with Path(tmp_path / ".lease-1").open("w") as file:
        json.dump({"token": "other", "host": "node7", "pid": 12}, file)
    refuse_held(tmp_path)  # of another machine: who takes the lease waits for a sign of life
    (tmp_path / ".lease-1").unlink()
    lease = hold_run(tmp_path)
    with pytest.raises(KdbenchError, match=r"another kdbench is running this matrix \(process \d+ on .*\)"):
        refuse_held(tmp_path)
    lease.close()


def test_waiting_for_a_run_folder_of_another_machine_is_told(tmp_path: Path, capsys: Any) -> None:
    gone = {"token": "other", "host": "node7", "pid": 12, "expiry_s": 0.2}
    (tmp_path / ".lease-1").write_text(json.dumps(gone))
    hold_run(tmp_path).close()
    told = f"{tmp_path}: waiting for a sign of life of process 12 on node7, at most 0.2 s\n"
    assert capsys.readouterr().err == told
