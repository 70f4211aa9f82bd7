"""What Slurm says of jobs: the tasks that wait or run, by the name of their submission."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable

#: For each submission's name: the job's id and the tasks that are not over; a lone job is task 0.
Queue = dict[str, tuple[str, frozenset[int]]]


def look(names: Iterable[str]) -> Queue | None:
    """Return what is in the queue; None where Slurm does not answer, which may pass.

    One question for all, and none of the accounting: many clusters keep none.
    """
    listed = ",".join(names)
    if not listed:
        return {}
    command = ["squeue", "--noheader", "--array", f"--name={listed}", "--format=%j|%F|%K"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse(done.stdout) if done.returncode == 0 else None


def parse(text: str) -> Queue:
    """Return the lines of ``squeue`` as a queue."""
    found: dict[str, tuple[str, set[int]]] = {}
    for line in text.splitlines():
        name, _, rest = line.strip().partition("|")
        job, _, task = rest.partition("|")
        if job:
            found.setdefault(name, (job, set()))[1].add(int(task) if task.isdigit() else 0)
    return {name: (job, frozenset(tasks)) for name, (job, tasks) in found.items()}
