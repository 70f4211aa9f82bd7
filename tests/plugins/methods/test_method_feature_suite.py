"""Entries, presets and the conformance suite of the methods in ``_entries_features``."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch
from on_pairs import ON_PAIRS
from pydantic import ValidationError

from kdbench.errors import KdbenchError
from kdbench.registry import Registry
from kdbench.testing import check_method
from kdbench_methods._entries_features import METHODS

PAIRS = [("test_resnet", "test_vit"), ("test_vit", "test_resnet")]
#: Never put on arXiv, as far as could be found.
NOT_ON_ARXIV = {"fsp", "srrl"}
VARIANTS = [
    ("at", {"variant": "paper"}),
    ("cc", {"form": "rbf"}),
    ("crd", {"negatives": "other-image", "k": 2}),
    ("fsp", {"connectors": True}),
    ("fsp", {"procedure": "joint", "connectors": True}),
    ("ft", {"factor": "energy"}),
    ("reviewkd", {"student_pre": True, "mid_channels": 8}),
]


def load(name):
    entry = next(e for e in METHODS if e.name == name)
    module, _, attribute = entry.target.partition(":")
    return getattr(importlib.import_module(module), attribute)


@pytest.fixture(scope="module")
def registry():
    return Registry.load()


@pytest.mark.parametrize("entry", METHODS, ids=lambda e: e.name)
class TestEntry:
    def test_entry_and_class_agree(self, entry):
        cls = load(entry.name)
        assert entry.needs == cls.needs == cls.requires(cls.Params())
        assert entry.version.isdecimal()
        assert entry.summary.endswith(".")
        assert ("arXiv:" in entry.paper) == (entry.name not in NOT_ON_ARXIV)
        assert entry.name == cls.__name__.lower()

    def test_golden_values(self, entry):
        golden = load(entry.name).golden()
        assert golden
        for g in golden:
            got = torch.as_tensor(g.value()).detach().double()
            expected = torch.tensor(g.expected, dtype=torch.float64)
            torch.testing.assert_close(got, expected, rtol=g.rtol, atol=0, msg=g.name)
            assert g.source

    def test_presets_are_valid_and_hyper_parameters_documented(self, entry):
        cls = load(entry.name)
        for preset in cls.presets.values():
            assert cls.Params(**preset).model_dump().items() >= dict(preset).items()
        assert all(info.description for info in cls.Params.model_fields.values())
        with pytest.raises(ValidationError):
            cls.Params(no_such_key=1)

    @pytest.mark.parametrize(("teacher", "student"), PAIRS)
    def test_conformance(self, entry, teacher, student, registry):
        options = {"teacher": f"timm:{teacher}", "student": f"timm:{student}", "registry": registry}
        if entry.name == "fsp":
            with pytest.raises(KdbenchError, match="equal channel counts, stage widths are"):
                check_method(load("fsp"), **options)
            return
        report = check_method(load(entry.name), only=ON_PAIRS, **options)
        assert report.passed, report.failures()


@pytest.mark.parametrize(("name", "params"), VARIANTS)
def test_conformance_of_variants(name, params, registry):
    # the last map of test_resnet is 1x1 here, which ft's energies refuse
    student = "timm:test_vit" if name == "ft" else "timm:test_resnet"
    report = check_method(
        load(name),
        params=params,
        teacher="timm:test_vit",
        student=student,
        registry=registry,
        only=(*ON_PAIRS, "overfits a batch", "other networks"),
    )
    assert report.passed, report.failures()


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("at", {"variant": "mean"}),
        ("at", {"stages": 0}),
        ("cc", {"order": 0}),
        ("vid", {"init_variance": 0}),
        ("crd", {"momentum": 1.0}),
        ("crd", {"k": 0}),
        ("fsp", {"flow_share": 1.0}),
        ("ft", {"rate": 0}),
        ("reviewkd", {"warmup": 0}),
        ("simkd", {"factor": 0}),
        ("srrl", {"beta": 0}),
        ("ofa", {"eps": 0}),
        ("rkd", {"angle_weight": -1}),
    ],
)
def test_values_out_of_bounds_are_refused(name, bad):
    with pytest.raises(ValidationError):
        load(name).Params(**bad)


def test_the_entries_import_no_torch():
    code = "import sys, kdbench_methods._entries_features; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
