"""Cells that train nothing: from the matrix file to the record."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest
from matrices import write_matrix

from kdbench.engine.cell import Hooks
from kdbench.engine.progress import Interrupted
from kdbench.engine.speed.cell import SpeedCell
from kdbench.errors import KdbenchError
from kdbench.launch.plan import Planner
from kdbench.matrix import load_matrix
from kdbench.registry import Registry
from kdbench.results.store import RunFolder, read_record

ONLY = {"only": True, "batch_sizes": [2], "precisions": ["fp32", "bf16"], "rounds": 3, "max_seconds": 0.1}


class Turns(Hooks):
    """Counts how often a cell measured alone, and asks it to stop when told."""

    def __init__(self, stop=False):
        self.stop, self.entered = stop, 0

    def should_stop(self):
        return self.stop

    @contextmanager
    def alone(self):
        self.entered += 1
        yield


@pytest.fixture(scope="module")
def registry():
    return Registry.load()


@pytest.fixture(scope="module")
def planned(registry, tmp_path_factory):
    folder = tmp_path_factory.mktemp("speed")
    path = write_matrix(
        folder / "m.yaml",
        name="speed",
        datasets=[{"name": "synthetic", "args": {"num_classes": 7, "image_size": 40}}],
        pairs=None,
        teachers=[None],
        students=[{"name": "timm:test_resnet", "args": {"drop_rate": 0.5}}],
        methods=["vanilla"],
        throughput=ONLY,
    )
    (cell,) = Planner(registry, load_matrix(str(path)), RunFolder(folder / "run"), ()).plan().cells
    cell.folder.mkdir(parents=True)
    (cell.folder / "cell.json").write_text(json.dumps(cell.file.model_dump(mode="json")))
    return cell


def test_the_record_has_every_speed_and_no_accuracy(planned, registry):
    hooks = Turns()
    SpeedCell(planned.folder, registry, hooks).run()
    record = read_record(planned.folder / "result.json")
    assert record.cell_id == planned.id
    assert hooks.entered == 1
    assert [(s.mode, s.precision, s.batch_size, s.status) for s in record.speeds] == [
        (mode, precision, 2, "done") for mode in ("infer", "train") for precision in ("fp32", "bf16")
    ]
    assert record.deployables["student"].last == {}
    assert record.deployables["student"].params > 0
    assert record.cost is None
    assert record.throughput["student"]["2"].images_per_s == record.speeds[0].images_per_s
    assert record.environment["precision"] == "fp32, bf16"
    assert record.plugins["student"].distribution


def test_the_data_set_says_how_large_images_are(planned, registry):
    settings = SpeedCell(planned.folder, registry).settings()
    assert (settings.image_size, settings.num_classes, settings.in_chans) == (40, 7, 3)
    assert settings.args == {"timm:test_resnet": {"drop_rate": 0.5}}


def test_a_stop_ends_it_without_a_record(planned, registry):
    (planned.folder / "result.json").unlink(missing_ok=True)
    with pytest.raises(Interrupted):
        SpeedCell(planned.folder, registry, Turns(stop=True)).run()
    assert not (planned.folder / "result.json").exists()


def test_other_data_than_planned_are_refused(planned, registry):
    cell = SpeedCell(planned.folder, registry)
    cell.cell.dataset.revision = "another"
    with pytest.raises(KdbenchError, match="changed since the matrix was planned"):
        cell.run()


def test_precisions_of_the_measurement_are_those_of_the_cell(planned):
    assert planned.file.only_speed
    assert planned.file.precisions == ["fp32", "bf16"]
    assert planned.file.model_copy(update={"throughput": None}).precisions == ["fp32"]
