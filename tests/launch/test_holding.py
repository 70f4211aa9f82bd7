"""One process at a time works on a cell: who comes second waits, who lost it writes nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from factories import make_record
from gang_world import World, importable, install

from kdbench.launch.gang_worker import run_gang
from kdbench.launch.holding import DONE, INTERRUPTED, Busy, hold
from kdbench.launch.worker import run_folder
from kdbench.results.holder import newest_holder
from kdbench.results.lease import Lease


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    site = tmp_path_factory.mktemp("site")
    install(site)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        importable(site)
        yield World(tmp_path_factory.mktemp("world"))


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
