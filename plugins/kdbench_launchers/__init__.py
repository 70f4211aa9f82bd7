"""Launchers beside the core's local process pool.

The entry point is in place so that cluster launchers (slurm, ray) register here like any third party's; none
is shipped in this version, and the hook says so by returning an empty list.
"""

from __future__ import annotations

from collections.abc import Sequence

from kdbench.hooks import LauncherEntry, hookimpl


@hookimpl
def kdbench_launchers() -> Sequence[LauncherEntry]:
    """Return the launchers of this package."""
    return []
