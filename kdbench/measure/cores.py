"""Processor cores that this process may use: what the machine has, less what a container takes away. No torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_MINE = Path("/proc/self/cgroup")


def cores() -> int:
    """Return how many cores this process may keep busy, at least 1.

    The scheduler's affinity (``taskset``, cpusets) says which cores it may run on; the CPU quota of its control
    groups (``docker --cpus``, Kubernetes limits, Slurm) how much of them. A part of a core is no core: threads
    beyond a quota are stopped for the rest of each period, all of them.
    """
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has it
        allowed = os.cpu_count() or 1
    limit = quota()
    return allowed if limit is None else max(1, min(allowed, int(limit + 1e-6)))


def quota(root: Path = _CGROUPS, mine: Path = _MINE) -> float | None:
    """Return the CPU quota in cores: the least of this process's control group and those above it.

    None where there is no limit, or none that can be read.

    Args:
        root: where the control groups are mounted.
        mine: the file that names this process's groups, ``<id>:<controllers>:<path>`` a line.
    """
    found: list[float] = []
    with suppress(OSError):
        for line in mine.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                found += _limits(root, path, _version_2)
            elif "cpu" in controllers.split(","):
                # the mount is named after its controllers, and "cpu" is a link to it
                for mount in dict.fromkeys((root / "cpu", root / controllers)):
                    found += _limits(mount, path, _version_1)
    return min(found, default=None)


def _limits(mount: Path, path: str, read: Callable[[Path], float | None]) -> list[float]:
    """Return the limits of a group and those above it; in a container its own root is all that can be seen."""
    group = mount / path.strip("/")
    out = []
    for folder in (group, *group.parents):
        with suppress(OSError, ValueError, IndexError):
            if (limit := read(folder)) is not None:
                out.append(limit)
        if folder == mount:
            break
    return out


def _version_2(folder: Path) -> float | None:
    most, period = (folder / "cpu.max").read_text().split()
    return None if most == "max" else int(most) / int(period)


def _version_1(folder: Path) -> float | None:
    most = int((folder / "cpu.cfs_quota_us").read_text())
    return None if most <= 0 else most / int((folder / "cpu.cfs_period_us").read_text())
