"""What a run lost, and the ledger of all faults: one JSON line each, and a summary.

``python tests/faults/ledger.py LEDGER [--at-least N]`` prints the summary and fails when anything was lost,
duplicated or different, or when fewer faults than N were injected.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

#: Where each fault is noted, if the environment says so.
LEDGER = "KDBENCH_FAULTS_LEDGER"


@dataclass
class Losses:
    """How the results of a run differ from those of an undisturbed one.

    Attributes:
        lost: cells without a finished record, and finished records that are gone.
        duplicated: records that no cell of the run should have.
        differing: cells with other weights, metrics or losses, and finished records that were written again.
    """

    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.lost or self.duplicated or self.differing)


def losses(found: Mapping[str, Any], expected: Mapping[str, Any]) -> Losses:
    """Compare the outcomes of two runs, by cell id (see :func:`commands.outcome`)."""
    out = Losses()
    for cell in sorted({*found, *expected}):
        if cell not in expected:
            out.duplicated.append(cell)
        elif cell not in found or found[cell]["status"] != "done":
            out.lost.append(cell)
        elif found[cell] != expected[cell]:
            out.differing.append(cell)
    return out


def kept(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> Losses:
    """Compare finished records, by name, from before a rerun with those after it."""
    out = Losses()
    for name, content in before.items():
        if name not in after:
            out.lost.append(name)
        elif after[name] != content:
            out.differing.append(name)
    return out


def note(faults: Iterable[Mapping[str, Any]], **outcome: Any) -> None:
    """Add faults to the ledger, each with its outcome."""
    path = os.environ.get(LEDGER)
    if not path:
        return
    text = "".join(json.dumps({**fault, **outcome}) + "\n" for fault in faults)
    with open(path, "a") as file:
        file.write(text)


def noted(found: Losses) -> dict[str, Any]:
    """Return losses as the ledger has them."""
    return {name: len(cells) for name, cells in asdict(found).items()}


def main() -> int:
    """Print the summary of a ledger. Returns an exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("ledger", type=Path)
    parser.add_argument("--at-least", type=int, default=1)
    asked = parser.parse_args()
    entries = [json.loads(line) for line in asked.ledger.read_text().splitlines()]
    for kind, count in sorted(Counter(e["fault"] for e in entries).items()):
        print(f"{count:5}  {kind}")
    # the faults of one run share its losses
    runs = {e["run"]: e for e in entries}.values()
    totals = {key: sum(e[key] for e in runs) for key in ("lost", "duplicated", "differing")}
    print(f"{len(entries):5}  faults injected; results " + ", ".join(f"{n} {k}" for k, n in totals.items()))
    return int(any(totals.values()) or len(entries) < asked.at_least)


if __name__ == "__main__":
    sys.exit(main())
