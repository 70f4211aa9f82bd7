"""A trial of a search: what it measures, and that it cannot see a test image."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from kdbench.engine.build_dataset import make_dataset
from kdbench.engine.cell import CellTrainer
from kdbench.engine.data.blind import WithoutTest
from kdbench.engine.data.splits import make_splits
from kdbench.engine.trial import TrialTrainer, trainer_of
from kdbench.errors import DataError, RecordError
from kdbench.launch.plan import Planner
from kdbench.leaderboard.board import make_board
from kdbench.matrix import expand, load_matrix
from kdbench.registry import Registry
from kdbench.results.store import RunFolder, atomic_write_json

MATRIX = """
name: tiny
datasets: [{name: digits, limit_train: 96, limit_test: 40}]
pairs: [{teacher: null, student: "timm:test_vit"}]
methods: [vanilla]
seeds: 1
recipe: {epochs: 2, batch_size: 32, optimizer: {name: momentum, lr: 0.05}}
tune: {trials: 1, seeds: [9]}
"""


@pytest.fixture(scope="module")
def registry():
    return Registry.load()


@pytest.fixture(scope="module")
def cells(registry, tmp_path_factory):
    """The folders of a trial and of the cell that it is like, ready to run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    (folder / "m.yaml").write_text(MATRIX)
    loaded = load_matrix(folder / "m.yaml")
    (search,) = expand(loaded).searches
    (trial,) = search.trials({}, 0)
    planner = Planner(registry, loaded, RunFolder(folder / "run"), [])
    _, asked = planner.plan_cells([trial, replace(trial, role="student")])
    for cell in asked:
        cell.folder.mkdir(parents=True)
        atomic_write_json(cell.folder / "cell.json", cell.file.model_dump(mode="json"))
    yield [cell.folder for cell in asked]
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def guarded(registry, monkeypatch):
    """Let the data set itself fail where anything of its test split is read."""
    cls = registry.get("datasets", "digits").load()
    for name in ("labels", "image", "arrays"):
        real = getattr(cls, name)

        def read(self, split, *rest, real=real):
            if split == "test":
                raise AssertionError("the test split was read")
            return real(self, split, *rest)

        monkeypatch.setattr(cls, name, read)


def test_a_trial_is_judged_without_the_test_split(cells, registry, guarded):
    trial, student = cells
    assert (trainer_of(trial), trainer_of(student)) == (TrialTrainer, CellTrainer)
    record = trainer_of(trial)(trial, registry).run()
    rows = [json.loads(line) for line in (trial / "curves.jsonl").read_text().splitlines()]
    seen = [row["eval"]["student"]["val/top1"] for row in rows]
    assert len(seen) == 2
    assert record.validation.model_dump() == {
        "metric": "top1",
        "higher_is_better": True,
        "last": seen[-1],
        "best": max(seen),
    }
    net = record.deployables["student"]
    assert (net.last, net.best_val, net.best_test, record.floors, record.throughput) == (
        {},
        None,
        None,
        {},
        {},
    )
    assert "test/" not in (trial / "curves.jsonl").read_text()
    assert record.labels.role == "trial"
    assert record.cost.device_hours > 0
    assert {p.name for p in trial.iterdir()} & {"model.safetensors", "checkpoint.safetensors"} == set()
    with pytest.raises(RecordError, match="a trial of a search is no result"):
        make_board([record], title="t")
    # the guard would have told: the same cell as a result reads that split
    with pytest.raises(AssertionError, match="the test split was read"):
        trainer_of(student)(student, registry).run()


def test_the_test_split_of_a_trials_data_cannot_be_had(registry):
    whole = make_dataset(registry, "digits", {})
    blind = WithoutTest(whole)
    assert blind.describe() == whole.describe()
    index = np.arange(3)
    assert (blind.labels("train") == whole.labels("train")).all()
    assert (blind.arrays("train", index) == whole.arrays("train", index)).all()
    for read in (
        lambda: blind.labels("test"),
        lambda: blind.image("test", 0),
        lambda: blind.arrays("test", index),
    ):
        with pytest.raises(DataError, match="a trial of a search never reads the test split"):
            read()
    splits = make_splits(blind, blind.describe(), val_fraction=0.1, test=False)
    both = make_splits(whole, whole.describe(), val_fraction=0.1)
    assert splits.keys() == {"train", "val"}
    assert all((splits[name].indices == both[name].indices).all() for name in splits)
