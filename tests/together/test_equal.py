"""The result of several processes is that of one: weights, curves and metrics, within 1e-5 after an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from together_world import TOLERANCE, Cells, distance, record, rows, together

from kdbench.launch.worker import INTERRUPTED

#: No teacher and BatchNorm; logits; maps, connectors with BatchNorm and teachers by the batch; banks and draws
#: over the batch; two optimizers, a generator, gradients through a teacher.
METHODS = ["vanilla", "kd", "ofd", "crd", "dfad"]
#: Several students; gradients that a method takes by itself, of weights and of images; a hook within a network;
#: batches that a method makes; teachers by the batch.
ODD = ["dml", "odd:weights", "odd:grad", "odd:hook", "odd:source", "odd:bn"]

Folders = Mapping[str, tuple[Path, Path]]


@pytest.fixture(scope="module")
def both(cells: Cells, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Folders of each method's cell, trained on one process and on two; ``stream`` reads its images one by one.

    The last batch has 8 images, all others 16.
    """
    root = tmp_path_factory.mktemp("both")
    where = {size: root / str(size) for size in (1, 2)}
    out: dict[int, dict[str, Path]] = {
        size: {m: cells(w, m) for m in [*METHODS, *ODD]} for size, w in where.items()
    }
    for size, w in where.items():
        content = cells.world.content("kd")["dataset"] | {"storage": "stream"}
        out[size]["stream"] = cells(w / "stream", "kd", dataset=content, loaders=0)
    for folder in out[1].values():
        cells.train(folder)
    assert together(2, list(out[2].values()), root) == [0, 0]
    return {name: (out[1][name], out[2][name]) for name in out[1]}


@pytest.mark.parametrize("method", [*METHODS, *ODD, "stream"])
def test_two_processes_train_what_one_does(both: Folders, method: str) -> None:
    one, two = both[method]
    assert 0 <= distance(one, two) < TOLERANCE
    (a,), (b,) = rows(one), rows(two)
    assert a["train"] == pytest.approx(b["train"], rel=TOLERANCE)
    assert a["steps"] == b["steps"]
    assert a["lr"] == b["lr"]
    mine, theirs = (r["deployables"]["student"] for r in (record(one), record(two)))
    assert mine["last"] == pytest.approx(theirs["last"], rel=TOLERANCE)


def test_a_part_of_the_batch_alone_would_be_something_else(
    cells: Cells, both: Folders, tmp_path: Path
) -> None:
    """The tolerance can tell: half of the batches, by batch size, are far away."""
    half = cells(
        tmp_path, "vanilla", recipe={**cells.world.content("kd")["recipe"], "epochs": 1, "batch_size": 8}
    )
    cells.train(half)
    assert distance(both["vanilla"][0], half) > 100 * TOLERANCE


def test_the_record_says_how_many_processes_there_were(both: Folders) -> None:
    one, two = (record(f) for f in both["kd"])
    assert two["environment"].pop("processes") == 2
    assert one["environment"].keys() == two["environment"].keys()
    cost = two["cost"]
    clocks = sum(cost[k] for k in ("train_s", "eval_s", "log_s", "setup_s"))
    assert cost["device_hours"] == pytest.approx(2 * clocks / 3600)
    assert cost["steps"] == one["cost"]["steps"]
    assert two["cell_id"] == one["cell_id"]


def test_one_process_writes(both: Folders) -> None:
    _, two = both["kd"]
    left = {p.name for p in two.iterdir()} - {".lock"}
    assert left - {"test-0.txt", "test-1.txt"} == {
        p.name for p in both["kd"][0].iterdir() if p.name != ".lock"
    }
    assert len(rows(two)) == 1


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 3)])
def test_another_number_of_processes_goes_on(cells: Cells, tmp_path: Path, first: int, then: int) -> None:
    """Cut within the second epoch, told to a process that need not be the leading one; shares of 3 are uneven."""
    whole = cells(tmp_path / "whole", "crd", epochs=2)
    cells.train(whole)
    cut = cells(tmp_path / "cut", "crd", epochs=2)
    stopped = together(first, [cut], tmp_path, act="stop", who=first - 1, at=7)
    assert stopped == [INTERRUPTED] * first
    assert not (cut / "result.json").exists()
    assert together(then, [cut], tmp_path) == [0] * then
    assert distance(whole, cut) < TOLERANCE
    assert record(cut)["cost"]["attempts"] == 2
    assert record(cut)["cost"]["steps"] == record(whole)["cost"]["steps"]


def test_the_record_says_what_was_not_divided(both: Folders) -> None:
    assert record(both["odd:hook"][1])["warnings"] == [
        "a network with hooks in it ran as a whole in every process"
    ]
    assert record(both["odd:grad"][1])["warnings"] == []
