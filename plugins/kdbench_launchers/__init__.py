"""Launchers beside the core's local process pool; what each needs is imported when it is used."""

from __future__ import annotations

from collections.abc import Sequence

from kdbench.hooks import LauncherEntry, hookimpl


@hookimpl
def kdbench_launchers() -> Sequence[LauncherEntry]:
    """Return the launchers of this package."""
    return [
        LauncherEntry(
            name="slurm",
            target="kdbench_launchers.slurm.launcher:SlurmLauncher",
            summary="job arrays of a Slurm cluster; needs kdbench[slurm]",
            tags=("cluster",),
            version="1",
        ),
        LauncherEntry(
            name="ray",
            target="kdbench_launchers.ray.launcher:RayLauncher",
            summary="tasks of a Ray cluster, or of this machine; needs kdbench[ray]",
            tags=("cluster",),
            version="1",
        ),
    ]
