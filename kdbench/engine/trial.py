"""A trial of a search: a cell that is judged on the validation split and never gets to see a test image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdbench.engine.cell import CellTrainer, now, provenance, read_cell
from kdbench.engine.context import CellRun
from kdbench.engine.evaluation import deployables
from kdbench.engine.progress import Progress
from kdbench.measure.operations import parameters
from kdbench.protocol.method import Method
from kdbench.protocol.types import Metric
from kdbench.results.schema import Deployable, Record, Validation
from kdbench.results.store import write_record


class TrialTrainer(CellTrainer):
    """Trains as a cell does; its record has the validation metric, the cost and nothing else that was measured."""

    def _record(self, run: CellRun, method: Method, at: Progress) -> Record:
        cell = self.cell
        nets = deployables(method, run)
        primary = next(iter(nets))
        metric = next(m for m in run.task.metrics() if m.primary)
        record = Record(
            cell_id=cell.cell_id,
            status="done",
            protocol=cell.protocol,
            labels=cell.labels,
            identity=cell.identity,
            primary=primary,
            deployables={name: Deployable(last={}, params=parameters(net)) for name, net in nets.items()},
            cost=self._cost(run, method, at, None),
            # a teacher's test accuracy is on its own record, where no search looks
            teachers=[ref.model_copy(update={"top1": None}) for ref in self.teacher_refs],
            validation=_validation(at.rows, primary, metric),
            environment=self._environment(run),
            plugins=provenance(self.registry, cell),
            warnings=[*self.warnings, *run.notes()],
            started_at=self._started,
            finished_at=now(),
        )
        self.hooks.fence()
        write_record(self.folder, record)
        (self.folder / "checkpoint.safetensors").unlink(missing_ok=True)
        return record


def trainer_of(folder: Path) -> type[CellTrainer]:
    """Return what trains the cell in `folder`. Raises KdbenchError for a cell that cannot be read."""
    return TrialTrainer if read_cell(folder).trial else CellTrainer


def _validation(rows: list[dict[str, Any]], name: str, metric: Metric) -> Validation:
    values = [row["eval"][name][f"val/{metric.name}"] for row in rows if "eval" in row]
    better = bool(metric.higher_is_better)
    return Validation(
        metric=metric.name,
        higher_is_better=better,
        last=values[-1],
        best=max(values) if better else min(values),
    )
