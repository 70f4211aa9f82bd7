"""Processes that end with others."""

from __future__ import annotations

import subprocess
import sys
import time

from kdbench.launch.life import kill_all

TIED = """
import multiprocessing, os, subprocess, sys
from kdbench.launch.life import tie

end, life = multiprocessing.Pipe(duplex=False)
if os.fork():
    end.close()
    sys.stdin.read()
    os._exit(0)
life.close()
os.setsid()
tie(end)
child = subprocess.Popen(["sleep", "3600"])
print(os.getpid(), child.pid, flush=True)
import ctypes
ctypes.PyDLL(None).sleep(3600)  # with the interpreter's lock
"""
FAMILY = """
import subprocess, time
started = [subprocess.Popen(["sleep", "3600"], start_new_session=away) for away in (False, True)]
print(*[p.pid for p in started], flush=True)
time.sleep(3600)
"""


def gone(pid: int) -> bool:
    """Wait until a process has ended; false after 10 s."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().rpartition(")")[2].split()[0] in "ZX":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.01)
    return False


def test_a_group_ends_when_the_other_end_is_closed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TIED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()
    assert all(gone(pid) for pid in pids)


def test_a_family_is_killed_whole() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as head:
        assert head.stdout is not None
        pids = [int(word) for word in head.stdout.readline().split()]
        kill_all(head.pid)
    assert len(pids) == 2
    assert all(gone(pid) for pid in (head.pid, *pids))
    kill_all(head.pid)  # nobody is there any more
