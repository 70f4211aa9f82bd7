"""What a run writes of its plan and of the whole: the matrix, the cells that cannot be, words to the sinks."""

from __future__ import annotations

from typing import Any

from kdbench.errors import RecordError
from kdbench.launch.aside import put_aside
from kdbench.launch.failure import failure_record
from kdbench.launch.mirror import Mirrors
from kdbench.launch.plan import Plan
from kdbench.launch.views import Facts
from kdbench.launch.whole import told
from kdbench.matrix.identity import PROTOCOL
from kdbench.results.progress import write_command, write_plan
from kdbench.results.store import atomic_write_json, read_record_dict, refuse_unread, write_record

#: In a run folder: its board is not made yet, or not made whole.
BOARD_DUE = ".board-due"


def write_matrix(plan: Plan, command: str = "") -> None:
    """Write ``matrix.json``, the list of cells and the command, and note that the board is due. Raises OSError."""
    (plan.run.path / BOARD_DUE).touch()
    matrix = plan.matrix.matrix
    facts = {
        "name": matrix.name,
        "protocol": PROTOCOL,
        "title": matrix.title,
        "description": matrix.description,
        "sha256": plan.matrix.text_sha256,
    }
    atomic_write_json(plan.run.path / "matrix.json", facts)
    patterns = {p: k for k, p in enumerate(dict.fromkeys(c.pattern for c in plan.cells))}
    write_plan(plan.run, [(c.id, patterns[c.pattern]) for c in plan.cells])
    if command:
        write_command(plan.run, command)


def matrix_facts(plan: Plan) -> dict[str, Any]:
    """Return what sinks and plug-ins are told of a matrix and its cells."""
    matrix = plan.matrix.matrix
    return {"name": matrix.name, "protocol": PROTOCOL, "title": matrix.title, "cells": Facts(plan.cells)}


def note_not_applicable(plan: Plan, mirrors: Mirrors) -> list[str]:
    """Leave a record of cells that cannot be, so that a board shows them with the reason. Raises OSError.

    A finished result stays. Returns a line on each of these, and on each record that cannot be read.
    """
    told = []
    for cell in plan.cells:
        if cell.status != "not_applicable":
            continue
        path = cell.folder / "result.json"
        try:
            before = read_record_dict(path)["status"] if path.exists() else None
            if before == "done":
                told.append(
                    f"note: {cell.label}: not applicable by now: {cell.reason}; its earlier result stays"
                )
            if before in ("done", "not_applicable"):
                continue
        except RecordError as e:
            refuse_unread(e)
            told.append(f"note: {cell.label}: its record cannot be read: {e}; {put_aside(cell.folder)}")
        content = cell.file.model_dump(mode="json")
        record = failure_record(content, "not_applicable", cell.reason or "", type_="NotApplicable")
        cell.folder.mkdir(parents=True, exist_ok=True)
        atomic_write_json(cell.folder / "cell.json", content)
        write_record(cell.folder, record)
        mirrors.write(cell.folder)
    return told


def annotate(plan: Plan, mirrors: Mirrors) -> None:
    """Tell the sinks what takes the whole matrix to know."""
    if not mirrors.annotated:
        return
    # of all that is in the folder, so that `kdbench sync` tells the same
    found = told(plan.run)
    mirrors.annotate(found.annotations)
    mirrors.summarise(found.summaries)
