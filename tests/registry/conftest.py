"""Distributions on ``sys.path``, and no switches from the caller's environment."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))


@pytest.fixture(autouse=True)
def _no_switches(monkeypatch):
    monkeypatch.delenv("KDBENCH_DISABLE_PLUGINS", raising=False)
    monkeypatch.delenv("KDBENCH_STRICT_PLUGINS", raising=False)


@pytest.fixture
def dists(tmp_path, monkeypatch):
    from fake_distributions import Distributions

    made = Distributions(tmp_path / "site")
    monkeypatch.syspath_prepend(str(made.path))
    return made
