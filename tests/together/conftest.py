"""A world of cells for the tests of several processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from together_world import Cells


@pytest.fixture(scope="module")
def cells(gang_plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> Cells:
    return Cells(tmp_path_factory.mktemp("world"))
