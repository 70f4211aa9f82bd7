"""Every shipped method passes every check, within the time that the suite may take.

A folder of its own, early in the alphabet: these tests are long, and the last ones of a run should be short.
"""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from kdbench.hooks import MethodEntry
from kdbench.registry import Registry
from kdbench.testing import check_method
from kdbench.testing.checks import ENTRY, RULES
from kdbench_methods import METHODS

NAMES = [rule.name for rule in RULES]
#: What one core needs; a busy machine makes the wall clock useless for a test.
LIMIT_S = 20.0


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


@pytest.mark.parametrize("name", [entry.name for entry in METHODS])
def test_it_conforms(name: str, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(perf_counter=time.process_time)
    monkeypatch.setattr("kdbench.testing.conformance.time", clock)
    report = check_method(name, registry=registry)
    assert report.failures() == []
    assert [c.name for c in report.checks] == [*NAMES, ENTRY.name]
    assert sum(c.seconds for c in report.checks) <= report.seconds
    # a student of ImageNet's size takes what it takes
    if report.student == MethodEntry.check_student:
        assert report.seconds < LIMIT_S
