"""Columns of the tables, shared by the web page and the Markdown page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kdbench.leaderboard.rows import Row
from kdbench.leaderboard.text import NULL, count, number, rate

#: What every page says above its tables.
ABOUT = (
    "Accuracies are percent on the test split. A row whose cells are not all done has no mean, and the reason "
    "stands beside it; fewer than 3 seeds give no rank and no interval of a difference. Overlapping intervals of "
    "two means tell nothing of their difference: the paired differences do. Each of these is looked at by itself, "
    "and the best row was chosen by the same seeds: of 30 methods that are equal, about one in six would stand "
    "below the best."
)


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        title: heading.
        help: what the numbers are, with their unit.
        group: ``"what"``, ``"accuracy"``, ``"compared"`` or ``"cost"``; Markdown has a table of each later one.
        text: the cell as shown.
        value: the number to sort by; None for a column of texts, which sorts by the text.
    """

    title: str
    help: str
    group: str
    text: Callable[[Row], str]
    value: Callable[[Row], float | None] | None = None

    def sort_key(self, row: Row) -> str:
        """Return what the page's script sorts by; empty for null."""
        if self.value is None:
            return self.text(row).lower()
        value = self.value(row)
        return "" if value is None else f"{value:.6g}"


def _n(row: Row) -> str:
    return f"{len(row.done)}/{len(row.records)}"


def _spread(row: Row) -> str:
    s = row.last
    if s.mean is None:
        return f"{NULL} ({row.why_null})"
    return number(s.mean, 2) if s.sd is None else f"{number(s.mean, 2)} ± {number(s.sd, 2)}"


def _interval(row: Row) -> str:
    s = row.last
    if s.ci95_low is None or s.ci95_high is None:
        return f"{NULL} ({s.why})" if s.n > 1 and s.why else NULL
    return f"{number(s.ci95_low, 2)} to {number(s.ci95_high, 2)}"


def _percent(value: float | None) -> str:
    return NULL if value is None else f"{number(100 * value, 1)} %"


def _times(value: float | None) -> str:
    return NULL if value is None else f"{number(value, 2)} ×"


def _float(value: int | None) -> float | None:
    return None if value is None else float(value)


def _join(values: tuple[str, ...]) -> str:
    return "; ".join(values) or NULL


VARIANT = Column(
    "Method", "Method with what was changed from its defaults", "what", lambda r: r.labels.variant
)
STUDENT = Column("Student", "Architecture of the deployed network", "what", lambda r: r.labels.student)
SEARCH = Column(
    "Search",
    "Trials of the method's search, and the hyper-parameters that it found",
    "accuracy",
    lambda r: r.search or NULL,
)
SEEDS = Column("Seeds", "Finished cells of planned cells", "accuracy", _n, lambda r: float(len(r.done)))

COLUMNS: tuple[Column, ...] = (
    VARIANT,
    SEEDS,
    Column(
        "Top-1, %",
        "Test top-1 after the last epoch: mean ± standard deviation over seeds; the ranked number",
        "accuracy",
        _spread,
        lambda r: r.last.mean,
    ),
    Column(
        "95 % interval",
        "Student's t interval of the mean; none if all seeds are equal",
        "accuracy",
        _interval,
        lambda r: r.last.ci95_low,
    ),
    Column(
        "Gap closed",
        "(student − baseline) / (teacher − baseline); the baseline is the student trained alone",
        "accuracy",
        lambda r: _percent(r.gap_closed),
        lambda r: r.gap_closed,
    ),
    Column(
        "Best val, %",
        "Test top-1 at the epoch with the best validation top-1",
        "accuracy",
        lambda r: number(r.best_val, 2),
        lambda r: r.best_val,
    ),
    Column(
        "Best test (oracle), %",
        "Test top-1 at the epoch with the best test top-1: chosen on the test split, so no fair estimate",
        "accuracy",
        lambda r: number(r.best_test, 2),
        lambda r: r.best_test,
    ),
    Column("Fidelity", "What the implementation follows", "accuracy", lambda r: r.labels.fidelity or NULL),
    Column("Preset", "Named set of hyper-parameters", "accuracy", lambda r: r.labels.preset or NULL),
    Column("Plug-in", "Distribution and version of the method", "accuracy", lambda r: _join(r.plugins)),
    Column(
        "Images/s, b64",
        "Inference throughput of the student at batch 64, median over seeds",
        "cost",
        lambda r: rate(r.infer_images_per_s),
        lambda r: r.infer_images_per_s,
    ),
    Column(
        "Latency, ms, b1",
        "Median inference latency at batch 1, median over seeds",
        "cost",
        lambda r: rate(r.latency_ms),
        lambda r: r.latency_ms,
    ),
    Column(
        "Train images/s",
        "Training throughput, median over seeds",
        "cost",
        lambda r: rate(r.cost("train_images_per_s")),
        lambda r: r.cost("train_images_per_s"),
    ),
    Column(
        "Step, ms",
        "Training step, median over epochs and seeds",
        "cost",
        lambda r: rate(r.cost("step_ms")),
        lambda r: r.cost("step_ms"),
    ),
    Column(
        "Step / baseline",
        "Step time relative to the baseline's on the same hardware",
        "cost",
        lambda r: _times(r.relative_step),
        lambda r: r.relative_step,
    ),
    Column(
        "Teacher share",
        "Share of a step spent in the teacher",
        "cost",
        lambda r: _percent(r.cost("teacher_share")),
        lambda r: r.cost("teacher_share"),
    ),
    Column(
        "Extra params",
        "Trainable parameters that exist only during training",
        "cost",
        lambda r: count(r.extra_params),
        lambda r: _float(r.extra_params),
    ),
    Column(
        "Device-hours",
        "Sum over finished seeds, in hours of one GPU or CPU core",
        "cost",
        lambda r: number(r.device_hours, 3),
        lambda r: r.device_hours,
    ),
    Column(
        "Params", "Parameters of the student", "cost", lambda r: count(r.params), lambda r: _float(r.params)
    ),
    Column(
        "MACs",
        "Multiply-accumulate operations of one image's forward pass",
        "cost",
        lambda r: count(r.macs),
        lambda r: _float(r.macs),
    ),
    Column("Hardware", "Where the cells ran", "cost", lambda r: _join(r.hardware)),
    Column("Precision", "Numeric precision of training", "cost", lambda r: _join(r.precision)),
)


def columns(
    rows: Sequence[Row], references: Sequence[str] = (), *, with_student: bool, searched: bool = False
) -> tuple[Column, ...]:
    """Return the columns of a table of `rows`; those of comparisons only where there is something to compare.

    `searched`: the methods' hyper-parameters were searched, so there is a column for how far.
    """
    from kdbench.leaderboard.compared_columns import compared_columns

    first = (VARIANT, *((STUDENT,) if with_student else ()), *((SEARCH,) if searched else ()))
    rest = COLUMNS[1:]
    at = next(n for n, column in enumerate(rest) if column.group == "cost")
    return (*first, *rest[:at], *compared_columns(rows, references), *rest[at:])
