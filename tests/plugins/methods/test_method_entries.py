"""Entries against classes, presets against hyper-parameters, and the weight of importing the package."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
from pydantic import ValidationError

from kdbench.api import Method, MethodParams
from kdbench_methods import METHODS, kdbench_methods

CORE = ["vanilla", "kd", "dkd", "fitnet", "ab", "ofd", "feed", "ffl", "dfad", "rco"]
LOGITS = ["kd-ls", "dist", "mlkd", "wsld", "ctkd", "takd", "dml", "tfkd"]
TIMM = ["timm-logit", "timm-feature", "timm-token"]
FEATURES = [
    "at",
    "sp",
    "cc",
    "vid",
    "rkd",
    "pkt",
    "ft",
    "nst",
    "fsp",
    "crd",
    "reviewkd",
    "simkd",
    "srrl",
    "ofa",
]
NAMES = [*CORE, *LOGITS, *TIMM, *FEATURES, "bss"]
#: Published where no arXiv version is known to us.
NO_ARXIV = {"vanilla", "mlkd", "fsp", "srrl", "timm-logit", "timm-feature", "timm-token"}


def load(entry):
    module, _, attribute = entry.target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def test_the_hook_lists_each_method_once():
    assert sorted(e.name for e in kdbench_methods()) == sorted(NAMES)


@pytest.mark.parametrize("entry", METHODS, ids=lambda e: e.name)
class TestEntry:
    def test_needs_are_those_of_the_class(self, entry):
        cls = load(entry)
        assert issubclass(cls, Method)
        assert entry.needs == cls.needs
        assert cls.requires(cls.Params()) == cls.needs

    def test_presets_are_valid(self, entry):
        cls = load(entry)
        for preset in cls.presets.values():
            assert cls.Params(**preset).model_dump().items() >= dict(preset).items()

    def test_hyper_parameters_are_documented_and_closed(self, entry):
        cls = load(entry)
        assert issubclass(cls.Params, MethodParams)
        for name, info in cls.Params.model_fields.items():
            assert info.description, name
        with pytest.raises(ValidationError):
            cls.Params(no_such_key=1)

    def test_entry_is_complete(self, entry):
        assert entry.version.isdecimal()
        assert entry.summary.endswith(".")
        assert entry.name in NO_ARXIV or "arXiv:" in entry.paper
        stated = load(entry).fidelity
        assert stated in (("paper", "official-code", "reconstruction") if entry.paper else ("",))


def test_what_depends_on_hyper_parameters():
    from kdbench_methods.feed import FEED
    from kdbench_methods.rco import RCO

    assert FEED.requires(FEED.Params(teachers=5)).teachers == 5
    assert FEED.requires(FEED.Params(variant="sequential", teachers=5)).teachers == 1
    assert RCO.requires(RCO.Params(anchors=7)).route == 7


@pytest.mark.parametrize(
    ("target", "bad"),
    [
        ("kd:KD", {"temperature": 0}),
        ("kd:KD", {"alpha": -1}),
        ("dkd:DKD", {"warmup": 0}),
        ("fitnet:FitNet", {"stages": "three"}),
        ("ab:AB", {"init_share": 1.0}),
        ("ab:AB", {"ce_weight": 0.0, "kd_weight": 0.0}),
        ("ofd:OFD", {"alpha": 0}),
        ("feed:FEED", {"variant": "sequential", "paraphrase": True}),
        ("ffl:FFL", {"share": "first"}),
        ("dfad:DFAD", {"batch_size": 1}),
        ("rco:RCO", {"anchors": 0}),
    ],
)
def test_values_out_of_bounds_are_refused(target, bad):
    module, _, name = target.partition(":")
    params = getattr(importlib.import_module(f"kdbench_methods.{module}"), name).Params
    with pytest.raises(ValidationError):
        params(**bad)


def test_the_package_imports_no_torch():
    code = "import sys, kdbench_methods as m; m.kdbench_methods(); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
