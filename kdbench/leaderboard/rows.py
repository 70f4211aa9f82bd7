"""Records to rows: the cells that differ by seed only are one row."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kdbench.leaderboard.selection import Selection, selection
from kdbench.stats import Paired, Summary, summarise

if TYPE_CHECKING:
    from kdbench.leaderboard.published import Published
    from kdbench.results.schema import Cost, Deployable, Record

INFER_BATCH = "64"
LATENCY_BATCH = "1"


def digest(value: Any, length: int = 8) -> str:
    """Return the first hexadecimal digits of the sha256 of `value`'s canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


@dataclass(frozen=True, order=True)
class Setting:
    """What records must share to stand in one ranking table.

    Attributes:
        track: whose hyper-parameters they are, as the records' labels say.
        budget: what the search was given, in words; empty on the track ``default``.
    """

    task: str
    task_version: str
    dataset: str
    dataset_args: str
    revision: str
    limit_train: str
    limit_test: str
    recipe: str
    recipe_digest: str
    protocol: int
    track: str = "default"
    budget: str = ""


@dataclass
class Row:
    """One method on one pair in one setting; `records` are its seeds.

    Attributes:
        student_key, teacher_key: label and digest, so that equal labels of different things stay apart.
        config: digest of all that the seeds share.
        gap_closed: see :mod:`kdbench.leaderboard.gap`; a fraction, 1 is the teacher.
        gap_interval: 95 % interval of the gap closed by Fieller's method; fractions.
        relative_step: median step time over the baseline's, on equal hardware.
        against: variant of a reference -> this row minus it, see :mod:`kdbench.leaderboard.compared`.
        to_best: this row minus the row of the table with the highest mean; None for that row itself.
        tied: whether the interval of `to_best` covers 0, True for the best row; None where nothing can be said.
        origin: the board's row of which this is the copy in one of several tables; None if it is not a copy.
    """

    setting: Setting
    student_key: tuple[str, str]
    teacher_key: tuple[str, str]
    config: str
    records: list[Record]
    gap_closed: float | None = None
    relative_step: float | None = None
    baseline: Row | None = field(default=None, repr=False)
    gap_interval: tuple[float, float] | None = None
    against: dict[str, Paired] = field(default_factory=dict)
    to_best: Paired | None = None
    tied: bool | None = None
    origin: Row | None = field(default=None, repr=False)

    @property
    def row(self) -> Row:
        """The board's row; a row without a teacher is copied into the tables of several teachers."""
        return self.origin or self

    @property
    def labels(self) -> Any:
        """Labels of the first seed."""
        return self.records[0].labels

    @cached_property
    def done(self) -> list[Record]:
        """The seeds that finished with an evaluated network."""
        return [r for r in self.records if primary(r) is not None]

    @cached_property
    def last(self) -> Summary:
        """Top-1 after the last epoch in percent, over all planned seeds."""
        return summarise([top1(r) for r in self.records])

    @cached_property
    def best_val(self) -> float | None:
        """Mean test top-1 at the epoch that is best on validation."""
        nets = [primary(r) for r in self.records]
        return summarise([n.best_val.top1 if n and n.best_val else None for n in nets]).mean

    @cached_property
    def best_test(self) -> float | None:
        """Mean test top-1 at the epoch that is best on test: an oracle."""
        nets = [primary(r) for r in self.records]
        return summarise([n.best_test.top1 if n and n.best_test else None for n in nets]).mean

    @cached_property
    def by_seed(self) -> dict[int, float | None]:
        """Top-1 after the last epoch in percent of each planned seed, None for a cell that is not done."""
        return {r.labels.seed: top1(r) for r in self.records}

    @cached_property
    def why_null(self) -> str:
        """Why there is no mean: the seeds without a result and their statuses; empty where there is one."""
        if self.last.mean is not None:
            return ""
        statuses = {r.status for r in self.records}
        if len(statuses) == 1 and statuses != {"done"}:
            return f"all {self.records[0].status}"
        lost = [f"seed {r.labels.seed} {r.status}" for r in self.records if r.status != "done"]
        return ", ".join(lost) or "no accuracy recorded"

    @cached_property
    def differences(self) -> Selection:
        """What the choice of the epoch does, over the row's seeds; null where a cell lacks either side."""
        return selection([primary(r) for r in self.records])

    @cached_property
    def teacher_by_seed(self) -> dict[int, float | None]:
        """Mean top-1 in percent of the teachers of each finished seed; None where one is not known."""
        found: dict[int, float | None] = {}
        for record in self.done:
            values = sorted(t.top1 for t in record.teachers if t.top1 is not None)
            known = values and len(values) == len(record.teachers)
            found[record.labels.seed] = statistics.fmean(values) if known else None
        return found

    @cached_property
    def teacher_top1(self) -> float | None:
        """Mean top-1 of the teachers used, in percent."""
        means = list(self.teacher_by_seed.values())
        return (
            statistics.fmean(sorted(m for m in means if m is not None))
            if means and None not in means
            else None
        )

    @cached_property
    def infer_images_per_s(self) -> float | None:
        """Median over seeds, batch 64."""
        return _median(s.images_per_s for r in self.done if (s := speed(r, INFER_BATCH)))

    @cached_property
    def latency_ms(self) -> float | None:
        """Median over seeds of the p50 latency, batch 1."""
        return _median(s.latency_ms_p50 for r in self.done if (s := speed(r, LATENCY_BATCH)))

    def cost(self, name: str) -> float | None:
        """Median over seeds of a field of the training cost."""
        return _median(v for c in self._costs if (v := getattr(c, name)) is not None)

    @cached_property
    def _costs(self) -> list[Cost]:
        return [r.cost for r in self.done if r.cost is not None]

    @cached_property
    def extra_params(self) -> int | None:
        """Parameters that exist only during training."""
        return max((c.extra_params for c in self._costs), default=None)

    @cached_property
    def device_hours(self) -> float | None:
        """Sum over the finished seeds."""
        hours = sorted(c.device_hours for c in self._costs)
        return sum(hours) if hours else None

    @cached_property
    def params(self) -> int | None:
        """Parameters of the deployed network."""
        return max((n.params for r in self.done if (n := primary(r))), default=None)

    @cached_property
    def macs(self) -> int | None:
        """Multiply-accumulate operations of the deployed network for one image."""
        return max((n.macs for r in self.done if (n := primary(r)) and n.macs is not None), default=None)

    @cached_property
    def published(self) -> list[Published]:
        """What others published for the method on this pair and data set."""
        from kdbench.leaderboard.published import published_for

        return published_for(self)

    @cached_property
    def hardware(self) -> tuple[str, ...]:
        """Devices on which the finished seeds ran."""
        return _distinct(
            r.environment.get("device_name") or r.environment.get("cpu") or "unknown" for r in self.done
        )

    @cached_property
    def precision(self) -> tuple[str, ...]:
        """Numeric precisions of the finished seeds."""
        return _distinct(r.environment.get("precision") or "unknown" for r in self.done)

    @cached_property
    def search(self) -> str:
        """How the hyper-parameters were found; empty where they were not searched."""
        found = self.labels.track != "default" and self.records[0].tuning
        if not found:
            return ""
        if not found.space:
            return "0 trials: nothing to search"
        values = ", ".join(
            f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in found.params.items()
        )
        best = "the method's own values were best"
        failed = f", {found.failed} failed" if found.failed else ""
        return f"{_some(found.trials, 'trial')}{failed}: {values or best}"

    @cached_property
    def plugins(self) -> tuple[str, ...]:
        """Distribution and version that provided the method."""
        found = [r.plugins.get("method") for r in self.records]
        return _distinct(f"{p.distribution} {p.version}" for p in found if p is not None)


def primary(record: Record) -> Deployable | None:
    """Return the network that is ranked, None unless the cell is done."""
    if record.status != "done" or not record.deployables:
        return None
    name = record.primary if record.primary in record.deployables else next(iter(record.deployables))
    return record.deployables[name or ""]


def top1(record: Record) -> float | None:
    """Return top-1 after the last epoch in percent, None for a cell that has none."""
    net = primary(record)
    return None if net is None else net.last.get("top1")


def speed(record: Record, batch: str) -> Any:
    """Return the inference speed of the ranked network at a batch size, or None."""
    sizes = record.throughput.get(record.primary or "")
    if sizes is None:
        sizes = next(iter(record.throughput.values()), {})
    return sizes.get(batch)


def hardware(record: Record) -> str:
    """Return what speeds depend on before anything else: the device, how many, and on a CPU the threads."""
    env = record.environment
    name = str(env.get("device_name") or env.get("cpu") or "unknown")
    name = f"{name}, {env.get('threads')} thread(s)" if env.get("device") == "cpu" else name
    return f"{name}, {env['processes']} processes" if env.get("processes") else name


def part(record: Record, name: str) -> Mapping[str, Any]:
    """Return a part of the identity that should be a mapping."""
    value = record.identity.get(name)
    return value if isinstance(value, Mapping) else {}


def uses_teacher(record: Record) -> bool:
    """Whether the cell was planned with a teacher."""
    return bool(record.identity.get("teachers") or record.teachers or record.labels.teacher)


def make_rows(records: Iterable[Record]) -> list[Row]:
    """Group records into rows, in an order that depends on their content only."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        labels = record.labels
        config = digest({k: v for k, v in record.identity.items() if k != "seed"}, 16)
        teachers = record.identity.get("teachers")
        first = digest(teachers[0]) if isinstance(teachers, list) and teachers else ""
        key = (
            _setting(record),
            (labels.student, digest(record.identity.get("student"))),
            (labels.teacher or "", first),
            labels.role,
            labels.variant,
            config,
        )
        groups.setdefault(key, []).append(record)
    rows = []
    for key in sorted(groups):
        seeds = sorted(groups[key], key=lambda r: (r.labels.seed, r.cell_id))
        rows.append(Row(key[0], key[1], key[2], key[5], seeds))
    return rows


def _setting(record: Record) -> Setting:
    task, dataset = part(record, "task"), part(record, "dataset")
    names = ("revision", "limit_train", "limit_test")
    text = {k: "" if dataset.get(k) is None else str(dataset[k]) for k in names}
    args = dataset.get("args")
    return Setting(
        task=record.labels.task,
        task_version=str(task.get("version", "")),
        dataset=record.labels.dataset,
        dataset_args=digest(args) if args else "",
        recipe=record.labels.recipe,
        recipe_digest=digest(record.identity.get("recipe")),
        protocol=record.protocol,
        track=record.labels.track,
        budget=_budget(part(record, "tuning")),
        **text,
    )


def _some(number: Any, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _budget(search: Mapping[str, Any]) -> str:
    """Return what the search of a record was given, from its identity; empty where there was none."""
    if not search:
        return ""
    seeds = search.get("seeds")
    given = f"{_some(search.get('budget'), 'trial')} of {_some(search.get('epochs'), 'epoch')}"
    given += f" on seed {', '.join(map(str, seeds))}" if isinstance(seeds, list) else ""
    return f"{given}, {search['pair']} on {search.get('dataset')}" if search.get("pair") else given


def _median(values: Iterable[float]) -> float | None:
    found: Sequence[float] = sorted(values)
    return float(statistics.median(found)) if found else None


def _distinct(values: Iterable[object]) -> tuple[str, ...]:
    return tuple(sorted({str(v) for v in values}))
