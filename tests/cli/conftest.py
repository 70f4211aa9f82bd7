"""Distributions on the path of the commands that the tests of this folder run."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))


@pytest.fixture
def dists(tmp_path):
    from fake_distributions import Distributions

    return Distributions(tmp_path / "site")
