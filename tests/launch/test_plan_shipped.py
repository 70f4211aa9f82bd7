"""The shipped matrices of the literature can be planned: what cannot be has a cause that is known."""

from __future__ import annotations

import pytest

from kdbench.launch.plan import Plan, Planner
from kdbench.matrix import load_matrix
from kdbench.registry import Registry
from kdbench.results.store import RunFolder
from kdbench_datasets.cifar import Cifar100

#: (method, teacher, student) -> part of the reason; fsp compares stages of equal width only
CIFAR100_CANNOT = {
    ("fsp", "wrn_40_2", "wrn_40_1"): "equal channel counts",
    ("fsp", "resnet50_cifar", "vgg8"): "equal channel counts",
    ("fsp", "vgg13", "mobilenetv2_half"): "equal channel counts",
    ("fsp", "resnet50_cifar", "mobilenetv2_half"): "equal channel counts",
    ("fsp", "resnet32x4", "shufflenetv1"): "equal channel counts",
    ("fsp", "resnet32x4", "shufflenetv2"): "equal channel counts",
    ("fsp", "wrn_40_2", "shufflenetv1"): "equal channel counts",
}


@pytest.fixture
def plan_cifar100(tmp_path):
    """Plan cifar100-standard for one seed; planning asks only whether the files are there."""
    folder = tmp_path / Cifar100.files.folder
    folder.mkdir()
    for name, _ in (*Cifar100.files.train, *Cifar100.files.test):
        (folder / name).touch()

    def plan(*only: str) -> Plan:
        loaded = load_matrix("cifar100-standard", sets=[f"datasets.0.args.root={tmp_path}", "seeds=1"])
        return Planner(Registry.load(), loaded, RunFolder(tmp_path / "run"), ()).plan(only)

    return plan


def check(plan: Plan) -> None:
    seen = {}
    for cell in plan.cells:
        names = cell.file.labels
        key = (names.variant, names.teacher, names.student)
        assert cell.status in ("to run", "not_applicable")
        if cell.status == "not_applicable":
            seen[key] = cell.reason
            assert CIFAR100_CANNOT[key] in cell.reason
        elif names.variant == "takd":
            assert f"-> {names.assistant} ->" in cell.label
    planned = {(c.file.labels.variant, c.file.labels.teacher, c.file.labels.student) for c in plan.cells}
    assert planned & CIFAR100_CANNOT.keys() == seen.keys()
    assert not plan.warnings


@pytest.mark.parametrize("pair", ["resnet56->resnet20", "wrn_40_2->shufflenetv1"])
def test_a_pair_of_cifar100(plan_cifar100, pair):
    plan = plan_cifar100(f"pair={pair}")
    rows = {c.file.labels.variant for c in plan.cells if c.file.labels.role == "student"}
    assert len(rows) == 35
    check(plan)


@pytest.mark.e2e
def test_all_of_cifar100(plan_cifar100):
    plan = plan_cifar100()
    pairs = {(c.file.labels.teacher, c.file.labels.student) for c in plan.cells if c.file.labels.teacher}
    assert len(pairs) == 13
    check(plan)
