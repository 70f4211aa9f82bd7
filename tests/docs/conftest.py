"""The code that makes pages of the site is on the path, and documents can be followed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
sys.path[:0] = [str(DOCS / "_code"), str(Path(__file__).parent)]


@pytest.fixture
def walk(tmp_path):
    """Begin to follow a document: ``walk("tutorial/first-matrix.md")``."""
    from following import Walk

    def begin(page: str) -> Walk:
        folder = tmp_path / "work"
        folder.mkdir()
        return Walk(DOCS / page, folder)

    return begin
