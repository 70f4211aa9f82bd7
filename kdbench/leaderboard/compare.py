"""Two sets of records side by side: cells paired by what they are called and their seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kdbench.leaderboard.rows import digest, hardware, primary, speed, top1
from kdbench.results.speed_row import SpeedRow, drift_factor
from kdbench.stats.differences import Difference, paired_difference, paired_ratio, ratio_of_medians

if TYPE_CHECKING:
    from kdbench.results.schema import Cost, Record

#: Keys of an identity that differ between versions of the code, not between things that are compared.
_VERSIONS = ("version", "protocol")
#: Fewest seeds whose speeds have an interval.
MIN_SEEDS = 3
#: What cells are called: they are paired by these; the seed is the last.
_LABELS = ("task", "dataset", "pair", "role", "variant", "recipe", "seed")
#: What is told of the environments where it differs.
_TOLD = ("kdbench", "torch", "timm", "torchvision", "python", "cuda", "driver", "precision", "compile")


@dataclass
class Line:
    """One method on one pair and data set: the seeds that both sides have.

    Attributes:
        name: data set, pair and variant.
        seeds: shared seeds that are done on both sides.
        accuracy: top-1 in percent, B - A; None where no seed is done on both sides.
        speeds: name -> ratio B / A of a speed (more is better); empty where the hardware differs.
        lost: what of the speeds is done in A and not in B.
        broken: seeds done in A that B has with another status, with that status.
        notes: what else differs.
    """

    name: tuple[str, str, str]
    seeds: list[int] = field(default_factory=list)
    accuracy: Difference | None = None
    speeds: dict[str, Difference] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    broken: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class Comparison:
    """All lines, what only one side has, and how the sides differ as a whole."""

    lines: list[Line]
    only_a: list[str]
    only_b: list[str]
    notes: list[str]


def compare_records(a: Sequence[Record], b: Sequence[Record]) -> Comparison:
    """Compare two sets of records.

    Cells are the same when task, data set, pair, role, variant, recipe and seed have the same names, so that
    records of two versions can be compared; where names leave a choice, the rest of the identity decides.
    Speeds are compared on equal hardware only: the same device and, on a CPU, number of threads.
    """
    notes: list[str] = []
    left, right = _by_cell(a, b, notes)
    lines: dict[tuple[Any, ...], list[tuple[Record, Record]]] = {}
    for key in sorted(left.keys() & right.keys(), key=repr):
        lines.setdefault(key[:-1], []).append((left[key], right[key]))
    made = [_line(pairs) for pairs in lines.values()]
    return Comparison(
        lines=made,
        only_a=[_name(left[k]) for k in sorted(left.keys() - right.keys(), key=repr)],
        only_b=[_name(right[k]) for k in sorted(right.keys() - left.keys(), key=repr)],
        notes=notes
        + _gangs([(left[k], right[k]) for k in left if k in right])
        + _environments([left[k] for k in left if k in right], [right[k] for k in right if k in left]),
    )


def why_apart(a: Sequence[Record], b: Sequence[Record]) -> str:
    """Return the nearest two records of sets that share no cell, and the keys in which they differ."""

    def apart(pair: tuple[Record, Record]) -> int:
        return sum(s != t for s, t in zip(_names(pair[0]), _names(pair[1]), strict=True))

    x, y = min(((x, y) for x in a for y in b), key=apart)
    names = {k: (s, t) for k, s, t in zip(_LABELS, _names(x), _names(y), strict=True) if s != t}
    # where two cells with teachers differ in a recipe, the ids of the teachers differ for the same reason
    keys = {k: values for k, values in _differing(x, y).items() if k != "teachers"}
    # what a key of the identity says too needs no second word
    differ = {k: values for k, values in names.items() if values not in keys.values()} | keys
    return f"A has {_name(x)}; B has {_name(y)}; they differ in {_told_keys(differ, limit=6)}"


def _by_cell(
    a: Iterable[Record], b: Iterable[Record], notes: list[str]
) -> tuple[dict[Any, Record], dict[Any, Record]]:
    """Key the records by names and seed; where that is not unique on a side, by the identity too.

    Of several records of one cell the newest counts, and a note says so.
    """
    sides = []
    names: list[dict[Any, list[Record]]] = []
    for records in (a, b):
        groups: dict[Any, list[Record]] = {}
        for record in records:
            groups.setdefault(_names(record), []).append(record)
        names.append(groups)
    twice = {key for groups in names for key, found in groups.items() if len(found) > 1}
    for word, groups in zip(("A", "B"), names, strict=True):
        side: dict[Any, Record] = {}
        older = 0
        for key, found in groups.items():
            for record in sorted(found, key=lambda r: (r.finished_at, r.cell_id)):
                extra = digest(_bare(record.identity), 16) if key in twice else ""
                place = (*key[:-1], extra, key[-1])
                older += place in side
                side[place] = record
        if older:
            notes.append(f"{word} holds {older} older record(s) of the same cells, which do not count")
        sides.append(side)
    return sides[0], sides[1]


def _names(record: Record) -> tuple[Any, ...]:
    return tuple(getattr(record.labels, name) for name in _LABELS)


def _bare(value: Any) -> Any:
    """Return an identity without versions and seed."""
    if isinstance(value, Mapping):
        return {k: _bare(v) for k, v in value.items() if k not in (*_VERSIONS, "seed", "cell")}
    return [_bare(v) for v in value] if isinstance(value, list) else value


def _line(pairs: list[tuple[Record, Record]]) -> Line:
    first = pairs[0][0].labels
    role = " (teacher)" if first.role == "teacher" else ""
    line = Line((first.dataset, first.pair, first.variant + role))
    both = []
    for a, b in pairs:
        if primary(a) is not None and primary(b) is not None:
            both.append((a, b))
            line.seeds.append(a.labels.seed)
        elif primary(a) is not None:
            line.broken[a.labels.seed] = b.status
    if any(_bare(a.identity) != _bare(b.identity) for a, b in pairs):
        line.notes.append(f"not the same cells: {_told_keys(_differing(*pairs[0]), limit=3)}")
    if not both:
        return line
    ranked = [(x, y) for a, b in both if (x := top1(a)) is not None and (y := top1(b)) is not None]
    if ranked:
        line.accuracy = paired_difference([x for x, _ in ranked], [y for _, y in ranked])
    places = {hardware(r) for pair in both for r in pair}
    if len(places) > 1:
        line.notes.append("speeds not compared: " + " and ".join(sorted(places)))
    else:
        line.speeds = _speeds(both) | _only_speeds(both, line.lost)
    return line


def _only_speeds(both: list[tuple[Record, Record]], lost: list[str]) -> dict[str, Difference]:
    """Compare what cells measured that train nothing: by seeds where there are several, else by rounds."""
    found: dict[str, list[tuple[SpeedRow, SpeedRow]]] = {}
    for a, b in both:
        right = {_speed_name(row): row for row in b.speeds}
        for row in a.speeds:
            other = right.get(_speed_name(row))
            if row.status == "done" and other is not None:
                if other.status == "done":
                    found.setdefault(_speed_name(row), []).append((row, other))
                else:
                    lost.append(f"{_speed_name(row)}: done in A, {other.status} in B")
    return {name: _ratio_of_rows(pairs) for name, pairs in found.items()}


def _speed_name(row: SpeedRow) -> str:
    return f"{row.mode} {row.precision} b{'auto' if row.found_by else row.batch_size}"


def _ratio_of_rows(pairs: list[tuple[SpeedRow, SpeedRow]]) -> Difference:
    if len(pairs) > 1:
        ratio = paired_ratio(
            [a.images_per_s or 1.0 for a, _ in pairs], [b.images_per_s or 1.0 for _, b in pairs]
        )
        return _steadied(ratio, [(a.iqr_ratio, b.iqr_ratio) for a, b in pairs])
    a, b = pairs[0]
    speeds = [[1e3 * (r.batch_size or 1) / ms for ms in r.samples_ms or [r.step_ms or 1.0]] for r in (a, b)]
    # the rounds do not know what happened to the machine meanwhile; its drift is the least that it may have done
    return ratio_of_medians(*speeds).widened(drift_factor(a) * drift_factor(b))


def _speeds(both: list[tuple[Record, Record]]) -> dict[str, Difference]:
    both = [(a, b) for a, b in both if not (a.speeds and b.speeds)]
    readers: dict[str, Callable[[Record], float | None]] = {"train": _train_speed}
    sizes = {size for pair in both for r in pair for net in r.throughput.values() for size in net}
    for size in sorted(sizes, key=lambda s: (len(s), s)):
        readers[f"infer b{size}"] = lambda r, size=size: s.images_per_s if (s := speed(r, size)) else None
    found = {}
    for name, read in readers.items():
        values = [(x, y, a, b) for a, b in both if (x := read(a)) and (y := read(b))]
        if values:
            size = name.removeprefix("infer b")
            ratio = paired_ratio([x for x, *_ in values], [y for _, y, *_ in values])
            found[name] = _steadied(ratio, [(_unsteady(a, size), _unsteady(b, size)) for *_, a, b in values])
    return found


def _steadied(ratio: Difference, unsteady: Sequence[tuple[float | None, float | None]]) -> Difference:
    """Return a ratio over seeds with what its cells know of the machine, `unsteady`: interquartile ranges.

    Half of the range, the deviation of an ordinary round, is allowed for on either side. Of fewer than three
    seeds the interval is left out.
    """
    if len(unsteady) < MIN_SEEDS:
        return ratio.without_interval()
    sides = (statistics.median(v or 0.0 for v in side) for side in zip(*unsteady, strict=True))
    return ratio.widened(math.prod(1 + v / 2 for v in sides))


def _unsteady(record: Record, size: str) -> float | None:
    """Return ``iqr_ratio`` of inference at a batch size; of training, which has none, that at the cell's worst."""
    at = record.throughput.get(record.primary or "", {})
    chosen = [at[size]] if size in at else list(at.values())
    return max((speed.iqr_ratio for speed in chosen), default=None)


def _train_speed(record: Record) -> float | None:
    return None if primary(record) is None or record.cost is None else record.cost.train_images_per_s


def _differing(a: Record, b: Record) -> dict[str, tuple[Any, Any]]:
    left, right = _leaves(_bare(a.identity)), _leaves(_bare(b.identity))
    keys = sorted(k for k in left.keys() | right.keys() if left.get(k) != right.get(k))
    return {k: (left.get(k, "absent"), right.get(k, "absent")) for k in keys}


def _told_keys(differ: Mapping[str, tuple[Any, Any]], limit: int) -> str:
    shown = [f"{k} {x} and {y}" for k, (x, y) in list(differ.items())[:limit]]
    return ", ".join(shown) + (f" and {len(differ) - limit} more" if len(differ) > limit else "")


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        out: dict[str, Any] = {}
        for k, v in value.items():
            out |= _leaves(v, f"{prefix}.{k}" if prefix else str(k))
        return out
    return {prefix: value}


def _gangs(pairs: Sequence[tuple[Record, Record]]) -> list[str]:
    """Return a note for each side whose cells shared batches or forwards where the other's did not."""
    shared = [(_ganged(a.cost), _ganged(b.cost)) for a, b in pairs if a.cost and b.cost]
    notes = []
    for sides, (here, there) in (((True, False), ("A", "B")), ((False, True), ("B", "A"))):
        if n := shared.count(sides):
            notes.append(f"costs of {n} cell(s) were taken in gangs in {here} and alone in {there}")
    return notes


def _ganged(cost: Cost) -> bool:
    # the cell that made the batches has nothing of others; records without `gang` have no better sign
    return bool(cost.gang or cost.shared_s)


def _environments(a: Sequence[Record], b: Sequence[Record]) -> list[str]:
    notes = []
    for name in _TOLD:
        left, right = (_values(side, name) for side in (a, b))
        if left != right:
            notes.append(f"{name}: {left or '-'} in A, {right or '-'} in B")
    places = [sorted({hardware(r) for r in side}) for side in (a, b)]
    if places[0] != places[1]:
        notes.append(f"hardware: {'; '.join(places[0])} in A, {'; '.join(places[1])} in B")
    return notes


def _values(records: Sequence[Record], name: str) -> str:
    return ", ".join(sorted({str(v) for r in records if (v := r.environment.get(name)) is not None}))


def _name(record: Record) -> str:
    x = record.labels
    return f"{x.dataset}, {x.pair}, {x.variant}, seed {x.seed}"
