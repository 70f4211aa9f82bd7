"""What a plan says of cells that cannot be: one line with the reason, before anything is trained."""

from __future__ import annotations

import re

import pytest
from matrices import RECIPE, STUDENT, TEACHER, write_matrix

from kdbench.errors import KdbenchError
from kdbench.launch.plan import Planner
from kdbench.matrix import load_matrix
from kdbench.registry import Registry
from kdbench.results.store import RunFolder


@pytest.fixture(scope="module")
def registry():
    return Registry.load()


@pytest.fixture
def plan(tmp_path, registry):
    def make(**overrides):
        path = write_matrix(tmp_path / "m.yaml", name="m", **overrides)
        return Planner(registry, load_matrix(str(path)), RunFolder(tmp_path / "run"), ()).plan()

    return make


def pairs(teacher, student=STUDENT):
    return [{"teacher": teacher, "student": student}]


TWO_CLASSES = [
    {"name": "synthetic", "args": {"num_classes": 2, "image_size": 32, "n_train": 64, "n_test": 16}}
]
PRETRAINED = [{"teacher": {"name": TEACHER, "pretrained": True}, "student": STUDENT}]

NOT_APPLICABLE = {
    "no activation before ofd's margins": (
        {"methods": ["ofd"], "pairs": pairs("timm:test_convnext")},
        "needs a teacher whose stages end in an activation",
    ),
    "unequal channels for fsp": (
        {"methods": ["fsp"]},
        "needs equal channel counts, stage widths are 24 and 32",
    ),
    "two classes for dkd": (
        {"methods": ["dkd"], "datasets": TWO_CLASSES},
        "needs at least 3 classes, the data set has 2",
    ),
    "two classes for dist": (
        {"methods": ["dist"], "datasets": TWO_CLASSES},
        "needs at least 3 classes, the data set has 2",
    ),
    "no route for rco": (
        {"methods": ["rco"], "pairs": PRETRAINED},
        "needs the training route of a teacher trained here",
    ),
    "no teacher": ({"methods": ["kd"], "pairs": pairs(None)}, "needs 1 teacher(s), the pair has none"),
    "no distillation head": ({"methods": ["timm-token"]}, "needs a student with a distillation head"),
    "maps of one pixel": (
        {"methods": [{"name": "at", "params": {"stages": 1}}]},
        "compares positions of maps, and every paired map is 1x1",
    ),
    **{
        f"one image for {name}": (
            {"methods": [name], "recipe": {**RECIPE, "batch_size": 1}},
            f"needs batches of at least {least}, the recipe has 1",
        )
        for name, least in {"sp": 2, "cc": 2, "pkt": 2, "rkd": 3, "dist": 3, "mlkd": 2}.items()
    },
}


@pytest.mark.parametrize("case", NOT_APPLICABLE)
def test_not_applicable(case, plan):
    overrides, reason = NOT_APPLICABLE[case]
    (method,) = overrides["methods"]
    name = method if isinstance(method, str) else method["name"]
    (cell,) = [c for c in plan(**overrides).cells if c.file.method == name]
    assert cell.status == "not_applicable"
    assert reason in cell.reason
    assert "\n" not in cell.reason


def test_connectors_lift_the_refusal_of_fsp(plan):
    made = plan(methods=[{"name": "fsp", "params": {"connectors": True}}])
    assert {c.status for c in made.cells} == {"to run"}


@pytest.mark.parametrize(
    ("method", "key"),
    [
        ({"name": "kd", "params": {"temperature": 0}}, "temperature"),
        ({"name": "dkd", "params": {"alpha": -1}}, "alpha"),
        ({"name": "crd", "params": {"momentum": 1}}, "momentum"),
        ({"name": "fitnet", "params": {"hint_share": 1.5}}, "hint_share"),
        ({"name": "ab", "params": {"ce_weight": 0, "kd_weight": 0}}, "both 0"),
        ({"name": "sp", "params": {"stages": "two"}}, "stages"),
        ({"name": "ofd", "params": {"alhpa": 1e-4}}, "alhpa"),
        ({"name": "kd", "preset": "cifar10"}, "did you mean 'cifar100'"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else value,
)
def test_values_out_of_range_end_the_plan(method, key, plan, tmp_path):
    with pytest.raises(KdbenchError, match=rf"^{re.escape(str(tmp_path))}/m\.yaml:\d+: ") as raised:
        plan(methods=[method])
    assert key in str(raised.value)
    assert f"'{method['name']}'" in str(raised.value)
    assert "\n" not in str(raised.value)
