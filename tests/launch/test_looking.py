"""What is on disk of cells is the same whether one process or several look."""

import json

import pytest
from factories import make_record, signed
from matrices import write_matrix

from kdbench.errors import KdbenchError
from kdbench.launch import looking
from kdbench.launch.looking import MOST_SEEN, costs, facts_of, look, look_at, read_all
from kdbench.launch.plan import Planner
from kdbench.matrix import load_matrix
from kdbench.registry import Registry
from kdbench.results.store import RunFolder


@pytest.fixture(scope="module")
def registry():
    return Registry.load()


@pytest.fixture
def cells(registry, tmp_path):
    """Cells of every kind, with folders."""
    path = write_matrix(tmp_path / "m.yaml", name="m", methods=["kd", "dkd"], seeds=[1, 2, 3, 4])
    plan = Planner(registry, load_matrix(str(path)), RunFolder(tmp_path / "run"), (), "cpu").plan()
    cells = [c for c in plan.cells if c.pattern.spec.role == "student"]
    for k, cell in enumerate(plan.cells):
        cell.folder.mkdir(parents=True)
        status = ("done", "done", "failed", "interrupted", None, None, "done", "done", "done")[k % 9]
        record = make_record(cell_id=cell.id, status=status or "done")
        if k == 1:
            record["plugins"]["method"]["code"] = "0" * 16
        text = json.dumps(signed(record))
        if status is not None:
            (cell.folder / "result.json").write_text(text[:-9] if k == 6 else text)
        if k == 4:
            (cell.folder / "checkpoint.safetensors").touch()
    assert len(cells) == 8
    return plan.cells


def states(cells):
    return [(c.status, c.reason, c.stale, c.damaged, c.seen) for c in cells]


def fresh(cells):
    for c in cells:
        c.status, c.reason, c.stale, c.damaged, c.seen, c.pattern.seen = "to run", None, False, False, None, 0


def test_several_processes_see_what_one_sees(cells, registry, monkeypatch):
    for cell in cells:
        look(cell, registry)
    one = states(cells)
    assert {status for status, *_ in one} == {"done", "failed", "interrupted", "to run"}
    assert any(stale for _, _, stale, *_ in one)
    assert any(damaged and "cannot be read: " in reason for _, reason, _, damaged, _ in one)
    fresh(cells)
    monkeypatch.setattr(looking, "SHARE", 3)
    monkeypatch.setattr(looking, "cores", lambda: 3)
    monkeypatch.setattr(looking, "facts_of", None)  # not here
    look_at(cells, registry)
    assert states(cells) == one


def test_readers_that_die_are_told(cells, registry, monkeypatch):
    monkeypatch.setattr(looking, "SHARE", 3)
    monkeypatch.setattr(looking, "cores", lambda: 2)
    monkeypatch.setattr(looking, "read_all", leave)
    with pytest.raises(KdbenchError, match=r"reading the records: .*\(code 3\)"):
        look_at(cells, registry)


def leave(folders):
    import os

    os._exit(3)


def test_costs_of_a_few_of_each_pattern_are_enough(tmp_path):
    record = make_record()
    folder = tmp_path / record["cell_id"]
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(record))
    found = read_all([(str(folder), k % 2) for k in range(2 * MOST_SEEN + 10)])
    assert sum(facts[-1] is not None for facts in found) == 2 * MOST_SEEN


@pytest.mark.parametrize(
    "edit",
    [
        {"error": "text"},
        {"environment": [1]},
        {"plugins": "text"},
        {"cost": "text"},
        {"content_sha256": "0" * 64, "labels": float("nan")},
    ],
)
def test_a_record_of_another_form_is_one_that_cannot_be_read(tmp_path, edit):
    folder = tmp_path / make_record()["cell_id"]
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps({**make_record(), **edit}))
    found = facts_of(folder)
    assert found.status is None
    assert found.reason.startswith(f"its record cannot be read: {folder / 'result.json'}: ")


@pytest.mark.parametrize(
    "edit", [{"started_at": None}, {"finished_at": "2026-01-02"}, {"cost": {"train_s": "1"}}]
)
def test_costs_that_cannot_be_told_are_left_out(edit):
    found = costs({**make_record(), **edit})
    assert found["elapsed_s"] is None or found["cost"] is None
