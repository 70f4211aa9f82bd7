"""The page of the conformance suite names every check, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from kdbench.testing.checks import ENTRY, RULES

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "conformance.md"


def test_every_check_has_a_row() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| [^|]{20,} \| [^|]{15,} \|$", PAGE.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted([rule.name for rule in RULES] + [ENTRY.name])
