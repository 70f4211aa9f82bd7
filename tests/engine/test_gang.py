"""Cells in lockstep: bit for bit what they are alone, whatever their neighbours do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gang_world import STEPS, World, outcome

from kdbench.engine.cell import CellTrainer, Hooks
from kdbench.engine.divergence import Diverged
from kdbench.engine.forwards import Forwards
from kdbench.engine.gang import Gang
from kdbench.engine.progress import Interrupted
from kdbench.engine.settings import settings
from kdbench.protocol.types import NotApplicable
from kdbench.results.artifacts import route_path

#: One of each kind: no teacher, logits, features, stages of training, a bank, views, a route, no data, peers.
METHODS = [
    "vanilla",
    "kd",
    "dkd",
    "fitnet",
    "at",
    "ofd",
    "ab",
    "crd",
    "mlkd",
    "rco",
    "dfad",
    "ffl",
    "timm-logit",
]
#: What a method may do with what it is given; none of it may reach another cell.
ACTS = [
    "images",
    "images-data",
    "write",
    "teacher",
    "teacher-data",
    "random",
    "settings",
    "source",
    "grad",
    "bn",
    "taps",
]

Ended = dict[str, BaseException | None]


class Company:
    """Runs cells as a gang and keeps how each ended."""

    def __init__(self, world: World, where: Path) -> None:
        self.world, self.where = world, where
        self.ended: Ended = {}
        self.made: dict[str, Path] = {}
        self.gang: Gang | None = None

    def __call__(
        self, *names: str, hooks: Callable[[Path], Hooks] = lambda folder: Hooks(), **over: Any
    ) -> list[str]:
        """Return the names of the cells that were not begun."""
        self.made = {n: self._folder(n, over) for n in names}
        by_folder = {folder: name for name, folder in self.made.items()}

        def ended(folder: Path, error: BaseException | None) -> bool:
            self.ended[by_folder[folder]] = error
            return True

        self.gang = Gang(list(self.made.values()), self.world.registry, hooks, ended)
        return [by_folder[folder] for folder in self.gang.run()]

    def _folder(self, name: str, over: dict[str, Any]) -> Path:
        folder = self.where / "cells" / self.world.content(name)["cell_id"]
        return folder if folder.exists() else self.world.folder(self.where, name, **over)

    def outcome(self, name: str) -> dict[str, Any]:
        assert self.ended[name] is None
        return outcome(self.made[name])

    def cost(self, name: str) -> dict[str, Any]:
        return json.loads((self.made[name] / "result.json").read_text())["cost"]


@pytest.fixture
def company(world: World, tmp_path: Path) -> Company:
    return Company(world, tmp_path)


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the teachers' forwards that were asked of the gang: ``made`` or ``given``."""
    seen: list[str] = []
    ask = Forwards.ask

    def counted(self: Forwards, *args: Any) -> Any:
        got, seconds = ask(self, *args)
        seen.append("given" if seconds else "made")
        return got, seconds

    monkeypatch.setattr(Forwards, "ask", counted)
    return seen


def test_all_kinds_of_methods_are_what_they_are_alone(world: World, company: Company) -> None:
    assert company(*METHODS) == []
    for name in METHODS:
        assert company.outcome(name) == world.alone(name), name
    assert len({company.outcome(name)["weights"] for name in METHODS}) == len(METHODS)


@pytest.mark.parametrize("first", [True, False], ids=["goes first", "goes last"])
@pytest.mark.parametrize("act", ACTS)
def test_what_one_does_never_reaches_another(world: World, company: Company, act: str, first: bool) -> None:
    before = settings()
    odd, others = f"odd:{act}", ["kd", "odd:none"]
    company(*([odd, *others] if first else [*others, odd]))
    assert settings() == before
    for name in others:
        assert company.outcome(name) == world.alone(name), name
    if not act.endswith("-data"):  # torch does not see it; no method may do it
        assert company.outcome(odd) == world.alone(odd)


def test_batches_and_forwards_are_shared(world: World, company: Company, forwards: list[str]) -> None:
    """Three of four cells are given what the first made, in all steps; one that asks nobody pays itself."""
    company("kd", "dkd", "fitnet", "odd:none", "vanilla")
    steps = 2 * STEPS
    # in the first steps the taps of those that have not begun are not known
    assert forwards.count("given") >= 3 * (steps - 1)
    assert len(forwards) == 4 * steps
    for name in ("dkd", "fitnet", "odd:none"):
        assert company.cost(name)["shared_s"] > 0
    assert company.cost("kd")["peak_memory_mb"] is None
    assert [company.cost(name)["gang"] for name in ("kd", "dkd", "vanilla")] == [5, 5, 5]


def test_teachers_by_batch_statistics_are_shared_among_their_like(
    world: World, company: Company, forwards: list[str]
) -> None:
    """ab and ofd run the teacher so; kd does not."""
    company("ab", "ofd", "kd")
    for name in ("ab", "ofd", "kd"):
        assert company.outcome(name) == world.alone(name), name
    # in the first step, nobody knows yet what the second reads
    assert forwards.count("given") >= 2 * STEPS - 1
    assert company.cost("kd")["shared_s"] < company.cost("kd")["train_s"]


@pytest.mark.parametrize(
    ("act", "error"),
    [("raise", ValueError), ("nan", Diverged), ("cannot", NotApplicable), ("memory", MemoryError)],
)
@pytest.mark.parametrize("at", [0, STEPS + 2], ids=["first step", "mid-run"])
def test_one_that_fails_leaves_and_the_others_go_on(
    world: World, company: Company, act: str, error: type[Exception], at: int
) -> None:
    bad = f"odd:{act}@{at}"
    company("kd", bad, "fitnet")
    assert type(company.ended[bad]) is error
    assert company.ended[bad].__traceback__ is None  # nothing holds its networks
    assert not (company.made[bad] / "result.json").exists()
    for name in ("kd", "fitnet"):
        assert company.outcome(name) == world.alone(name)


def test_one_that_changes_what_its_code_cannot_bear_leaves(world: World, company: Company) -> None:
    company("odd:dtype@3", "kd", "dkd")
    assert "Double" in str(company.ended["odd:dtype@3"])
    for name in ("kd", "dkd"):
        assert company.outcome(name) == world.alone(name)


def test_one_that_cannot_be_set_up_leaves(world: World, company: Company) -> None:
    company("odd:setup", "kd", "dkd")
    assert "sabotage in setup" in str(company.ended["odd:setup"])
    for name in ("kd", "dkd"):
        assert company.outcome(name) == world.alone(name)


class _Fails(Hooks):
    def __init__(self, when: str) -> None:
        self.when = when

    def epoch(self, row: dict[str, Any]) -> None:
        if self.when == "epoch":
            raise OSError("no room for the row")

    def alone(self) -> Any:
        if self.when == "measure":
            raise RuntimeError("cannot measure")
        return super().alone()


@pytest.mark.parametrize("when", ["epoch", "measure"])
def test_an_error_outside_of_a_step_is_its_cells_own(world: World, company: Company, when: str) -> None:
    def hooks(folder: Path) -> Hooks:
        return _Fails(when if world.content("dkd")["cell_id"] == folder.name else "")

    company("kd", "dkd", "at", hooks=hooks)
    assert company.ended["dkd"] is not None
    for name in ("kd", "at"):
        assert company.outcome(name) == world.alone(name)


class _Stopper(Hooks):
    """Tells all cells to stop after so many polls."""

    def __init__(self) -> None:
        self.left = 0

    def should_stop(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_a_cut_cell_keeps_the_epochs_that_are_wanted_since(world: World, tmp_path: Path) -> None:
    """The matrix has a method by now that follows its route, of which the first epoch was not kept."""
    folder, stopper = world.folder(tmp_path, "kd"), _Stopper()
    stopper.left = STEPS + 2
    with pytest.raises(Interrupted):
        CellTrainer(folder, world.registry, stopper).run()
    content = json.loads((folder / "cell.json").read_text())
    (folder / "cell.json").write_text(json.dumps({**content, "keep_epochs": [1, 2]}))
    CellTrainer(folder, world.registry).run()
    assert all(route_path(folder, epoch).exists() for epoch in (1, 2))
    assert outcome(folder) == world.alone("kd")


@pytest.mark.parametrize("polls", [1, 4, 10, 13])
def test_an_interrupted_gang_saves_all_and_goes_on(world: World, company: Company, polls: int) -> None:
    names = ["kd", "ab", "mlkd"]
    stopper = _Stopper()
    stopper.left = polls
    not_begun = company(*names, hooks=lambda folder: stopper)
    begun = [n for n in names if n not in not_begun]
    assert all(isinstance(company.ended[n], Interrupted) for n in begun)
    assert all((company.made[n] / "checkpoint.safetensors").exists() for n in begun)
    company(*reversed(names))
    for name in names:
        assert company.outcome(name) == world.alone(name)


def test_members_at_different_places_meet(world: World, company: Company, forwards: list[str]) -> None:
    """One was cut in its second epoch, the others begin: they share once they are abreast."""
    stopper = _Stopper()
    stopper.left = STEPS + 2
    company("kd", hooks=lambda folder: stopper)
    assert isinstance(company.ended["kd"], Interrupted)
    assert forwards == []  # nobody to share with
    company("kd", "dkd")
    for name in ("kd", "dkd"):
        assert company.outcome(name) == world.alone(name)
    assert forwards.count("given") == STEPS - 3


def test_members_begin_only_as_memory_allows(
    world: World, company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the second is the hungriest; when the third has begun there is not twice as much left
    takes, free = iter([10, 30, 20]), iter([61, 61, 59])
    monkeypatch.setattr("kdbench.engine.gang.used_bytes", lambda device: 100)
    monkeypatch.setattr("kdbench.engine.gang.peak_bytes", lambda device: 100 + next(takes))
    monkeypatch.setattr("kdbench.engine.gang.free_bytes", lambda device: next(free))
    assert company("kd", "dkd", "fitnet", "at", "sp") == ["at", "sp"]
    for name in ("kd", "dkd", "fitnet"):
        assert company.outcome(name) == world.alone(name)


def test_speed_is_measured_within_a_turn(world: World, company: Company) -> None:
    """Nothing of another cell runs while one is measured."""
    order: list[tuple[str, str]] = []

    class Watch(Hooks):
        def __init__(self, name: str) -> None:
            self.name = name

        def enter(self) -> None:
            order.append(("turn", self.name))

        def alone(self) -> Any:
            order.append(("measure", self.name))
            return super().alone()

    timing = {"throughput": {"batch_sizes": [1], "rounds": 3}}
    company("kd", "dkd", hooks=lambda folder: Watch(folder.name), **timing)
    measures = [i for i, (what, _) in enumerate(order) if what == "measure"]
    assert len(measures) == 2
    for i in measures:
        assert [name for what, name in order[:i] if what == "turn"][-1] == order[i][1]
    for name in ("kd", "dkd"):
        record = json.loads((company.made[name] / "result.json").read_text())
        assert record["throughput"]["student"]["1"]["images_per_s"] > 0
        assert company.outcome(name)["weights"] == world.alone(name)["weights"]


def test_a_closed_gang_ends_all(world: World, tmp_path: Path) -> None:
    """When the disk is full nobody goes on; generators are closed, and hooks of methods removed."""
    folders = world.folders(tmp_path, ["odd:raise@3", "kd"])
    ended: list[Path] = []

    def full(folder: Path, error: BaseException | None) -> bool:
        ended.append(folder)
        return False

    gang = Gang(folders, world.registry, ended=full)
    assert gang.run() == []
    assert ended == [folders[0]]
    assert not (folders[1] / "result.json").exists()


def test_streams_of_images_are_read_once(
    world: World, company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With storage: stream, too; a cell with further views has a reader of its own."""
    monkeypatch.setattr("kdbench.engine.data.context.cores", lambda: 1)  # read in this process
    content = world.content("kd")
    dataset = {**content["dataset"], "storage": "stream"}
    names = ["vanilla", "kd", "mlkd", "dfad"]
    company(*names, dataset=dataset)
    for name in names:
        assert company.outcome(name) == world.alone(name, dataset=dataset), name


def test_bf16(world: World, company: Company) -> None:
    recipe = {**world.content("kd")["recipe"], "precision": "bf16"}
    names = ["kd", "fitnet", "vanilla"]
    company(*names, recipe=recipe)
    for name in names:
        assert company.outcome(name) == world.alone(name, recipe=recipe), name
    assert company.outcome("kd")["weights"] != world.alone("kd")["weights"]


def test_the_teacher_is_asked_only_while_somebody_shares(
    world: World, company: Company, forwards: list[str]
) -> None:
    """The last one takes what was made for the step, and then asks its own."""
    company("kd", "odd:raise@3")
    # when the first takes its first step, nobody knows yet what the second reads
    assert forwards == ["made", "made", *["made", "given"] * 3]
    assert company.gang is not None
    assert company.gang.forwards._teachers == {}
    assert company.outcome("kd") == world.alone("kd")
    assert torch.get_default_dtype() is torch.float32
