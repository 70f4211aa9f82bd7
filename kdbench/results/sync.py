"""Replaying the records of a run folder into a sink."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdbench.errors import KdbenchError, RecordError
from kdbench.hooks import Sink
from kdbench.results.store import RESULT, RunFolder, read_record
from kdbench.results.system import read_samples


@dataclass
class SyncCounts:
    """What a sync did with cells; `problems` has a line for each failed one.

    Attributes:
        summaries, summaries_written: summaries in all, and those that were not there already; None where the sink
            does not tell.
    """

    written: int = 0
    unchanged: int = 0
    failed: int = 0
    problems: list[str] = field(default_factory=list)
    summaries: int = 0
    summaries_written: int | None = None


def sync(
    run_folder: str | Path,
    sink: Sink,
    *,
    uri: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    annotations: Mapping[str, Mapping[str, float]] | None = None,
    summaries: Sequence[Mapping[str, Any]] = (),
) -> SyncCounts:
    """Write every record of a run folder to a sink; safe to repeat.

    A broken record, or one that the sink refuses, is counted as failed and the others go on. `progress` is
    called with (cells handled, cells in all). `annotations` are further metrics by cell id, `summaries` what is
    said of the seeds of each row together; sinks that take neither are not told. A sink without ``put``
    cannot tell unchanged records apart, all count as written. Raises KdbenchError when there is no record at
    all or the sink cannot be opened.
    """
    run = RunFolder(run_folder)
    folders = run.cell_folders()
    if not folders:
        raise RecordError(f"{run.path}: holds no records (expected cells/<cell id>/{RESULT})")
    counts = SyncCounts()
    sink.open(run.matrix(), uri=uri)
    status = "interrupted"
    try:
        for number, folder in enumerate(folders, 1):
            try:
                if _write(sink, folder):
                    counts.written += 1
                else:
                    counts.unchanged += 1
            except KdbenchError as error:
                counts.failed += 1
                counts.problems.append(str(error))
            if progress is not None:
                progress(number, len(folders))
        annotate = getattr(sink, "annotate", None)
        for cell_id, metrics in (annotations or {}).items() if annotate is not None else ():
            annotate(cell_id, metrics)
        summarise = getattr(sink, "summarise", None)
        if summarise is not None:
            counts.summaries, counts.summaries_written = len(summaries), summarise(summaries)
        observe = getattr(sink, "observe", None)
        if observe is not None:
            observe(read_samples(run.path))
        status = "failed" if counts.failed else "done"
    finally:
        sink.close(status)
    return counts


def _write(sink: Sink, folder: Path) -> bool:
    record = read_record(folder / RESULT)
    if record.cell_id != folder.name:
        raise RecordError(f"{folder / RESULT}: cell_id is not the name of the folder")
    data = record.model_dump(mode="json")
    put = getattr(sink, "put", None)
    if put is not None:
        return bool(put(data, folder))
    sink.write(data, folder)
    return True
