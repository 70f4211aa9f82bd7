"""Whether a cell that was run again agrees with its record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.leaderboard.rows import make_rows, top1
from kdbench.leaderboard.text import number
from kdbench.stats.prediction import prediction_interval

if TYPE_CHECKING:
    from kdbench.results.schema import Deployable, Record

#: Facts of the environment that change no bit of a result.
_IDLE = frozenset({"cpu_count", "device_memory_mb"})
#: Points of top-1 by which two machines may evaluate the same weights differently.
SAME_WEIGHTS = 0.1
#: Statuses that say something of the machine, not of the method.
_OF_THE_MACHINE = frozenset({"oom", "timeout", "crashed", "interrupted", "failed"})


@dataclass(frozen=True)
class Agreement:
    """The verdict.

    Attributes:
        agrees: None where it cannot be told.
        exact: the weights are equal, or what is compared is no network; else agreeing is being compatible only.
        reason: why, in one line.
        metrics: a line for each metric that differs.
        environment: a line for each fact of the environment, or code, that differs.
        unmeasured: metrics of the record that were not measured again.
    """

    agrees: bool | None
    reason: str
    metrics: tuple[str, ...]
    environment: tuple[str, ...]
    unmeasured: tuple[str, ...]
    exact: bool = True


def agreement(old: Record, new: Record, board: Sequence[Record]) -> Agreement:
    """Compare the record `old` with `new`, the same cell run again; `board` are the records around `old`.

    Equal weights and metrics agree anywhere. In an equal environment with deterministic algorithms on a CPU
    nothing less does. Elsewhere top-1 after the last epoch has to lie in the 95 % prediction interval over the
    seeds of the record's row.
    """
    if new.status != old.status or old.status != "done":
        return _of_statuses(old, new)
    a, b = _metrics(old), _metrics(new)
    apart = tuple(f"{key}: {a[key]} there, {b[key]} here" for key in a if key in b and a[key] != b[key])
    unmeasured = tuple(key for key in a if key not in b)
    differ = environment_differences(old, new)
    equal = old.weights_sha256 == new.weights_sha256

    def verdict(agrees: bool | None, reason: str) -> Agreement:
        return Agreement(agrees, reason, apart, differ, unmeasured, exact=equal)

    if equal and old.weights_sha256 is not None and not apart:
        return verdict(True, f"bit-equal: the weights and {len(a) - len(unmeasured)} metrics")
    what = "the metrics differ on equal weights" if equal else "the weights differ"
    if not differ and _repeats(old):
        return verdict(False, f"{what}, in an equal environment with deterministic algorithms on the CPU")
    if equal and abs((top1(old) or 0.0) - (top1(new) or 0.0)) > SAME_WEIGHTS:
        return verdict(False, f"{what}, by more than another machine's rounding can make of it")
    return verdict(*_by_seeds(old, new, board, what))


def _of_statuses(old: Record, new: Record) -> Agreement:
    differ = environment_differences(old, new)
    why = f" ({new.error.message.splitlines()[0][:200]})" if new.error and new.error.message else ""
    reason = f"the record is {old.status}, here the cell ended as {new.status}{why}"
    agrees: bool | None = new.status == old.status
    if not agrees and new.status in _OF_THE_MACHINE:
        agrees = None
    return Agreement(agrees, reason, (), differ, ())


def _repeats(record: Record) -> bool:
    return record.environment.get("device") == "cpu" and record.environment.get("deterministic") is True


def _by_seeds(old: Record, new: Record, board: Sequence[Record], what: str) -> tuple[bool | None, str]:
    mine = next((r for r in make_rows(board) if any(c.cell_id == old.cell_id for c in r.records)), None)
    values = [v for r in (mine.records if mine else ()) if (v := top1(r)) is not None]
    interval, value = prediction_interval(values), top1(new)
    if interval is None or value is None:
        return None, f"{what}, and fewer than 2 seeds of its row are there to say how far seeds lie apart"
    # no more than all images can be right, and no fewer than none
    low, high = max(interval[0], 0.0), min(interval[1], 100.0)
    inside = low <= value <= high
    where = f"{'within' if inside else 'outside'} {number(low, 2)} to {number(high, 2)} %"
    return (
        inside,
        f"{what}; top-1 {number(value, 2)} % is {where}, where {len(values)} seeds predict one more",
    )


def environment_differences(old: Record, new: Record) -> tuple[str, ...]:
    """Return a line for each fact of the environment, and each part's code, that differs."""
    a, b = old.environment, new.environment
    keys = [k for k in dict.fromkeys([*a, *b]) if k not in _IDLE and a.get(k) != b.get(k)]
    out = [f"{key}: {a.get(key)} there, {b.get(key)} here" for key in keys]
    for part in dict.fromkeys([*old.plugins, *new.plugins]):
        there, here = old.plugins.get(part), new.plugins.get(part)
        if there is None or here is None:
            continue
        if (there.distribution, there.version) != (here.distribution, here.version):
            out.append(
                f"{part}: {there.distribution} {there.version} there, {here.distribution} {here.version} here"
            )
        elif there.code and here.code and there.code != here.code:
            out.append(f"{part}: other code of {here.distribution} {here.version}")
    return tuple(out)


def _metrics(record: Record) -> dict[str, float | None]:
    out: dict[str, float | None] = {}
    for name, net in record.deployables.items():
        out |= {f"{name}/{key}": value for key, value in _of_net(net).items()}
    return out


def _of_net(net: Deployable) -> dict[str, float | None]:
    found: dict[str, float | None] = {f"last/{key}": value for key, value in net.last.items()}
    for rule in ("best_val", "best_test"):
        best = getattr(net, rule)
        if best is not None:
            found |= {f"{rule}/epoch": best.epoch, f"{rule}/by": best.by, f"{rule}/top1": best.top1}
    return found
