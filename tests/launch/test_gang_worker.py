"""The worker of a gang, in this process: records, logs, locks, and what it tells its parent."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from factories import make_record
from gang_world import STEPS, World, outcome

from kdbench.launch.gang_worker import run_gang
from kdbench.launch.holding import DONE
from kdbench.launch.worker import FAILED, run_folder
from kdbench.results.holder import newest_holder

Events = list[dict[str, Any]]


@pytest.fixture
def work(world: World, tmp_path: Path) -> Iterator[Callable[..., tuple[int, Events, dict[str, Path]]]]:
    """Run cells as the worker of a gang does; output of this process goes back where it went."""
    kept = os.dup(1), os.dup(2)

    def go(
        *names: str,
        stop: threading.Event | None = None,
        after: Callable[[dict[str, Any]], None] = lambda event: None,
    ) -> tuple[int, Events, dict[str, Path]]:
        made = {n: tmp_path / "cells" / world.content(n)["cell_id"] for n in names}
        for name, folder in made.items():
            if not folder.exists():
                world.folder(tmp_path, name)
        events: Events = []

        def report(event: Any) -> None:
            events.append(dict(event))
            after(dict(event))

        # through the descriptors, which the worker turns to each cell's log
        with (
            open(1, "w", buffering=1, closefd=False) as out,
            open(2, "w", buffering=1, closefd=False) as err,
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            code = run_gang(list(made.values()), report, stop or threading.Event())
        return code, events, made

    yield go
    for fd, where in zip(kept, (1, 2), strict=True):
        os.dup2(fd, where)
        os.close(fd)


def status(folder: Path) -> str:
    return str(json.loads((folder / "result.json").read_text())["status"])


def free(folder: Path) -> bool:
    return newest_holder(folder) is None


def test_each_cell_has_its_record_its_log_and_its_lock(world: World, work: Any, tmp_path: Path) -> None:
    names = ["kd", f"odd:raise@{STEPS}", "odd:nan", "odd:cannot", "dkd"]
    held: list[bool] = []

    def look(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            held.append(not free(tmp_path / "cells" / event["cell_id"]))

    code, events, made = work(*names, after=look)
    assert code == 0
    assert held == [True] * 5
    assert {n: status(f) for n, f in made.items()} == {
        "kd": "done",
        f"odd:raise@{STEPS}": "failed",
        "odd:nan": "diverged",
        "odd:cannot": "not_applicable",
        "dkd": "done",
    }
    assert all(free(folder) for folder in made.values())
    by_id = {folder.name: name for name, folder in made.items()}
    ended = {by_id[e["cell_id"]]: e["code"] for e in events if e["event"] == "ended"}
    assert ended == {"kd": 0, f"odd:raise@{STEPS}": 1, "odd:nan": 1, "odd:cannot": 1, "dkd": 0}
    assert [by_id[e["cell_id"]] for e in events if e["event"] == "started"] == names
    epochs = [by_id[e["cell_id"]] for e in events if e["event"] == "epoch"]
    assert {name: epochs.count(name) for name in epochs} == {"kd": 2, "dkd": 2, f"odd:raise@{STEPS}": 1}
    logs = {name: (folder / "log.txt").read_text() for name, folder in made.items()}
    assert "ValueError: sabotage in the loss" in logs[f"odd:raise@{STEPS}"]
    assert "diverged at step 1" in logs["odd:nan"]
    assert "not_applicable: cannot go on" in logs["odd:cannot"]
    assert "sabotage" not in logs["kd"] + logs["dkd"]
    for name in ("kd", "dkd"):
        assert outcome(made[name]) == world.alone(name)


def test_failures_are_recorded_as_alone(world: World, work: Any, tmp_path: Path) -> None:
    names = ["odd:raise", "odd:nan@3", "odd:cannot"]
    _, _, made = work(*names, "kd")
    for name in names:
        alone = world.folder(tmp_path / "lone", name)
        run_folder(alone, lambda event: None, threading.Event())
        mine, other = (json.loads((f / "result.json").read_text()) for f in (made[name], alone))
        for record in (mine, other):
            del record["started_at"], record["finished_at"], record["content_sha256"]
            trace = record["error"].pop("traceback")
            assert (trace is None) == (name != "odd:raise")
        assert mine == other


def test_a_cell_out_of_memory_is_left_to_a_process_of_its_own(
    world: World, work: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bad = f"odd:memory@{STEPS + 1}"
    code, events, made = work("kd", bad)
    assert code == 0
    assert [(e["cell_id"], e["why"]) for e in events if e["event"] == "released"] == [(made[bad].name, "oom")]
    assert not (made[bad] / "result.json").exists()
    assert free(made[bad])
    assert "out of memory among 2 cells" in (made[bad] / "log.txt").read_text()
    assert outcome(made["kd"]) == world.alone("kd")
    # alone it has room, and goes on from its first epoch
    monkeypatch.setenv("GANG_ROOM", "yes")
    assert run_folder(made[bad], lambda event: None, threading.Event()) == 0
    assert json.loads((made[bad] / "result.json").read_text())["cost"]["attempts"] == 2
    assert outcome(made[bad]) == world.alone(bad)


def test_the_last_one_out_of_memory_is_a_record(work: Any) -> None:
    code, events, made = work("odd:memory", "odd:memory@0")
    assert code == 0
    assert [e["event"] for e in events].count("released") <= 1
    assert "oom" in [status(f) for f in made.values() if (f / "result.json").exists()]


def test_a_stop_saves_all(world: World, work: Any) -> None:
    stop = threading.Event()

    def after(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            stop.set()

    code, events, made = work("kd", "ab", "fitnet", stop=stop, after=after)
    assert code == 130
    assert [e["code"] for e in events if e["event"] == "ended"] == [130] * 3
    assert all((f / "checkpoint.safetensors").exists() for f in made.values())
    assert all(free(folder) for folder in made.values())
    work("kd", "ab", "fitnet")
    for name, folder in made.items():
        assert outcome(folder) == world.alone(name)


def test_a_full_disk_ends_the_gang(work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from kdbench.engine import loop

    save = loop.save_state

    def full(path: Path, state: Any) -> None:
        if state["method"] or state["progress"]["total_epochs"]:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save(path, state)

    monkeypatch.setattr(loop, "save_state", full)
    code, events, made = work("kd", "dkd")
    assert code == 3
    assert [e["event"] for e in events].count("no_space") == 1
    assert not any((f / "result.json").exists() for f in made.values())


def test_a_result_that_stays_though_its_cell_fails_now_ends_no_gang(
    world: World, work: Callable[..., tuple[int, Events, dict[str, Path]]], tmp_path: Path
) -> None:
    """It ran again for epochs that are to be kept by now."""
    folder = world.folder(tmp_path, "odd:raise", keep_epochs=[1])
    record = make_record(cell_id=folder.name)
    (folder / "result.json").write_text(json.dumps(record))
    _, events, made = work("odd:raise", "kd")
    assert [(e["cell_id"], e["code"]) for e in events if e["event"] == "ended"] == [
        (made["odd:raise"].name, FAILED),
        (made["kd"].name, DONE),
    ]
    assert json.loads((folder / "result.json").read_text()) == record
