"""Which cells go into one process, and what becomes of them when it ends otherwise than well."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from kdbench.engine.cellspec import Arch, CellFile, Data, TeacherSource
from kdbench.hooks import Job
from kdbench.launch import local
from kdbench.launch.gangs import arrange, compiled, gang_of, told
from kdbench.launch.local import LocalLauncher
from kdbench.matrix import Recipe
from kdbench.results.schema import Labels

Arranged = list[list[str]]
RECIPE = {"epochs": 1, "optimizer": {"name": "sgd", "lr": 0.1}}


class Matrix:
    """Cells and their jobs."""

    def __init__(self) -> None:
        self.cells: dict[str, CellFile] = {}
        self.jobs: list[Job] = []

    def add(
        self,
        name: str,
        *teachers: str,
        cost: float | None = None,
        after: tuple[str, ...] = (),
        storage: Any = "resident",
        recipe: Mapping[str, Any] = RECIPE,
        limit: int | None = None,
        timeout_s: float | None = None,
        **over: Any,
    ) -> None:
        labels = {"matrix": "m", "task": "classification", "dataset": "d", "student": "s", "method": "m"}
        sources = [TeacherSource(architecture=Arch(name="net"), source="checkpoint", ref=t) for t in teachers]
        self.cells[name] = CellFile(
            **{
                "cell_id": name,
                "protocol": 1,
                "identity": {},
                "labels": Labels(**labels, variant=name, recipe="r", seed=0),
                "task": "classification",
                "method": name,
                "params": {},
                "student": Arch(name="resnet8"),
                "teachers": sources,
                "dataset": Data(name="d", label="d", storage=storage, revision="1", limit_train=limit),
                "recipe": Recipe.model_validate(recipe),
                "seed": 0,
                **over,
            }
        )
        cost = 1.0 + len(teachers) if cost is None else cost
        self.jobs.append(
            Job(cell_id=name, folder=Path(name), label=name, after=after, cost=cost, timeout_s=timeout_s)
        )

    def arrange(self, wish: Any = "auto", workers: int = 1) -> Arranged:
        return shape(arrange(self.jobs, self.cells, wish, workers))


def shape(jobs: list[Job]) -> Arranged:
    return sorted(sorted(m.cell_id for m in j.gang or (j,)) for j in jobs)


@pytest.fixture
def matrix() -> Matrix:
    return Matrix()


def test_cells_of_one_teacher_share(matrix: Matrix) -> None:
    for name in "abc":
        matrix.add(name, "t")
    assert matrix.arrange() == [["a", "b", "c"]]
    assert matrix.arrange("off") == [["a"], ["b"], ["c"]]
    assert matrix.arrange(2) == [["a", "c"], ["b"]]


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"recipe": {**RECIPE, "batch_size": 7}},
        {"limit": 10},
        {"device": "cuda"},
        {"threads": 2},
        {"task": "other"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_cells_of_other_batches_do_not(matrix: Matrix, other: dict[str, Any]) -> None:
    matrix.add("a", "t")
    matrix.add("b", "t")
    matrix.add("c", "t", **other)
    assert matrix.arrange() == [["a", "b"], ["c"]]


def test_cells_of_another_teacher_do_not(matrix: Matrix) -> None:
    matrix.add("a", "t")
    matrix.add("b", "u")
    matrix.add("c", "t")
    matrix.add("d", "t", "u")  # the first of several teachers counts
    assert matrix.arrange() == [["a", "c", "d"], ["b"]]


def test_a_label_of_the_data_set_is_no_difference(matrix: Matrix) -> None:
    matrix.add("a", "t")
    matrix.add("b", "t")
    matrix.cells["b"].dataset.label = "the same"
    assert matrix.arrange() == [["a", "b"]]


def test_without_a_teacher_only_costly_batches_are_shared(matrix: Matrix) -> None:
    """A cell without a teacher does not wait for that of others to save a gather of resident images."""
    matrix.add("a")
    matrix.add("b", "t")
    matrix.add("c", "t")
    assert matrix.arrange() == [["a"], ["b", "c"]]
    matrix.add("d", storage="stream")
    matrix.add("e", "t", storage="stream")
    assert matrix.arrange() == [["a"], ["b", "c"], ["d", "e"]]
    only = Matrix()
    only.add("f", storage="stream")
    only.add("g", storage="stream")
    assert only.arrange() == [["f", "g"]]


def test_nobody_waits_for_a_gang(matrix: Matrix) -> None:
    matrix.add("teacher", storage="stream")
    matrix.add("assistant", "t", storage="stream")
    matrix.add("a", "t", storage="stream", after=("teacher",))
    matrix.add("b", "t", storage="stream", after=("assistant",))
    arranged = arrange(matrix.jobs, matrix.cells, "auto", 1)
    assert shape(arranged) == [["a", "b"], ["assistant"], ["teacher"]]
    assert set(next(j for j in arranged if j.gang).after) == {"teacher", "assistant"}


@pytest.mark.parametrize(
    ("cells", "workers", "sizes"),
    [(8, 1, [8]), (8, 2, [4, 4]), (8, 4, [2, 2, 2, 2]), (8, 8, [1] * 8), (12, 1, [6, 6]), (3, 2, [1, 2])],
)
def test_auto_takes_the_size_with_which_the_workers_are_done_first(
    matrix: Matrix, cells: int, workers: int, sizes: list[int]
) -> None:
    """n cells of one teacher cost n students and one teacher, each of them 1, and two processes two teachers."""
    for k in range(cells):
        matrix.add(f"c{k:02}", "t")
    assert sorted(map(len, matrix.arrange("auto", workers))) == sizes


def test_a_gang_speaks_for_its_cells(matrix: Matrix) -> None:
    for k in range(3):
        matrix.add(f"c{k}", "t", cost=2.0 + 2 * k, timeout_s=10.0 + k)
    (job,) = arrange(matrix.jobs, matrix.cells, 8, 1)
    assert job.timeout_s == 33.0
    assert job.cost == (2 + 4 + 6) / 2 + 3  # the students, and the teacher of the longest
    assert job.label == "3 cells with c2"
    assert gang_of(matrix.jobs[:1]) is matrix.jobs[0]
    matrix.add("endless", "t")
    assert gang_of(matrix.jobs).timeout_s is None


def test_what_is_told(matrix: Matrix) -> None:
    for name in "abc":
        matrix.add(name, "t")
    matrix.add("d", "u")
    line = "3 of 4 cells share batches and teacher, in 1 gang"
    assert told(arrange(matrix.jobs, matrix.cells, "auto", 1), 4) == line
    matrix.add("e", "u")
    assert (
        told(arrange(matrix.jobs, matrix.cells, "auto", 1), 5)
        == "5 of 5 cells share batches and teacher, in 2 gangs"
    )
    assert told(arrange(matrix.jobs, matrix.cells, "off", 1), 5) is None


def test_cells_that_compile_are_told(matrix: Matrix) -> None:
    matrix.add("a", "t")
    assert compiled(list(matrix.cells.values())) is None
    for name in "bc":
        matrix.add(name, "t", recipe={**RECIPE, "compile": "default"})
    assert matrix.arrange() == [["a"], ["b"], ["c"]]
    line = "2 cell(s) compile, so each runs in a process of its own"
    assert compiled(list(matrix.cells.values())) == line


def write_done(folder: Path) -> None:
    record = {"schema_version": 1, "cell_id": "0" * 64, "status": "done"}
    (folder / "result.json").write_text(json.dumps(record))


def lone(folder: str, connection: Any, environment: Mapping[str, str], life: Any = None) -> None:
    """Stand in for the worker of one cell: note that it ran, and do as the folder's ``alone`` says."""
    os.setsid()
    where = Path(folder)
    connection.send({"event": "started", "cell_id": where.name})
    word = (where / "alone").read_text() if (where / "alone").exists() else "done"
    (where / "ran-alone").touch()
    if word == "hang":
        time.sleep(60)
    if word == "done":
        write_done(where)
    os._exit({"done": 0, "crash": 9}[word])


def company(folders: list[str], connection: Any, environment: Mapping[str, str], life: Any = None) -> None:
    """Stand in for the worker of a gang: do as the first folder's ``act`` says."""
    os.setsid()
    names = [os.path.basename(f) for f in folders]
    word = (Path(folders[0]) / "act").read_text()

    def send(event: str, name: str, **more: Any) -> None:
        connection.send({"event": event, "cell_id": name, **more})

    if word == "room" and len(names) == 4:
        send("started", names[0])
        send("released", names[1], why="room")
        send("released", names[2], why="room")
        send("released", names[3], why="room")
        send("ended", names[0], code=0)
        os._exit(0)
    for name in names:
        send("started", name)
    if word == "stop":
        assert connection.recv() == "stop"
        for name in names:
            send("ended", name, code=130)
        os._exit(130)
    if word == "hang":
        send("ended", names[0], code=0)
        time.sleep(60)
    if word == "written":
        write_done(Path(folders[1]))
    if word in ("killed", "written", "exit"):
        send("ended", names[0], code=0)
        os._exit(7) if word == "exit" else os.kill(os.getpid(), signal.SIGKILL)
    if word == "oom":
        send("released", names[1], why="oom")
    for name in names:
        if word == "fail" and name == names[0]:
            send("ended", name, code=1)
        elif not (word == "oom" and name == names[1]):
            send("ended", name, code=0)
    if word == "full":
        connection.send({"event": "no_space", "cell_id": names[0], "message": "x: No space left on device"})
        os._exit(3)
    os._exit(0)


Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the cells a, b, c, ... as one gang whose worker does `word`, and return the events."""
    monkeypatch.setattr(local, "context", lambda: multiprocessing.get_context("fork"))
    monkeypatch.setattr(local, "child", lone)
    monkeypatch.setattr(local, "gang_child", company)

    def go(
        word: str,
        cells: str = "abc",
        *,
        timeout_s: float | None = None,
        alone: Mapping[str, str] = {},
        done: str = "",
        after: Mapping[str, tuple[str, ...]] = {},
        stop: Callable[[], int] = lambda: 0,
    ) -> list[dict[str, Any]]:
        jobs = []
        for cell in cells:
            folder = tmp_path / cell
            folder.mkdir()
            (folder / "act").write_text(word)
            if cell in alone:
                (folder / "alone").write_text(alone[cell])
            if cell in done:
                write_done(folder)
            jobs.append(Job(cell_id=cell, folder=folder, label=cell, timeout_s=timeout_s))
        more = []
        for cell, first in after.items():
            (tmp_path / cell).mkdir()
            more.append(Job(cell_id=cell, folder=tmp_path / cell, label=cell, after=first))
        events: list[dict[str, Any]] = []
        launcher = LocalLauncher({"workers": 2, "gpus": 0})
        launcher.run([gang_of(jobs), *more], lambda e: events.append(dict(e)), stop)
        return events

    return go


def ends(events: list[dict[str, Any]]) -> dict[str, str]:
    """Return how each cell ended: once."""
    told_ends = [e for e in events if e["event"] not in ("started", "epoch", "released")]
    assert len({e["cell_id"] for e in told_ends}) == len(told_ends)
    return {e["cell_id"]: e.get("status", e["event"]) for e in told_ends}


def went_alone(tmp_path: Path) -> list[str]:
    return sorted(p.parent.name for p in tmp_path.glob("*/ran-alone"))


def test_a_good_gang(run: Run, tmp_path: Path) -> None:
    events = run("done")
    assert ends(events) == dict.fromkeys("abc", "finished")
    assert [e["event"] for e in events].count("started") == 3
    assert went_alone(tmp_path) == []


def test_a_cell_that_fails_ends_with_its_record(run: Run, tmp_path: Path) -> None:
    assert ends(run("fail")) == dict.fromkeys("abc", "finished")
    assert went_alone(tmp_path) == []


@pytest.mark.parametrize(("word", "why"), [("killed", "SIGKILL"), ("exit", "code 7")])
def test_when_the_process_dies_the_rest_go_on_alone(run: Run, tmp_path: Path, word: str, why: str) -> None:
    events = run(word, alone={"b": "crash"})
    assert ends(events) == {"a": "finished", "b": "crashed", "c": "finished"}
    assert went_alone(tmp_path) == ["b", "c"]
    released = [e for e in events if e["event"] == "released"]
    assert [e["cell_id"] for e in released] == ["b", "c"]
    assert {e["message"] for e in released} == {f"the worker of its gang ended ({why}); it goes on alone"}


def test_a_record_on_disk_counts_though_nobody_told(run: Run, tmp_path: Path) -> None:
    assert ends(run("written")) == dict.fromkeys("abc", "finished")
    assert went_alone(tmp_path) == ["c"]


def test_cells_that_wait_for_a_record_of_which_nobody_told(run: Run, tmp_path: Path) -> None:
    events = run("written", after={"x": ("b",)})
    assert ends(events) == dict.fromkeys("abcx", "finished")
    assert went_alone(tmp_path) == ["c", "x"]


def test_a_cell_that_was_done_before_goes_on_alone_for_what_it_lacks(run: Run, tmp_path: Path) -> None:
    """Its record is from before the gang, which was killed before the cell had made its weights again."""
    events = run("killed", done="b", after={"x": ("b",)})
    assert ends(events) == dict.fromkeys("abcx", "finished")
    assert went_alone(tmp_path) == ["b", "c", "x"]


def test_out_of_memory_in_a_gang_is_tried_alone(run: Run, tmp_path: Path) -> None:
    events = run("oom")
    assert ends(events) == dict.fromkeys("abc", "finished")
    assert went_alone(tmp_path) == ["b"]
    (released,) = [e for e in events if e["event"] == "released"]
    assert released["message"] == "out of memory in its gang; it goes on alone"


def test_cells_without_room_are_the_next_gang(run: Run, tmp_path: Path) -> None:
    events = run("room", "abcd")
    assert ends(events) == dict.fromkeys("abcd", "finished")
    assert went_alone(tmp_path) == []
    assert [e["cell_id"] for e in events if e["event"] == "started"] == ["a", "b", "c", "d"]


def test_the_limit_of_a_gang_is_that_of_its_cells_together(run: Run, tmp_path: Path) -> None:
    events = run("hang", "ab", timeout_s=0.3)
    assert ends(events) == dict.fromkeys("ab", "finished")
    assert went_alone(tmp_path) == ["b"]
    (released,) = [e for e in events if e["event"] == "released"]
    assert released["message"] == "its gang was stopped after the limit of 0.6 s; it goes on alone"


def test_only_the_cell_that_hangs_by_itself_too_is_out_of_time(run: Run, tmp_path: Path) -> None:
    events = run("hang", "abc", timeout_s=0.3, alone={"b": "hang"})
    assert ends(events) == {"a": "finished", "b": "timeout", "c": "finished"}
    assert went_alone(tmp_path) == ["b", "c"]
    (died,) = [e for e in events if e["event"] == "died"]
    assert died["message"] == "stopped after the limit of 0.3 s"


def test_a_stop_reaches_every_cell(run: Run, tmp_path: Path) -> None:
    polls = iter(range(10**6))
    assert ends(run("stop", stop=lambda: int(next(polls) > 2))) == dict.fromkeys("abc", "interrupted")
    assert went_alone(tmp_path) == []


def test_cells_that_wait_for_one_of_a_gang(run: Run, tmp_path: Path) -> None:
    """They go when it is done, in the gang or alone, and never when it failed."""
    events = run("exit", alone={"b": "crash"}, after={"x": ("a",), "y": ("c",), "z": ("b",)})
    assert ends(events) == {
        "a": "finished",
        "b": "crashed",
        "c": "finished",
        "x": "finished",
        "y": "finished",
        "z": "failed",
    }
    assert went_alone(tmp_path) == ["b", "c", "x", "y"]


def test_who_has_no_teacher_does_not_fail_with_that_of_its_gang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cells without a teacher join a gang for its batches."""
    monkeypatch.setattr(local, "context", lambda: multiprocessing.get_context("fork"))
    monkeypatch.setattr(local, "child", lone)
    monkeypatch.setattr(local, "gang_child", company)
    after = {"teacher": (), "a": ("teacher",), "b": ("teacher",), "c": (), "d": ()}
    jobs = {}
    for cell, first in after.items():
        (tmp_path / cell).mkdir()
        (tmp_path / cell / "act").write_text("done")
        jobs[cell] = Job(cell_id=cell, folder=tmp_path / cell, label=cell, after=first)
    (tmp_path / "teacher" / "alone").write_text("crash")
    events: list[dict[str, Any]] = []
    gang = gang_of([jobs[c] for c in "abcd"])
    launcher = LocalLauncher({"workers": 2, "gpus": 0})
    launcher.run([jobs["teacher"], gang], lambda e: events.append(dict(e)), lambda: 0)
    assert ends(events) == {
        "teacher": "crashed",
        "a": "failed",
        "b": "failed",
        "c": "finished",
        "d": "finished",
    }
    assert went_alone(tmp_path) == ["teacher"]
