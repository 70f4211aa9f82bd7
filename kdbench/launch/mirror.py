"""The sinks of a run: mirrors of the records, which may fail without costing anything."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdbench.registry import Registry


class Mirrors:
    """Opens sinks, writes records to them, and lets go of one that fails."""

    def __init__(
        self, registry: Registry, names: Sequence[str], warn: Callable[[str], None], repair: str
    ) -> None:
        self._registry, self._warn, self._repair = registry, warn, repair
        self._sinks: dict[str, Any] = {}
        self._names = [n for n in names if n != "none"]
        self._ahead: list[threading.Thread] = []

    def prepare(self) -> None:
        """Let sinks that have a ``prepare()`` import what they need, while the caller does something else."""
        for name in self._names:
            action = getattr(self._registry.get("sinks", name).load(), "prepare", None)
            if action is not None:
                self._ahead.append(threading.Thread(target=_quietly, args=(action,), daemon=True))
                self._ahead[-1].start()

    def open(self, matrix: Mapping[str, Any], uri: str | None) -> None:
        """Open every sink."""
        for thread in self._ahead:
            thread.join()
        for name in self._names:
            self._try(name, lambda s: s.open(matrix, uri=uri), self._registry.get("sinks", name).load()())

    def write(self, record: Mapping[str, Any], folder: Path) -> None:
        """Mirror one record."""
        for name, sink in list(self._sinks.items()):
            self._try(name, lambda s: s.write(record, folder), sink)

    def annotate(self, cell_id: str, metrics: Mapping[str, float]) -> None:
        """Add metrics that only the whole matrix can tell, where a sink takes them."""
        for name, sink in list(self._sinks.items()):
            if hasattr(sink, "annotate"):
                self._try(name, lambda s: s.annotate(cell_id, metrics), sink)

    def close(self, status: str) -> None:
        """Close every sink that still works."""
        for name, sink in list(self._sinks.items()):
            self._try(name, lambda s: s.close(status), sink)

    def _try(self, name: str, action: Callable[[Any], None], sink: Any) -> None:
        try:
            action(sink)
            self._sinks[name] = sink
        except Exception as e:
            self._sinks.pop(name, None)
            reason = (str(e) or type(e).__name__).splitlines()[0]
            self._warn(
                f"warning: sink '{name}' is off for the rest of this run: {reason}. The records are on disk; "
                f"`{self._repair}` repairs it."
            )


def _quietly(action: Callable[[], None]) -> None:
    """Do what is only to save time: what it raises comes again, where it is told, when the sink is opened."""
    with contextlib.suppress(Exception):
        action()
