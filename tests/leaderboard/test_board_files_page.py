"""The page on files of a board has every column that comparisons bring, and every key."""

from pathlib import Path

import pytest

from kdbench.leaderboard import csv_file, folder, overall_csv
from kdbench.leaderboard.compared import default_references

PAGE = (Path(__file__).parents[2] / "docs/reference/board-files.md").read_text()
MARKS = ("_ci95_", "minus_", "to_best_", "tied_")
COMPARED = [
    name for name in csv_file._NUMBERS if any(mark in name for mark in MARKS) and "last_top1" not in name
]


@pytest.mark.parametrize("name", [*COMPARED, *overall_csv._HEAD, *folder._KEYS, *default_references()])
def test_the_page_has(name):
    assert f"`{name}`" in PAGE
