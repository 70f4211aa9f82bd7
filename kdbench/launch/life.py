"""Processes that end with those who wanted them: a worker with its parent, its children with a worker."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from pathlib import Path
from typing import Any


def tie(thread_of_life: Any) -> None:
    """Have this process's group killed when the other end of a one-way pipe is closed, as it is by any death.

    On Linux the kernel does it, so it holds for code that hangs outside of Python with the interpreter's lock in
    its hand; elsewhere, see :func:`kill_group` in who reads the pipe. The process must lead its group.
    """
    if not hasattr(fcntl, "F_SETSIG"):
        return
    fd = thread_of_life.fileno()
    fcntl.fcntl(fd, fcntl.F_SETOWN, -os.getpid())
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    if thread_of_life.poll(0):  # closed before anybody listened
        kill_group(os.getpid())


def kill_group(leader: int) -> None:
    """Kill the processes of a group, if there are any."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def kill_all(leader: int) -> None:
    """Kill a process, its group, and what it started that left the group."""
    below = _below(leader)
    kill_group(leader)
    for pid in (leader, *below):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _below(pid: int) -> list[int]:
    """Return the descendants of a process; none where there is no ``/proc`` to tell."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # after the name, which may hold anything: state, parent
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found, todo = [], [pid]
    while todo:
        more = children.get(todo.pop(), [])
        found += more
        todo += more
    return found
