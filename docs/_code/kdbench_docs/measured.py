"""Measured accuracies of a method, from the boards under ``leaderboards/``."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from kdbench_docs.markup import escape, table

#: Rows that agree in these are one setting: a difference between two of them is the method's.
_SETTING = (
    *("task", "task_version", "dataset", "dataset_args_digest", "dataset_revision", "limit_train"),
    *("limit_test", "recipe_digest", "protocol", "student", "hardware", "precision"),
)


@dataclass(frozen=True)
class Board:
    """A committed board: the name of its folder and the rows of its ``leaderboard.csv``."""

    name: str
    rows: list[dict[str, str]]


def read_boards(folder: Path) -> list[Board]:
    """Return the boards under `folder`, by name."""
    found = []
    for path in sorted(folder.glob("*/leaderboard.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            found.append(Board(path.parent.name, list(csv.DictReader(file))))
    return found


def measured_table(method: str, boards: list[Board], root: str) -> str:
    """Return the table for a method, or an empty string; `root` leads from the page to the site's top."""
    body = []
    for board in boards:
        for row in board.rows:
            if row["method"] != method or row["role"] != "student":
                continue
            body.append(
                [
                    _data(row),
                    escape(f"{row['teacher'] or 'no teacher'} → {row['student']}"),
                    escape(row["variant"]),
                    escape(f"{row['n_done']}/{row['n_planned']}"),
                    _top1(row),
                    _difference(row, board),
                    f"[{escape(board.name)}]({root}leaderboards/boards/{board.name}/index.html)",
                ]
            )
    head = ("Data set", "Teacher → student", "As", "Seeds", "Top-1, %", "Against vanilla", "Board")
    return table(head, body, right=(3, 4, 5)) if body else ""


def _data(row: dict[str, str]) -> str:
    limits = [f"{row[k]} {word}" for k, word in (("limit_train", "train"), ("limit_test", "test")) if row[k]]
    return escape(row["dataset"] + (f" ({', '.join(limits)})" if limits else ""))


def _top1(row: dict[str, str]) -> str:
    mean, sd = row["last_top1_mean"], row["last_top1_sd"]
    if not mean:
        return "—"
    return f"{float(mean):.2f}" + (f"\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{float(sd):.2f}" if sd else "")


def _difference(row: dict[str, str], board: Board) -> str:
    """Return the difference of the means, where the board has one row of the student alone to compare with."""
    if row["method"] == row["baseline"]:
        return "—"
    alone = [
        r
        for r in board.rows
        if r["method"] == row["baseline"] and r["role"] == "student" and all(r[k] == row[k] for k in _SETTING)
    ]
    if len(alone) != 1 or not (row["last_top1_mean"] and alone[0]["last_top1_mean"]):
        return "—"
    return f"{float(row['last_top1_mean']) - float(alone[0]['last_top1_mean']):+.2f}"
