"""The entries of the further logit methods, and each of them through the conformance suite."""

from __future__ import annotations

import importlib

import pytest
from on_pairs import ON_PAIRS
from pydantic import ValidationError

from kdbench.api import KdbenchError, Method, MethodParams
from kdbench.testing import check_method
from kdbench_methods._entries_logits import METHODS


def load(entry):
    module, _, attribute = entry.target.partition(":")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("entry", METHODS, ids=lambda e: e.name)
class TestLogitEntry:
    def test_needs_are_those_of_the_class(self, entry):
        cls = load(entry)
        assert issubclass(cls, Method)
        assert entry.needs == cls.needs
        assert cls.requires(cls.Params()) == cls.needs

    def test_presets_are_valid(self, entry):
        cls = load(entry)
        assert cls.presets
        for preset in cls.presets.values():
            assert cls.Params(**preset).model_dump().items() >= dict(preset).items()

    def test_hyper_parameters_are_documented_and_closed(self, entry):
        cls = load(entry)
        assert issubclass(cls.Params, MethodParams)
        assert all(info.description for info in cls.Params.model_fields.values())
        with pytest.raises(ValidationError):
            cls.Params(no_such_key=1)

    def test_conformance(self, entry):
        # the students of token distillation have a head of their own for the teacher
        student = "deit_tiny_distilled_patch16_224" if entry.name == "timm-token" else "test_vit"
        report = check_method(load(entry), student=f"timm:{student}", only=ON_PAIRS)
        assert report.failures() == []


def test_token_distillation_says_why_it_does_not_apply():
    from kdbench_methods.timm_token import TimmToken

    with pytest.raises(KdbenchError, match="distillation head"):
        check_method(TimmToken)


@pytest.mark.parametrize(
    ("target", "bad"),
    [
        ("kd_ls:KDLS", {"temperature": 0}),
        ("dist:DIST", {"gamma": -1}),
        ("mlkd:MLKD", {"variant": "code"}),
        ("wsld:WSLD", {"alpha": -1}),
        ("ctkd:CTKD", {"loops": 0}),
        ("takd:TAKD", {"kd_weight": 1.1}),
        ("dml:DML", {"networks": 1}),
        ("tfkd:TfKD", {"correct_prob": 1.0}),
        ("timm_logit:TimmLogit", {"temperature": 0}),
        ("timm_token:TimmToken", {"distill_type": "both"}),
    ],
)
def test_logit_values_out_of_bounds_are_refused(target, bad):
    module, _, name = target.partition(":")
    params = getattr(importlib.import_module(f"kdbench_methods.{module}"), name).Params
    with pytest.raises(ValidationError):
        params(**bad)
