"""The sinks of a run: mirrors of the records, which may fail without costing anything."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kdbench.errors import RecordError
from kdbench.redact import redact
from kdbench.registry import Registry
from kdbench.results.store import RESULT, read_record_dict


def prepare(registry: Registry, names: Sequence[str]) -> None:
    """Let sinks that have a ``prepare()`` import what they need, while the caller does something else."""
    for name in names:
        if name == "none":
            continue
        action = getattr(registry.get("sinks", name).load(), "prepare", None)
        if action is not None:
            threading.Thread(target=_quietly, args=(action,), daemon=True).start()


class Mirrors:
    """Opens sinks, writes records to them, and lets go of one that fails.

    All that a sink does happens in one thread of its own, in the order of the calls, so cells need not wait for
    a store that opens slowly; :meth:`close` waits.
    """

    def __init__(
        self, registry: Registry, names: Sequence[str], warn: Callable[[str], None], repair: str
    ) -> None:
        self._registry, self._warn, self._repair = registry, warn, repair
        self._sinks: dict[str, Any] = {}
        self._names = [n for n in names if n != "none"]
        self._closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kdbench-sinks")

    def __bool__(self) -> bool:
        """Whether there is any sink."""
        return bool(self._names)

    def open(self, matrix: Mapping[str, Any], uri: str | None) -> None:
        """Open every sink."""
        self._later(self._open, matrix, uri)

    def write(self, folder: Path) -> None:
        """Mirror the record of a cell; it is read when its turn comes, so that a slow store holds up no memory."""
        self._later(self._write, folder)

    def _write(self, folder: Path) -> None:
        with contextlib.suppress(RecordError):  # put aside meanwhile: the cell runs again
            record = read_record_dict(folder / RESULT)
            self._each(lambda s: s.write(record, folder))

    @property
    def annotated(self) -> bool:
        """Whether any sink takes what only the whole matrix can tell."""
        sinks = [self._registry.get("sinks", name).load() for name in self._names]
        return any(hasattr(s, "annotate") or hasattr(s, "summarise") for s in sinks)

    def annotate(self, found: Mapping[str, Mapping[str, float]]) -> None:
        """Add to cells, by id, metrics that only the whole matrix can tell, where a sink takes them."""
        self._later(self._annotate, found)

    def _annotate(self, found: Mapping[str, Mapping[str, float]]) -> None:
        for item in found.items():
            self._each(lambda s, item=item: s.annotate(*item) if hasattr(s, "annotate") else None)

    def summarise(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Mirror what is said of the seeds of each row together, where a sink takes it."""
        self._later(self._each, lambda s: s.summarise(rows) if hasattr(s, "summarise") else None)

    def observe(self, samples: Sequence[Mapping[str, float]]) -> None:
        """Mirror how busy the machine was, where a sink takes it."""
        self._later(self._each, lambda s: s.observe(samples) if hasattr(s, "observe") else None)

    def close(self, status: str) -> None:
        """Close every sink that still works, when all that came before is written; the first call counts."""
        if self._closed:  # Ctrl-C came while it waited
            return
        self._closed = True
        self._later(self._each, lambda s: s.close(status))
        self._thread.shutdown()

    def _later(self, action: Callable[..., None], *arguments: Any) -> None:
        if self._names:
            self._thread.submit(action, *arguments)

    def _open(self, matrix: Mapping[str, Any], uri: str | None) -> None:
        for name in self._names:
            sink = self._registry.get("sinks", name).load()()
            self._try(name, lambda s: s.open(matrix, uri=uri), sink)

    def _each(self, action: Callable[[Any], Any]) -> None:
        for name, sink in list(self._sinks.items()):
            self._try(name, action, sink)

    def _try(self, name: str, action: Callable[[Any], None], sink: Any) -> None:
        try:
            action(sink)
            self._sinks[name] = sink
        except Exception as e:
            self._sinks.pop(name, None)
            reason = redact((str(e) or type(e).__name__).splitlines()[0])
            self._warn(
                f"warning: sink '{name}' is off for the rest of this run: {reason}. The records are on disk; "
                f"`{self._repair}` repairs it."
            )


def _quietly(action: Callable[[], None]) -> None:
    """Do what is only to save time: what it raises comes again, where it is told, when the sink is opened."""
    with contextlib.suppress(Exception):
        action()
