"""Published accuracies of a method, from the project's data file."""

from __future__ import annotations

import csv
import re
from importlib import resources

from kdbench_docs.markup import escape, table

#: Published names that are a method's with one of its options, or that its plug-in writes otherwise.
_ALIASES = {"KD+LS": "kd-ls", "DKD+LS": "dkd", "MLKD+LS": "mlkd", "CTKD+LS": "ctkd", "KD(T=4)": "kd"}

_SELECTION = {
    "last_epoch": "last epoch",
    "best_epoch": "best epoch",
    "best_epoch?": "best epoch, uncertain",
    "paper": "as in the paper",
    "unknown": "not known",
    "": "not known",
}


def published_rows() -> list[dict[str, str]]:
    """Return the rows of ``published_results.csv`` that were read in the source that they name.

    Rows written down from memory are left out: nobody has checked them.
    """
    file = resources.files("kdbench.leaderboard") / "data" / "published_results.csv"
    rows = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
    return [row for row in rows if row["verified"] == "file"]


def is_of(published_name: str, method: str) -> bool:
    """Return whether a published name means a method.

    Names are equal but for case and hyphens, or in the table of aliases: "KD++" is another method than "KD".
    """
    name = _ALIASES.get(published_name, published_name)
    return name.lower().replace("-", "") == method.lower().replace("-", "")


def published_table(method: str, rows: list[dict[str, str]]) -> str:
    """Return the table for a method, or an empty string."""
    mine = [row for row in rows if is_of(row["method"], method)]
    if not mine:
        return ""
    head = ("Data set", "Teacher", "Student alone", "Named", "Top-1, %", "Epoch", "Source")
    body = [
        [
            escape(row["dataset"]),
            _network(row["teacher"], row["teacher_top1"]),
            _network(row["student"], row["student_top1"]),
            escape(row["method"]),
            escape(
                row["top1"] + (f"\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{row['std']}" if row["std"] else "")
            ),
            escape(_epoch(row["selection"])),
            _source(row["source"]),
        ]
        for row in mine
    ]
    return table(head, body, right=(4,))


def _epoch(selection: str) -> str:
    # some rows have a remark here instead
    return _SELECTION.get(selection, f"not known ({selection})")


def _network(name: str, top1: str) -> str:
    return escape(f"{name} ({top1})" if top1 else name)


def _source(text: str) -> str:
    match = re.fullmatch(r"github\.com/([\w.-]+/[\w.-]+) (\S+)@([0-9a-f]{7,40})( .*)?", text)
    if not match:
        return escape(text)
    repository, path, commit, remark = match.groups()
    url = f"https://github.com/{repository}/blob/{commit}/{path}"
    return f"[{escape(repository)}]({url}){escape(remark or '')}"
