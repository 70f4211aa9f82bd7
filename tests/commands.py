"""The command `kdbench` and its processes, seen from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

#: Seconds after which a process that should have ended is taken for hung.
LIMIT_S = 240


class Command:
    """Runs ``python -m kdbench`` in a folder. What is still running at the end of a test is killed."""

    def __init__(self, cwd: Path) -> None:
        self.cwd = cwd
        self._started: list[Started] = []

    def __call__(
        self, *arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run it to the end."""
        return subprocess.run(
            _line(arguments),
            cwd=cwd or self.cwd,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    def here(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run it to the end in this process, which has imported already what takes the command seconds.

        For what it prints and returns; settings that it makes in the environment are undone.
        """
        from click.testing import CliRunner

        from kdbench.cli import main

        words = list(map(str, arguments))
        with contextlib.chdir(self.cwd), mock.patch.dict(os.environ):
            done = CliRunner().invoke(main, words, prog_name="kdbench", catch_exceptions=False)
        return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)

    def run(
        self, matrix: Path, *arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a matrix with one worker and without MLflow."""
        return self(*_run(matrix, arguments), cwd=cwd, env=env)

    def run_here(self, matrix: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run a matrix as :meth:`run` does, in this process; all its runs share one server of workers."""
        return self.here(*_run(matrix, arguments))

    def start(
        self, matrix: Path, *arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> Started:
        """Start what :meth:`run` runs, and return at once."""
        started = Started(_run(matrix, arguments), cwd or self.cwd, env or {})
        self._started.append(started)
        return started

    def close(self) -> None:
        """Kill what a test left running."""
        for started in self._started:
            started.close()


class Started:
    """A running command."""

    def __init__(self, arguments: tuple[object, ...], cwd: Path, env: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            _line(arguments),
            cwd=cwd,
            env={**os.environ, **env},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stderr(self) -> str:
        return "\n".join(self.lines)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def wait(self) -> int:
        """Wait for the end and return the exit code."""
        code = self.process.wait(LIMIT_S)
        self._reader.join(5)  # a worker may hold the pipe a moment longer
        return code

    def workers(self) -> list[int]:
        """Return the worker processes: descendants that lead a session of their own."""
        return [pid for pid in descendants(self.pid) if _stat(pid)[1] == pid]

    def close(self) -> None:
        workers = self.workers()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in workers:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def _run(matrix: Path, arguments: tuple[object, ...]) -> tuple[object, ...]:
    sink = () if "--sink" in arguments or "--tracking-uri" in arguments else ("--sink", "none")
    return ("run-matrix", matrix, "--workers", 1, *sink, *arguments)


def _line(arguments: tuple[object, ...]) -> list[str]:
    return [sys.executable, "-m", "kdbench", *map(str, arguments)]


def _stat(pid: int) -> tuple[int, int]:
    """Return (parent, session) of a process; (-1, -1) when it is gone or a zombie."""
    try:
        state, parent, _, session = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]
    except (OSError, ValueError):
        return -1, -1
    return (-1, -1) if state in "ZX" else (int(parent), int(session))


def alive(pid: int) -> bool:
    """Return whether a process is there and no zombie."""
    return _stat(pid) != (-1, -1)


def descendants(pid: int) -> list[int]:
    """Return the processes below `pid`."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            children.setdefault(_stat(int(folder.name))[0], []).append(int(folder.name))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def wait_until(condition: Callable[[], Any], what: str, *, limit_s: float = LIMIT_S) -> Any:
    """Return the first true value of `condition`."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"waited {limit_s:g} s for {what}")


def rows(run: Path) -> int:
    """Return the number of epochs that the cells of a run have done so far."""
    return sum(len(p.read_bytes().splitlines()) for p in run.glob("cells/*/curves.jsonl"))


def records(run: Path) -> dict[str, dict[str, Any]]:
    """Return the records of a run by cell id."""
    return {p.parent.name: json.loads(p.read_text()) for p in sorted(run.glob("cells/*/result.json"))}


def by_variant(run: Path) -> dict[str, dict[str, Any]]:
    """Return the records of a run's students by variant; for matrices with one seed and pair."""
    found = [r for r in records(run).values() if r["labels"]["role"] == "student"]
    assert len({r["labels"]["variant"] for r in found}) == len(found)
    return {r["labels"]["variant"]: r for r in found}


def done_files(run: Path) -> dict[str, bytes]:
    """Return the bytes of every finished record, by path."""
    files = {str(p.relative_to(run)): p.read_bytes() for p in run.glob("cells/*/result.json")}
    return {name: data for name, data in files.items() if json.loads(data)["status"] == "done"}


def outcome(run: Path) -> dict[str, Any]:
    """Return what must not depend on how often a run was cut: status, weights, metrics and losses."""
    found = {}
    for cell, record in records(run).items():
        curves = (run / "cells" / cell / "curves.jsonl").read_text().splitlines()
        epochs = [json.loads(line) for line in curves]
        found[cell] = {
            "status": record["status"],
            "weights": record["weights_sha256"],
            "quality": record["deployables"],
            "steps": record["cost"]["steps"] if record["cost"] else None,
            "epochs": [(e["epoch"], e["phase"], e["train"], e.get("eval")) for e in epochs],
        }
    return found


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line of a bad input; the exit code is 2 and there is nothing else on stderr."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("kdbench: error: "), lines[0]
    return lines[0].removeprefix("kdbench: error: ")
