"""What is said of the methods over all settings of a board, a setting being one pair on one data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from kdbench.leaderboard.compared import ranked
from kdbench.leaderboard.rows import Row, Setting
from kdbench.leaderboard.sections import Section
from kdbench.stats.bootstrap import iqm, iqm_interval
from kdbench.stats.ranks import Friedman, average_ranks, cliques, friedman, nemenyi_difference

#: Fewer settings than this give average ranks, and no test of them.
MIN_SETTINGS = 6
#: Degrees of freedom, seeds - 1 summed over settings, from which the interval of the IQM covers what it says.
MIN_FREEDOM = 12
#: In what the settings of one ranking may differ; whatever else there is keeps them apart.
_VARYING = {
    *("dataset", "dataset_args", "revision", "limit_train", "limit_test", "recipe", "recipe_digest"),
}


@dataclass(frozen=True)
class OverallLine:
    """One method over the settings of an :class:`Overall`.

    Attributes:
        variant: the method as the tables name it.
        rank: average over the settings of its rank by mean top-1; equal means share their average rank.
        iqm: interquartile mean over settings and seeds of the gap closed, a fraction; None where `why` says.
        iqm_low, iqm_high: its 95 % interval by a stratified bootstrap; None below 12 degrees of freedom too.
        why: why `iqm` is None; else empty.
    """

    variant: str
    rank: float
    iqm: float | None = None
    iqm_low: float | None = None
    iqm_high: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Overall:
    """Methods over settings: complete blocks, every method listed has a mean in every setting listed.

    Attributes:
        title: what the settings share.
        settings: what each block is, ``pair, data set``.
        lines: by average rank, the best first.
        friedman: None below six settings or three methods, see `why`.
        critical_difference: of average ranks by Nemenyi's test at 5 %; None where `friedman` is.
        cliques: groups of variants that are not told apart, from better to worse; all of them in one where
            Friedman's test does not reject.
        iqm_settings: how many settings have a gap to close, over which the IQM goes.
        left_out: what is not in the blocks, and why, as sentences.
        notes: what else to know of the settings.
        why: why there is no test; else empty.
    """

    title: str
    settings: list[str]
    lines: list[OverallLine]
    friedman: Friedman | None = None
    critical_difference: float | None = None
    cliques: list[tuple[str, ...]] = field(default_factory=list)
    iqm_settings: int = 0
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    why: str = ""

    @property
    def n(self) -> int:
        """Number of settings."""
        return len(self.settings)


def make_overalls(sections: Sequence[Section]) -> list[Overall]:
    """Return one ranking for each task and protocol that has several settings; the one of most settings first."""
    groups: dict[tuple[tuple[str, object], ...], list[Section]] = {}
    for section in sections:
        if section.is_pair:
            groups.setdefault(_shared(section.setting), []).append(section)
    found = []
    for key, members in groups.items():
        title = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in key if value != "")
        if (overall := _overall(title, members)) is not None:
            found.append(overall)
    return sorted(found, key=lambda o: (-o.n, o.title))


def _shared(setting: Setting) -> tuple[tuple[str, object], ...]:
    return tuple((f.name, getattr(setting, f.name)) for f in fields(setting) if f.name not in _VARYING)


def _overall(title: str, sections: list[Section]) -> Overall | None:
    rows = {label: _by_variant(s) for label, s in zip(_labels(sections), sections, strict=True)}
    left_out: list[str] = []
    blocks = _complete(rows, left_out)
    variants = sorted(next(iter(blocks.values()))) if blocks else []
    if len(blocks) < 2 or len(variants) < 2:
        return None
    values = [[_mean(block[v]) for v in variants] for block in blocks.values()]
    average = average_ranks(values)
    tested, difference, groups, why = _test(values, average)
    gaps = {
        label: block
        for label, block in blocks.items()
        if any(r.gap_closed is not None for r in block.values())
    }
    order = sorted(range(len(variants)), key=lambda i: (average[i], variants[i]))
    lines = [_line(variants[i], average[i], [block[variants[i]] for block in gaps.values()]) for i in order]
    named = [tuple(variants[i] for i in group) for group in groups]
    notes = [
        f"no gap to close, so not in the interquartile mean: {label}" for label in blocks if label not in gaps
    ]
    places = Counter(_place(s) for s in sections)
    if max(places.values()) > 1:
        notes.append(
            "a pair on one data set is there under several recipes or subsets: these count as settings each"
        )
    return Overall(title, list(blocks), lines, tested, difference, named, len(gaps), left_out, notes, why)


def _place(section: Section) -> tuple[str, ...]:
    return section.title, section.setting.dataset, section.setting.revision, section.setting.dataset_args


def _labels(sections: Sequence[Section]) -> list[str]:
    """Name the settings; the same pair on the same data set is told apart by subset and recipe."""
    short = [f"{s.title}, {s.setting.dataset}" for s in sections]
    long = []
    for label, s in zip(short, sections, strict=True):
        if short.count(label) > 1:
            setting = s.setting
            subset = f", {setting.limit_train} images" if setting.limit_train else ""
            label += f"{subset}, revision {setting.revision}, {setting.recipe} ({setting.recipe_digest})"
        long.append(label)
    return [f"{label} [{n}]" if long.count(label) > 1 else label for n, label in enumerate(long, 1)]


def _by_variant(section: Section) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in section.rows:
        if isinstance(row, Row):
            found.setdefault(row.labels.variant, []).append(row)
    return found


def _complete(rows: Mapping[str, Mapping[str, list[Row]]], left_out: list[str]) -> dict[str, dict[str, Row]]:
    """Return the blocks: first settings go in which fewer than half of the methods have a rank, then methods."""
    good = {
        label: {v: found[0] for v, found in here.items() if len(found) == 1 and ranked(found[0])}
        for label, here in rows.items()
    }
    every = sorted({v for here in rows.values() for v in here})
    kept = {label: here for label, here in good.items() if 2 * len(here) >= len(every)}
    for label in good.keys() - kept.keys() if kept else ():
        left_out.append(f"setting {label}: {len(good[label])} of {len(every)} methods have a rank in it")
    left_out.sort()
    for variant in every:
        missing = [label for label in kept if variant not in kept[label]]
        if missing:
            more = f" and in {len(missing) - 1} more" if len(missing) > 1 else ""
            left_out.append(f"{variant}: {_why(rows[missing[0]].get(variant, []))} in {missing[0]}{more}")
            for here in kept.values():
                here.pop(variant, None)
    return kept


def _why(found: Sequence[Row]) -> str:
    if not found:
        return "no cells"
    if len(found) > 1:
        return "several configurations"
    return f"no mean ({found[0].why_null})" if found[0].last.mean is None else "fewer than 3 seeds"


def _test(
    values: list[list[float]], average: list[float]
) -> tuple[Friedman | None, float | None, list[tuple[int, ...]], str]:
    n, k = len(values), len(average)
    if n < MIN_SETTINGS:
        return None, None, [], f"{n} settings; a test needs {MIN_SETTINGS}"
    if k < 3:
        return None, None, [], f"{k} methods; a test needs 3"
    found = friedman(values)
    if found is None:
        return None, None, [], "all methods are equal in every setting"
    difference = nemenyi_difference(k, n)
    # without a difference anywhere, pairs are not looked into
    return found, difference, cliques(average, difference if found.rejects else float(k)), ""


def _line(variant: str, rank: float, rows: Sequence[Row]) -> OverallLine:
    if len(rows) < 2:
        return OverallLine(variant, rank, why="fewer than two settings have a gap to close")
    if any(r.gap_closed is None for r in rows):
        if all(r.baseline is not None and r.baseline.row is r.row for r in rows):
            return OverallLine(variant, rank, why="the baseline")
        return OverallLine(variant, rank, why="no gap closed in some setting")
    strata = [_shares(row) for row in rows]
    point = float(iqm([share for shares in strata for share in shares]))
    if sum(len(shares) - 1 for shares in strata) < MIN_FREEDOM:
        return OverallLine(variant, rank, point)
    return OverallLine(variant, rank, point, *iqm_interval(strata))


def _shares(row: Row) -> list[float]:
    """Return the gap closed seed by seed, in shares of the setting's mean gap: their mean is the row's."""
    base = row.baseline
    assert base is not None
    assert row.teacher_top1 is not None
    alone = {seed: base.by_seed[seed] for seed in row.by_seed}
    gap = row.teacher_top1 - sum(v or 0.0 for v in alone.values()) / len(alone)
    return [((row.by_seed[seed] or 0.0) - (alone[seed] or 0.0)) / gap for seed in sorted(alone)]


def _mean(row: Row) -> float:
    assert row.last.mean is not None
    return row.last.mean
