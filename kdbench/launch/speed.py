"""A speed measurement in a fresh process, so that the command itself never imports torch."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kdbench.errors import KdbenchError
from kdbench.launch.server import context
from kdbench.results.speed import SpeedSettings, SpeedSheet


def measure_in_process(
    settings: SpeedSettings, disable: Sequence[str] = (), told: Callable[[str], None] = lambda line: None
) -> SpeedSheet:
    """Return the sheet that :func:`kdbench.engine.speed.sheet.measure_speed` makes in a worker process.

    ``settings.device`` may be ``auto``. Raises KdbenchError for a device or precision that the machine does not
    have, and when the process dies, with what it did last.
    """
    ctx = context()
    ours, theirs = ctx.Pipe()
    process = ctx.Process(
        target=_child, args=(theirs, settings.model_dump(), list(disable)), name="throughput"
    )
    process.start()
    theirs.close()
    last = "starting"
    try:
        while True:
            kind, content = ours.recv()
            if kind == "doing":
                last = content
                told(content)
            elif kind == "error":
                raise KdbenchError(content)
            else:
                return SpeedSheet.model_validate(content)
    except EOFError:
        process.join()
        code = process.exitcode
        how = (
            f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with code {code}"
        )
        hint = ", perhaps for want of memory: try smaller batch sizes" if code == -signal.SIGKILL else ""
        raise KdbenchError(f"the measuring process {how} while {last}{hint}") from None
    finally:
        # also when the user leaves: nobody wants the rest
        if process.is_alive():
            process.kill()
        process.join()
        ours.close()


def _child(connection: Any, settings: Mapping[str, Any], disable: list[str]) -> None:
    """Entry of the measuring process; ends when its parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            connection.recv()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        answer = ("sheet", _measure(SpeedSettings.model_validate(settings), disable, connection))
    except KdbenchError as error:
        answer = ("error", str(error))
    except Exception as error:
        answer = ("error", f"measuring failed: {type(error).__name__}: {error}")
    with contextlib.suppress(OSError):
        connection.send(answer)
    os._exit(0)


def _measure(settings: SpeedSettings, disable: list[str], connection: Any) -> dict[str, Any]:
    import torch

    from kdbench.engine.probe import check_device
    from kdbench.engine.speed.sheet import measure_speed
    from kdbench.registry import Registry

    if settings.device == "auto":
        settings = settings.model_copy(update={"device": "cuda" if torch.cuda.is_available() else "cpu"})
    for precision in settings.precisions:
        problem = check_device(settings.device, precision)
        if problem is not None:
            raise KdbenchError(problem.replace("recipe.precision", "--precision"))
    registry = Registry.load(disable=disable)
    sheet = measure_speed(registry, settings, lambda line: connection.send(("doing", line)))
    return sheet.model_dump(mode="json")
