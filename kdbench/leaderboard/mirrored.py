"""What only all records of a matrix together can tell, for places that mirror them cell by cell."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from kdbench.leaderboard.board import make_board
from kdbench.leaderboard.gap import cell_gaps
from kdbench.leaderboard.rows import Row, digest
from kdbench.leaderboard.thrift import Thrift
from kdbench.results.mlflow_fields import final_metrics
from kdbench.results.schema import Record
from kdbench.stats import summarise

#: Of what depends on the machine a row tells the median over the seeds that are done, as boards do.
_MEDIANS = ("perf/", "cost/", "model/")


@dataclass
class Told:
    """What a sink is told when all cells are written.

    Attributes:
        annotations: cell id -> metrics; nan where a cell has none.
        summaries: what :func:`row_summary` gives of each row that has a finished cell.
    """

    annotations: dict[str, dict[str, float]] = field(default_factory=dict)
    summaries: list[dict[str, Any]] = field(default_factory=list)


def tell(records: Iterable[Record]) -> Told:
    """Return what the records say together; it depends on the set of records, not on their order."""
    records = list(map(Thrift(), records))
    gaps = cell_gaps(records)
    done = sorted(r.cell_id for r in records if r.status == "done")
    annotations = {cell: {"final/gap_closed": gaps.get(cell, float("nan"))} for cell in done}
    rows = [row for row in make_board(records, title="").rows if row.done]
    return Told(annotations, [row_summary(row) for row in rows])


def row_summary(row: Row) -> dict[str, Any]:
    """Return a row as JSON: a method with its parameters on a pair and a data set, over its seeds.

    Keys: ``row_id``, ``labels`` and ``identity`` as in a record but without a seed, ``protocol``, ``seeds``,
    ``whole`` (every seed is done), ``metrics``, ``notes``, ``started_at`` and ``finished_at`` over the seeds.
    """
    first = row.records[0]
    labels = first.labels.model_dump() | {"seed": None}
    names = [
        asdict(row.setting),
        row.student_key,
        row.teacher_key,
        labels["role"],
        labels["variant"],
        row.config,
    ]
    return {
        "row_id": digest(names, 32),
        "labels": labels,
        "identity": {k: v for k, v in first.identity.items() if k != "seed"},
        "protocol": first.protocol,
        "seeds": [r.labels.seed for r in row.records],
        "whole": len(row.done) == len(row.records),
        "metrics": {k: v for k, v in _metrics(row).items() if v is not None},
        "notes": _notes(row),
        "started_at": min(r.started_at for r in row.records),
        "finished_at": max(r.finished_at for r in row.records),
    }


def _metrics(row: Row) -> dict[str, float | None]:
    """Return metrics under the names that the cells have, and what only several seeds can tell."""
    out = _over_seeds(row)
    last = row.last
    out |= {
        "seeds/planned": float(len(row.records)),
        "seeds/done": float(len(row.done)),
        "final/top1_sd": last.sd,
        "final/top1_ci95_low": last.ci95_low,
        "final/top1_ci95_high": last.ci95_high,
        "final/gap_closed": row.gap_closed,
        "best_val/top1_minus_last": row.differences.val.mean,
        "best_test/top1_minus_last": row.differences.oracle.mean,
    }
    if row.gap_interval is not None:
        out["final/gap_closed_ci95_low"], out["final/gap_closed_ci95_high"] = row.gap_interval
    for reference, found in row.against.items():
        prefix = f"against/{reference}/top1"
        out[prefix] = found.mean
        out[f"{prefix}_ci95_low"], out[f"{prefix}_ci95_high"] = found.low, found.high
        out[f"{prefix}_better"] = found.better
    return out


def _over_seeds(row: Row) -> dict[str, float | None]:
    """Return the mean over all planned seeds of each metric, None where a cell lacks it."""
    cells: list[Mapping[str, float]] = [final_metrics(r.model_dump(mode="json")) for r in row.records]
    out: dict[str, float | None] = {}
    for name in sorted({name for cell in cells for name in cell}):
        values = [cell.get(name) for cell in cells]
        if name.startswith(_MEDIANS):
            out[name] = statistics.median(sorted(v for v in values if v is not None))
        else:
            out[name] = summarise(values).mean
    return out


def _notes(row: Row) -> dict[str, str]:
    out = {"hardware": ", ".join(row.hardware), "precision": ", ".join(row.precision)}
    if row.why_null:
        out["why_no_mean"] = row.why_null
    if row.tied is not None:
        out["tied_with_best"] = str(row.tied).lower()
    return {name: text for name, text in out.items() if text}
