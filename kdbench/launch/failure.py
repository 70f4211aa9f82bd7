"""Records of cells that did not finish. No torch: the parent writes them for workers that died."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kdbench.redact import hide, redact, scrub
from kdbench.results.schema import Failure, Labels, Plugin, Record, Status
from kdbench.results.store import write_record

#: Characters of a log that stand in the record of a worker that left no word.
_TAIL = 2000


def failure_record(
    cell: dict[str, Any],
    status: Status,
    message: str,
    *,
    type_: str = "",
    traceback: str | None = None,
    started_at: str | None = None,
    environment: dict[str, Any] | None = None,
    plugins: dict[str, Plugin] | None = None,
) -> Record:
    """Make the record of a cell (the content of its ``cell.json``) that ended with `status`."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Record(
        cell_id=cell["cell_id"],
        status=status,
        protocol=cell["protocol"],
        labels=Labels.model_validate(cell["labels"]),
        identity=cell["identity"],
        tuning=cell.get("tuning"),
        error=Failure(
            type=(type_ or status)[:200],
            # before the cut, which may leave half of a secret
            message=redact(message)[:4000],
            traceback=None if traceback is None else redact(traceback)[-40000:],
        ),
        environment=environment or {},
        plugins=plugins or {},
        started_at=started_at or now,
        finished_at=now,
    )


def write_failure(folder: Path, status: Status, message: str, *, new: bool = False, **more: Any) -> Record:
    """Write the failure record of the cell in `folder` and return it; with `new`, only where there is no record.

    Raises RecordError, see :func:`kdbench.results.store.write_record`, and OSError.
    """
    cell = json.loads((folder / "cell.json").read_text())
    record = failure_record(cell, status, message, **more)
    write_record(folder, record, new=new)
    return record


def clean_log(folder: Path, event: str) -> None:
    """Overwrite the secrets in a cell's logs once its worker ended, see :func:`kdbench.redact.scrub`."""
    if event in ("finished", "found", "died", "interrupted", "released"):
        for log in (folder / "log.txt", *folder.glob("log-*.txt")):  # one of each process of a cell
            scrub(log)


def log_tail(folder: Path, lines: int = 15) -> str:
    """Return the last lines of a cell's log, for a worker that left no word."""
    try:
        with (folder / "log.txt").open("rb") as f:
            f.seek(0, 2)
            f.seek(max(0, f.tell() - 8192))
            text = f.read().decode(errors="replace")
    except OSError:
        return ""
    # a long line must not push the last words out of the record; half a secret at the start is cut off with it
    return hide("\n".join(text.splitlines()[-lines:]))[-_TAIL:]
