"""All that a plug-in's code imports.

Importing this module does not import torch; the name :class:`Method` (an ``nn.Module``) does, when it is
first used. Data sets, launchers and sinks therefore stay importable in a process without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdbench.errors import DataError, KdbenchError, OptionError, did_you_mean
from kdbench.hooks import Job, Launcher, Needs, Place, Sink
from kdbench.protocol.dataset import Dataset, DatasetParams
from kdbench.protocol.run import Handle, Run
from kdbench.protocol.search import Search
from kdbench.protocol.task import Task
from kdbench.protocol.types import (
    Batch,
    Budget,
    DataInfo,
    Golden,
    Metric,
    NotApplicable,
    Opt,
    Out,
    Phase,
    Stream,
    Tap,
    TaskContext,
    TaskData,
    Throughput,
)

if TYPE_CHECKING:
    from kdbench.protocol.method import Method, MethodParams

__all__ = [
    "Batch",
    "Budget",
    "DataError",
    "DataInfo",
    "Dataset",
    "DatasetParams",
    "Golden",
    "Handle",
    "Job",
    "KdbenchError",
    "Launcher",
    "Method",
    "MethodParams",
    "Metric",
    "Needs",
    "NotApplicable",
    "Opt",
    "OptionError",
    "Out",
    "Phase",
    "Place",
    "Run",
    "Search",
    "Sink",
    "Stream",
    "Tap",
    "Task",
    "TaskContext",
    "TaskData",
    "Throughput",
    "cache_dir",
    "did_you_mean",
    "pair_stages",
]


def __getattr__(name: str) -> Any:
    if name in ("Method", "MethodParams"):
        from kdbench.protocol import method

        return getattr(method, name)
    raise AttributeError(f"module 'kdbench.api' has no attribute {name!r}")


def pair_stages(student: Handle, teacher: Handle, **tap: Any) -> list[tuple[Tap, Tap]]:
    """Pair the stages of two networks from the last one backwards.

    Returns ``[(student tap, teacher tap), ...]`` from the earliest common stage to the last; `tap` are further
    arguments of :class:`Tap`, such as ``when="pre"``.
    """
    n = min(len(student.stages), len(teacher.stages))
    pairs = zip(
        student.stages[len(student.stages) - n :], teacher.stages[len(teacher.stages) - n :], strict=True
    )
    return [(Tap(s, **tap), Tap(t, **tap)) for s, t in pairs]


def cache_dir(*parts: str) -> Any:
    """Return the folder for downloads and decoded data, ``$KDBENCH_CACHE`` or ``~/.cache/kdbench``, as a Path."""
    import os
    from pathlib import Path

    root = os.environ.get("KDBENCH_CACHE") or Path.home() / ".cache" / "kdbench"
    return Path(root).joinpath(*parts)
