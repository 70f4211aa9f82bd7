"""Running a target on many inputs, and what no input may do: raise, hang, write elsewhere, run a program."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdbench.errors import KdbenchError

#: Seconds after which an input counts as a hang. The slowest valid ones take a tenth of it.
DEADLINE_S = 10


@dataclass(frozen=True)
class Target:
    """Something that reads what a stranger gives.

    Attributes:
        make: random numbers -> an input; equal states give equal inputs.
        read: reads an input, with a folder of its own; may raise KdbenchError.
        share: inputs of a hundred that a run gives to it.
        lines: whether a message may have several lines, one a problem.
        deadline_s: seconds after which an input counts as a hang.
    """

    name: str
    make: Callable[[random.Random], bytes]
    read: Callable[[bytes, Path], None]
    share: int = 10
    lines: bool = False
    deadline_s: float = DEADLINE_S


@dataclass
class Outcome:
    """What the inputs of a target came to; `found` are (input, what went wrong)."""

    name: str
    good: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    seconds: float = 0.0
    found: list[tuple[bytes, str]] = field(default_factory=list)
    messages: set[str] = field(default_factory=set)


class Hang(BaseException):
    """An input took longer than the deadline. No Exception, so that no handler swallows it."""


class Escape(BaseException):
    """An input made the reader write outside its folder, or run a program."""


class _Guard:
    """Watches what the interpreter is asked to do while an input is read. Audit hooks stay for ever: one."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.installed = False

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect"):
            raise Escape(f"{event} {args!r:.200}")
        if event == "open":
            path, mode, flags = args
            writes = any(c in (mode or "") for c in "wax+") or (flags or 0) & (
                os.O_WRONLY | os.O_RDWR | os.O_CREAT
            )
            if writes:
                self._inside(event, path)
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree", "os.chmod"):
            self._inside(event, args[0])
        elif event in ("os.rename", "os.link", "os.symlink"):
            self._inside(event, args[1])

    def _inside(self, event: str, path: object) -> None:
        if isinstance(path, int) or path is None:
            return
        real = os.path.realpath(os.fsdecode(path))  # type: ignore[arg-type]
        if real == os.devnull or real.endswith((".pyc", "__pycache__")) or "/__pycache__/" in real:
            return
        folder = self.folder or ""
        if real != folder and not real.startswith(folder + os.sep):
            raise Escape(f"{event} {real}")


_GUARD = _Guard()


@contextlib.contextmanager
def guarded(folder: Path, deadline_s: float = DEADLINE_S) -> Iterator[None]:
    """Raise Escape for a write outside `folder` or a program that is run, Hang after the deadline."""
    if not _GUARD.installed:
        sys.addaudithook(_GUARD)
        _GUARD.installed = True

    def late(*_: object) -> None:
        raise Hang(f"no answer after {deadline_s} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, deadline_s)
    _GUARD.folder = os.path.realpath(folder)
    try:
        yield
    finally:
        _GUARD.folder = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def bad_message(error: KdbenchError, *, lines: bool) -> str | None:
    """Return what is wrong with an error's text: no text, several lines, characters that drive a terminal."""
    text = str(error)
    if not text.strip():
        return "an error without a text"
    if "\n" in text and not lines:
        return f"more than one line: {text!r:.300}"
    if any(not c.isprintable() and c != "\n" for c in text):
        return f"control characters: {text!r:.300}"
    if max(map(len, text.splitlines())) > 4000:
        return f"a line of {len(text)} characters: {text[:200]!r}"
    return None


def refusal(call: Callable[[], object]) -> KdbenchError | None:
    """Return the error with which a call refuses what it was given, None where it took it."""
    try:
        call()
    except KdbenchError as error:
        return error
    return None


def try_one(target: Target, data: bytes, outcome: Outcome, root: Path) -> None:
    """Give one input to a target and note what came of it."""
    folder = Path(tempfile.mkdtemp(dir=root))
    start = time.perf_counter()
    problem = None
    try:
        with guarded(folder, target.deadline_s), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(data, folder)
        outcome.good += 1
    except KdbenchError as error:
        outcome.refused += 1
        problem = bad_message(error, lines=target.lines)
        outcome.messages.add(str(error)[-60:])
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        where = "".join(traceback.format_tb(error.__traceback__)[-2:])
        problem = f"{type(error).__name__}: {error!s:.300}\n{where}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if problem is not None:
        outcome.found.append((data, problem))
    outcome.slowest_s = max(outcome.slowest_s, time.perf_counter() - start)


def run(target: Target, count: int, seed: int, *, most: int = 20) -> Outcome:
    """Give `count` inputs to a target; stops after `most` problems. Equal seeds give equal inputs."""
    digest = hashlib.sha256(f"{seed} {target.name}".encode()).digest()
    rng = random.Random(int.from_bytes(digest[:8], "big"))
    outcome = Outcome(target.name)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="kdbench-fuzz-") as root:
        for _ in range(count):
            try_one(target, target.make(rng), outcome, Path(root))
            if len(outcome.found) >= most:
                break
    outcome.seconds = time.perf_counter() - start
    return outcome


def keep(outcomes: Sequence[Outcome], folder: Path) -> list[Path]:
    """Write every input that went wrong into `folder`; return the files."""
    kept = []
    for outcome in outcomes:
        for data, _ in outcome.found:
            path = folder / outcome.name / hashlib.sha256(data).hexdigest()[:16]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            kept.append(path)
    return kept
