"""What cells have in common, so that it is worked out once for all of a kind and not for each of 100,000."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from kdbench.engine.cellspec import CellFile
from kdbench.launch.planned import Pattern, PlannedCell
from kdbench.matrix import CellSpec


def patterns_of(cells: Sequence[PlannedCell]) -> list[Pattern]:
    """Return the patterns of the cells that can be, in their order."""
    return list(dict.fromkeys(c.pattern for c in cells if c.status != "not_applicable"))


def pattern_key(spec: CellSpec) -> tuple[Any, ...]:
    """Return what all but the seed of a cell is known by; the parts of specs live as long as the plan is made."""
    parts = (
        spec.method,
        spec.teacher,
        spec.student,
        spec.dataset,
        spec.recipe,
        spec.assistant,
        spec.throughput,
        spec.tuning,
    )
    return (spec.role, spec.task, *map(id, parts), spec.source, spec.evaluators, spec.timeout_s, spec.pair)


def one_of_each(specs: Sequence[CellSpec]) -> list[CellSpec]:
    """Return one of the cells that differ in their seeds only, for each of them."""
    return list({pattern_key(spec): spec for spec in reversed(specs)}.values())[::-1]


def dataset_key(spec: CellSpec) -> str:
    """Return what a data set is known by, with the part of it that is used."""
    limits = [spec.dataset.limit_train, spec.dataset.limit_test]
    return json.dumps([spec.dataset.name, dict(spec.dataset.args), limits], sort_keys=True, default=str)


def method_key(spec: CellSpec) -> str:
    """Return what a method with its parameters is known by."""
    return json.dumps([spec.method.name, spec.method.preset, dict(spec.method.params)], sort_keys=True)


def probe_question(file: CellFile) -> dict[str, Any]:
    """Return the question, without what cannot matter to the answer (seed, labels, teacher cell ids)."""
    cell = file.model_dump(mode="json")
    cell.update(
        cell_id="0" * 64, identity={}, seed=0, keep_epochs=[], evaluators=[], throughput=None, tuning=None
    )
    cell["labels"] = {
        **cell["labels"],
        "seed": 0,
        "matrix": "",
        "role": "student",
        "variant": "",
        "recipe": "",
        "track": "",
    }
    cell["labels"].update(preset=None, fidelity="")
    for k, teacher in enumerate(cell["teachers"]):
        if teacher["source"] == "cell":
            teacher["ref"] = str(k)
    return {"ask": "probe", "cell": cell}
