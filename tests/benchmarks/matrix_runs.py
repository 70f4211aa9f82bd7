"""Runs matrices through the real launcher and notes when what happened, for benchmarks of the launcher."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matrices import write_matrix

from kdbench.launch.local import LocalLauncher
from kdbench.launch.plan import Planner
from kdbench.launch.session import Options, Session
from kdbench.matrix import load_matrix
from kdbench.registry import Registry
from kdbench.results.store import RunFolder


@dataclass
class Times:
    """Seconds on the monotonic clock, by cell id; `rows` are the last epochs."""

    started: dict[str, float] = field(default_factory=dict)
    epoch: dict[str, float] = field(default_factory=dict)
    rows: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    wall_s: float = 0.0

    def start(self, total: int, done: int, left: Any = None) -> None: ...

    def cell_started(self, cell: Any) -> None: ...

    def epoch_done(self, cell: Any, row: Mapping[str, Any]) -> None:
        self.epoch.setdefault(cell.id, time.monotonic())
        self.rows.setdefault(cell.id, row)

    def cell_ended(self, cell: Any, status: str, detail: str) -> None:
        self.ended[cell.id] = status

    def note(self, text: str) -> None: ...

    def stop(self) -> None: ...


class _Progress:
    """The display's interface over :class:`Times`."""

    def __init__(self, times: Times) -> None:
        self._times = times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._times, name)

    def epoch(self, cell: Any, row: Mapping[str, Any], epochs: int) -> None:
        self._times.epoch_done(cell, row)


def run(folder: Path, monkeypatch: Any, content: Mapping[str, Any], **options: Any) -> tuple[Times, Any]:
    """Run a matrix that has not been run in `folder`; returns the times and the plan. No sink is written."""
    folder.mkdir()
    registry = Registry.load()
    loaded = load_matrix(str(write_matrix(folder / "m.yaml", **content)))
    plan = Planner(registry, loaded, RunFolder(folder / "run"), ()).plan()
    times = Times()
    start = LocalLauncher._start

    def noted(launcher: Any, ctx: Any, job: Any, slot: int) -> Any:
        times.started[job.cell_id] = time.monotonic()
        return start(launcher, ctx, job, slot)

    with monkeypatch.context() as patch:
        patch.setattr(LocalLauncher, "_start", noted)
        asked = Options(sinks=("none",), device="cpu", **options)
        began = time.monotonic()
        Session(registry, plan, asked, _Progress(times)).run()
        times.wall_s = time.monotonic() - began
    assert set(times.ended.values()) == {"done"}
    return times, plan
