"""``kdbench cell``: run one prepared cell folder in this process; what launchers on other machines call."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click


@click.command("cell")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def cell(folder: Path) -> None:
    """Run the cell in FOLDER (it has a cell.json) and leave its result.json there.

    SIGTERM saves the state and exits with 130; the same command resumes. Under torchrun its processes train the
    cell together.
    """
    import contextlib
    import os
    import signal
    import threading

    from kdbench.hooks import WAITS
    from kdbench.launch.holding import INTERRUPTED
    from kdbench.launch.log import flush
    from kdbench.launch.peers import seat_of_environment
    from kdbench.launch.worker import run_folder
    from kdbench.redact import hiding, scrub

    if sys.stdout is sys.__stdout__:  # a launcher keeps what is printed here
        sys.stdout, sys.stderr = hiding(1), hiding(2)

    folder = folder.resolve()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    seat = seat_of_environment()
    _check_teachers(folder)

    def leave(code: int) -> None:
        flush()
        scrub(log)
        os._exit(code)

    def report(event: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):
            if event["event"] == "waiting":
                (folder / WAITS).touch()
            elif event["event"] == "going_on":
                (folder / WAITS).unlink(missing_ok=True)

    # if it goes there: whoever asked for the cell may be away when it ends
    log = folder / "log.txt"
    try:
        code = run_folder(folder, report, stop, seat, leave)
    finally:
        flush()
        scrub(log)
    if seat is not None and seat.rank:
        sys.exit(code)
    result = folder / "result.json"
    if code == INTERRUPTED:
        click.echo(f"{folder}: interrupted; the same command resumes it", err=True)
    else:
        click.echo(str(result) if result.exists() else f"{folder}: no record yet", err=code != 0)
    sys.exit(code)


def _check_teachers(folder: Path) -> None:
    """Raise KdbenchError where the cell of a teacher is not done: that is no failure of this one."""
    from kdbench.engine.cell import read_cell
    from kdbench.errors import KdbenchError, RecordError
    from kdbench.results.store import RESULT, read_record_dict

    def status_of(there: Path) -> str:
        try:
            return str(read_record_dict(there / RESULT)["status"])
        except RecordError:
            return "to run"

    for teacher in () if status_of(folder) == "done" else read_cell(folder).teachers:
        if teacher.source != "cell":
            continue
        there = folder.parent / teacher.ref
        if (status := status_of(there)) != "done":
            raise KdbenchError(
                f"{folder}: the cell of its teacher, {there}, is not done ({status}); run it first"
            )
