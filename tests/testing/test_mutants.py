"""The suite is itself tested by mutation: each broken method is caught by the check meant for it."""

from __future__ import annotations

import pytest
import torch
from mutants import LOSSES, MUTANTS, TWINS, CachesInClass, KeepsNetworks, Mutant

from kdbench.api import Method
from kdbench.registry import Registry
from kdbench.testing import check_method
from kdbench.testing.checks import RULES
from kdbench.testing.process import settings

#: Checks that no method can fail without a fault of the engine or of the registry; they have tests of their own.
ELSEWHERE = {"needs"}
#: Left out where they are not meant: each trains several times. The twins pass them.
COSTLY = {"overfits a batch", "resume", "other networks", "global RNG", "any position", "memory"}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.cls.__name__)
def test_mutant_is_caught_by_the_check_meant_for_it(mutant: Mutant, registry: Registry) -> None:
    meant = {mutant.check, *mutant.also}
    only = meant | {rule.name for rule in RULES} - COSTLY
    generator, process = torch.get_rng_state(), settings()
    try:
        report = check_method(mutant.cls, only=only, registry=registry)
    finally:
        for kept in (LOSSES, CachesInClass.cache, KeepsNetworks.kept):
            kept.clear()
    checks = {c.name: c for c in report.checks}
    assert {name for name, c in checks.items() if not c.passed} == meant
    assert mutant.words in checks[mutant.check].seen
    assert checks[mutant.check].fix
    # whatever it did, the next one finds the process as it was
    assert torch.equal(torch.get_rng_state(), generator)
    assert settings() == process


@pytest.mark.parametrize("cls", TWINS, ids=lambda c: c.__name__)
def test_its_twin_passes(cls: type[Method], registry: Registry) -> None:
    report = check_method(cls, registry=registry)
    assert report.failures() == []
    assert [c.name for c in report.checks] == [rule.name for rule in RULES]


def test_every_check_has_a_mutant() -> None:
    assert len(MUTANTS) >= 14
    assert {m.check for m in MUTANTS} == {rule.name for rule in RULES} - ELSEWHERE
