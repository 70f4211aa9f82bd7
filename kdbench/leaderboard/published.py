"""Published accuracies beside the rows of a board, with what differs between their protocol and ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from kdbench.leaderboard.published_file import SELECTION, Entry, comparable, entries, method_of, names

if TYPE_CHECKING:
    from kdbench.leaderboard.rows import Row


@dataclass(frozen=True)
class Published:
    """One published value of a row's method on the row's pair.

    Attributes:
        method: how the source calls it.
        value: top-1, percent; sd: its standard deviation over runs, where the source tells one.
        source: where the value was read.
        selection: which epoch it is of, in words.
        teacher_top1: top-1 of the source's teacher, percent, where it is told.
        difference: ours - theirs, points of top-1 after the last epoch; None without a mean of ours.
        protocol_equal: None where the source leaves open what it did.
        differences: what differs between their protocol and ours, one text each.
        verified: whether the value was read in the source; others are nobody's claim and are not shown.
        remark: what else is to know of the value.
    """

    method: str
    value: float
    sd: float | None
    source: str
    selection: str
    teacher_top1: float | None
    difference: float | None
    protocol_equal: bool | None
    differences: tuple[str, ...]
    verified: bool
    remark: str = ""


def published_for(row: Row, *, unverified: bool = False) -> list[Published]:
    """Return the published values of a row's method on its pair and data set, in the order of the file.

    Values that nobody has read in their source are left out unless `unverified` is set. Architectures with
    constructor arguments of their own are not those of the literature: nothing is compared with them.
    """
    if row.labels.role != "student":
        return []
    found = [e for e in _matching(row) if e.verified or unverified]
    return list(dict.fromkeys(_beside(row, e) for e in found))


def _beside(row: Row, entry: Entry) -> Published:
    told = tuple(_differences(row, entry))
    open_ = not entry.protocol or entry.selection not in ("last_epoch", "best_epoch")
    ours = row.last.mean
    return Published(
        method=entry.method,
        value=entry.top1,
        sd=entry.sd,
        source=entry.source,
        selection=SELECTION[entry.selection],
        teacher_top1=entry.teacher_top1,
        difference=None if ours is None else ours - entry.top1,
        protocol_equal=False if told else None if open_ else True,
        differences=told,
        verified=entry.verified,
        remark=entry.remark,
    )


def _matching(row: Row) -> Iterator[Entry]:
    identity = row.records[0].identity
    method, params = identity.get("method"), {}
    if isinstance(method, Mapping) and isinstance(method.get("params"), Mapping):
        params = method["params"]
    key = (comparable(row.labels.method), row.labels.student, row.labels.teacher)
    for dataset in _datasets(row):
        for entry, needed in _index().get((dataset, *key), ()):
            if all(params.get(name) == value for name, value in needed.items()):
                yield entry


def _datasets(row: Row) -> list[str]:
    part = row.records[0].identity.get("dataset")
    # the identity of a stranger's record may hold anything
    ours = {row.labels.dataset, str(part.get("name")) if isinstance(part, Mapping) else ""}
    return [name for name, known in names()["datasets"].items() if ours & set(known)]


@cache
def _index() -> dict[tuple[Any, ...], list[tuple[Entry, Mapping[str, Any]]]]:
    """Return the entries by data set, method, student and teacher, all but the first as a row names them."""
    out: dict[tuple[Any, ...], list[tuple[Entry, Mapping[str, Any]]]] = {}
    alone = names()["alone"]
    for entry in entries():
        nets = names()["architectures"][entry.dataset]
        student, teacher = nets.get(entry.student), nets.get(entry.teacher)
        if student is None or teacher is None:
            continue
        method, params = method_of(entry.method)
        for label in (teacher, f"{teacher}[pretrained]", f"{teacher}[checkpoint]"):
            out.setdefault((entry.dataset, method, student, label), []).append((entry, params))
        if entry.student_top1 is not None and entry.source.startswith(tuple(alone["sources"])):
            # the same student alone stands in the table of every pair
            lone = replace(
                entry, method="student alone", top1=entry.student_top1, sd=None, teacher_top1=None, remark=""
            )
            out.setdefault((entry.dataset, comparable(alone["method"]), student, None), []).append((lone, {}))
    return out


def _differences(row: Row, entry: Entry) -> Iterator[str]:
    """Yield what a reader must know before comparing; what a source leaves open is not told as a difference."""
    identity = row.records[0].identity
    if entry.selection.startswith("best_epoch"):
        yield f"{SELECTION[entry.selection]} on the test split there, last epoch here"
    data = identity.get("dataset")
    for split, key in (("training", "limit_train"), ("test", "limit_test")):
        limit = data.get(key) if isinstance(data, Mapping) else None
        if limit is not None:
            yield f"all {split} images there, {limit} here"
    if not entry.protocol:
        return
    protocol = names()["protocols"][entry.protocol]
    theirs = {**protocol["recipe"], **protocol["students"].get(entry.student, {})}
    recipe = identity.get("recipe")
    for key, value in theirs.items():
        ours = _at(recipe, key)
        if key == "schedule.milestones":
            ours = _fractions(ours, _at(recipe, "epochs"))
        if ours != value:
            yield f"{key} {_text(value)} there, {_text(ours)} here"


def _at(mapping: Any, key: str) -> Any:
    for part in key.split("."):
        mapping = mapping.get(part) if isinstance(mapping, Mapping) else None
    return mapping


def _fractions(milestones: Any, epochs: Any) -> Any:
    """Epochs and fractions of the training mean the same decays."""
    if isinstance(milestones, list) and all(type(m) is int for m in milestones) and epochs:
        return [m / epochs for m in milestones]
    return milestones


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)
