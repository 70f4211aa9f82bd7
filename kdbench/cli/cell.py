"""``kdbench cell``: run one prepared cell folder in this process; what launchers on other machines call."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command("cell")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def cell(folder: Path) -> None:
    """Run the cell in FOLDER (it has a cell.json) and leave its result.json there.

    SIGTERM saves the state and exits with 130; the same command resumes. Under torchrun its processes train the
    cell together.
    """
    import os
    import signal
    import threading

    from kdbench.launch.log import flush
    from kdbench.launch.peers import seat_of_environment
    from kdbench.launch.worker import run_folder
    from kdbench.redact import hiding, scrub

    if sys.stdout is sys.__stdout__:  # a launcher keeps what is printed here
        sys.stdout, sys.stderr = hiding(1), hiding(2)

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    seat = seat_of_environment()

    def leave(code: int) -> None:
        flush()
        scrub(log)
        os._exit(code)

    log = (
        folder.resolve() / "log.txt"
    )  # if it goes there: whoever asked for the cell may be away when it ends
    try:
        code = run_folder(log.parent, lambda event: None, stop, seat, leave)
    finally:
        flush()
        scrub(log)
    if seat is not None and seat.rank:
        sys.exit(code)
    result = folder / "result.json"
    click.echo(str(result) if result.exists() else f"{folder}: no record yet", err=code != 0)
    sys.exit(code)
