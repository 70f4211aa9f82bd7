"""Cells of milliseconds that train on several processes, and what they left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gang_world import RECIPE, World
from safetensors.torch import load_file

from kdbench.launch.server import context

TOLERANCE = 1e-5
#: Two rounds: within ten, a game of two networks makes of rounding what no tolerance can tell from an error.
DFAD = {"batch_size": 15, "iterations": 2, "student_steps": 2, "nz": 16}
#: Seconds within which processes must have ended; a hang is a failure.
LIMIT_S = 60


class Cells:
    """Makes folders of cells: ``cells(where, name, **over)``."""

    def __init__(self, root: Path) -> None:
        self.world = World(root)

    def __call__(self, where: Path, name: str, *, epochs: int = 1, **over: Any) -> Path:
        plain: dict[str, Any] = {
            "recipe": {**RECIPE, "epochs": epochs},
            "student": {"name": "tiny-net", "args": {"drop": 0.0}},
        }
        if name == "dfad":
            plain["params"] = DFAD
        return self.world.folder(where, name, **{**plain, **over})

    def train(self, folder: Path) -> None:
        """Train a cell on this process alone."""
        from kdbench.engine.settings import put_back, settings

        before = settings()
        try:
            self.world._train(folder)
        finally:
            put_back(before)


def distance(a: Path, b: Path) -> float:
    """Return the largest difference of two cells' weights and running statistics."""
    x, y = (load_file(f / "model.safetensors") for f in (a, b))
    assert x.keys() == y.keys()
    return max(float((x[k].double() - y[k].double()).abs().max()) for k in x)


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())  # type: ignore[no-any-return]


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]


def together(size: int, folders: Sequence[Path], where: Path, **more: Any) -> list[int]:
    """Run cells one after the other on `size` processes; returns the exit code of each process."""
    meeting = f"file://{where / f'meeting-{time.monotonic_ns()}'}"
    names = [str(f) for f in folders]
    ctx = context()
    started = [ctx.Process(target=_seat, args=(k, size, meeting, names, more)) for k in range(size)]
    for process in started:
        process.start()
    deadline = time.monotonic() + LIMIT_S
    for process in started:
        process.join(max(0.0, deadline - time.monotonic()))
    late = [k for k, p in enumerate(started) if p.is_alive()]
    for process in started:
        process.kill()
    assert not late, f"processes {late} did not end"
    return [int(p.exitcode or 0) for p in started]


def _seat(rank: int, size: int, meeting: str, folders: list[str], more: dict[str, Any]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    log = os.open(Path(folders[0]) / f"test-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)
    os._exit(max(_run(rank, size, f"{meeting}-{k}", Path(f), **more) for k, f in enumerate(folders)))


def _run(
    rank: int, size: int, meeting: str, folder: Path, *, act: str = "", who: int = 1, at: int = 0
) -> int:
    from kdbench.engine.loop import Loop
    from kdbench.launch.peers import Seat
    from kdbench.launch.worker import run_folder

    stop = threading.Event()
    if act and rank == who:
        step = Loop._step

        def _step(self: Any, *args: Any) -> Any:
            if self.at.global_step == at:
                _misbehave(act, stop, folder)
            return step(self, *args)

        Loop._step = _step  # type: ignore[method-assign]
    seat = Seat(rank, size, meeting, here=True) if size > 1 else None
    return run_folder(folder, lambda event: None, stop, seat)


def content(folder: Path) -> dict[str, bytes]:
    """Return what a cell's folder has, without its logs."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.suffix != ".txt"}


def _misbehave(act: str, stop: threading.Event, folder: Path) -> None:
    if act == "stop":
        stop.set()
    if act == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "lose":  # the lease, to one that thinks this process dead, and ends the cell before it
        (folder / ".lease-2").write_text(json.dumps({"token": "other", "host": "node7", "pid": 12}))
        (folder / ".lease-1").unlink()
        (folder / "result.json").write_text("of the one that took over")
        shutil.copytree(folder, folder.with_name("then"))
    if act == "raise":
        raise ValueError("only here")
