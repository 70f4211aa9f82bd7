"""Cells that differ in their seeds are planned together, and are what they would be alone."""

import json

import pytest
from matrices import STUDENT, TEACHER, write_matrix

from kdbench.launch.plan import Planner
from kdbench.launch.views import Facts, Files
from kdbench.matrix import cell_id, load_matrix
from kdbench.registry import Registry
from kdbench.results.store import RunFolder


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    pairs = [{"teacher": TEACHER, "student": STUDENT}]
    path = write_matrix(folder / "m.yaml", name="m", pairs=pairs, methods=["vanilla", "kd"], seeds=[3, 1, 40])
    return Planner(Registry.load(), load_matrix(str(path)), RunFolder(folder / "run"), (), "cpu").plan()


def test_ids_are_those_of_the_identities(plan):
    assert len(plan.cells) == 7
    for cell in plan.cells:
        assert cell.id == cell_id(cell.file.identity) == cell.file.cell_id == cell.folder.name
        seeds = {cell.seed, cell.file.seed, cell.file.labels.seed, cell.file.identity["seed"], cell.spec.seed}
        assert len(seeds) == 1


def test_one_pattern_for_all_seeds(plan):
    assert len({cell.pattern for cell in plan.cells}) == 3
    assert [c.seed for c in plan.cells if c.file.method == "kd"] == [3, 1, 40]


def test_changes_stay_with_the_cell(plan):
    first, second = [c for c in plan.cells if c.file.method == "kd"][:2]
    first.change(threads=3)
    assert (first.file.threads, second.file.threads) == (3, None)
    assert json.loads(first.file.model_dump_json())["threads"] == 3


def test_views_make_what_is_asked_for(plan):
    files = Files({c.id: c for c in plan.cells})
    assert list(files) == [c.id for c in plan.cells]
    assert files[plan.cells[2].id].labels == plan.cells[2].file.labels
    facts = Facts(plan.cells)
    assert facts[0] == {"cell_id": plan.cells[0].id, "status": "to run", "label": plan.cells[0].label}
    assert [f["cell_id"] for f in facts] == list(files)
    assert len(facts[1:3]) == 2
