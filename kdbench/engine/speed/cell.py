"""A cell that trains nothing: the speed of its untrained student, as a record."""

from __future__ import annotations

from pathlib import Path

import torch

from kdbench.engine.build_dataset import make_dataset
from kdbench.engine.cell import Hooks, provenance, read_cell
from kdbench.engine.progress import Interrupted
from kdbench.engine.speed.sheet import measure_speed
from kdbench.errors import KdbenchError
from kdbench.registry import Registry
from kdbench.results.schema import Record
from kdbench.results.speed import SpeedSettings
from kdbench.results.speed_record import refuse_empty, speed_parts
from kdbench.results.store import write_record


class SpeedCell:
    """Measures one cell with the code of ``kdbench throughput``; :meth:`run` leaves its record in the folder."""

    def __init__(self, folder: Path, registry: Registry, hooks: Hooks | None = None) -> None:
        self.folder, self.registry, self.hooks = folder, registry, hooks or Hooks()
        self.cell = read_cell(folder)

    def run(self) -> Record:
        """Measure, with the other workers of the run held. Raises KdbenchError, Interrupted."""
        cell = self.cell
        with self.hooks.alone():
            sheet = measure_speed(self.registry, self.settings(), self._told)
        refuse_empty(sheet)
        record = Record(
            cell_id=cell.cell_id,
            status="done",
            protocol=cell.protocol,
            labels=cell.labels,
            identity=cell.identity,
            plugins=provenance(self.registry, cell),
            **speed_parts(sheet, cell.student.name),
        )
        self.hooks.fence()
        write_record(self.folder, record)
        return record

    def settings(self) -> SpeedSettings:
        """Return what to measure: the data set says how large images are and how many classes there are."""
        cell, timing = self.cell, self.cell.throughput
        assert timing is not None
        info = make_dataset(self.registry, cell.dataset.name, cell.dataset.args).describe()
        if info.revision != cell.dataset.revision:
            raise KdbenchError(
                f"data set '{cell.dataset.label}' changed since the matrix was planned "
                f"(revision {info.revision}, expected {cell.dataset.revision})"
            )
        return SpeedSettings(
            models=[cell.student.name],
            modes=list(timing.modes),
            batch_sizes=list(timing.batch_sizes),
            precisions=list(timing.precisions),
            args={cell.student.name: cell.student.args},
            in_chans=info.in_chans,
            image_size=info.image_size,
            num_classes=info.num_classes,
            channels_last=timing.channels_last,
            device=cell.device,
            threads=cell.threads or torch.get_num_threads(),
            rounds=timing.rounds,
            max_seconds=timing.max_seconds,
        )

    def _told(self, line: str) -> None:
        if self.hooks.should_stop():
            raise Interrupted
        print(line, flush=True)  # to the cell's log: the last line says what it died of
