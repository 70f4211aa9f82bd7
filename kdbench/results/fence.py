"""Who may write into a folder: what a process writes counts only while nobody took the folder over.

A file is written under a temporary name, the fence is asked, and then the file gets its name. A process that was
stopped before it asked is told that it lost the folder. One that was stopped after it asked finds its temporary
file gone, since removing these is the first that a taker does, and the rename fails. So at no moment could a
process that wakes up late replace what another one wrote.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

_guards: dict[Path, Callable[[], None]] = {}


def guard(folder: Path, check: Callable[[], None]) -> None:
    """Have `check` asked before any file of `folder`, or of a folder right in it, is replaced; it raises."""
    _guards[folder] = check


def unguard(folder: Path) -> None:
    """Ask nobody any more."""
    _guards.pop(folder, None)


def ask(path: Path) -> None:
    """Raise what the guard of the folder of the file `path` raises, if there is one."""
    if not _guards:
        return
    for folder in (path.parent, path.parent.parent):
        if (check := _guards.get(folder)) is not None:
            check()
