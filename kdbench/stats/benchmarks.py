"""Two runs of the benchmark suite, as pytest-benchmark's JSON, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kdbench.stats.differences import Difference, ratio_of_medians

#: Standard error of a median over that of a mean, and interquartile range over standard deviation (normal).
_MEDIAN, _IQR = 1.2533, 1.349


@dataclass(frozen=True)
class BenchLine:
    """One benchmark of both runs.

    Attributes:
        name: ``file::test[parameters]``.
        time: ratio new / old of the time of a round, more is slower; None on other hardware.
        ratio: factor by which the benchmark's own ratio got worse, new against old. It takes that ratio against a
            baseline of the same run, so it holds on any machine; None where there is none.
    """

    name: str
    time: Difference | None
    ratio: float | None

    def slower(self, limit: float) -> bool:
        """Whether the benchmark got slower by more than the factor `limit`.

        By its own ratio where it has one; else by its time, if the interval leaves out 1.
        """
        if self.ratio is not None:
            return self.ratio > limit
        return self.time is not None and self.time.significant and self.time.value > limit


@dataclass(frozen=True)
class BenchComparison:
    """All lines; `missing` are benchmarks that only the old run has, `uncompared` those without any number."""

    lines: list[BenchLine]
    missing: list[str] = field(default_factory=list)
    uncompared: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def compare_benchmarks(old: Mapping[str, Any], new: Mapping[str, Any]) -> BenchComparison:
    """Compare two runs; times only where both ran on the same hardware."""
    places = [hardware(run) for run in (old, new)]
    same = places[0] == places[1]
    notes = [] if same else [f"times not compared: the baseline ran on {places[0]}, this run on {places[1]}"]
    versions = [{**run.get("kdbench", {}), **run.get("machine_info", {})} for run in (old, new)]
    for name in ("kdbench", "torch", "timm", "python"):
        left, right = (v.get(name) for v in versions)
        # a file that was not written by `kdbench bench` does not tell all versions
        if left != right and left is not None and right is not None:
            notes.append(f"{name}: {left} in the baseline, {right} now")
    before = {b["fullname"]: b for b in old["benchmarks"]}
    after = {b["fullname"]: b for b in new["benchmarks"]}
    lines = [_line(name, before[name], b, same) for name, b in after.items() if name in before]
    return BenchComparison(
        lines=lines,
        missing=[name for name in before if name not in after],
        uncompared=[line.name for line in lines if line.time is None and line.ratio is None],
        notes=notes,
    )


def hardware(run: Mapping[str, Any]) -> str:
    """Return the devices of a run, as far as they are known."""
    machine = run.get("machine_info", {})
    cpu = machine.get("cpu")
    # pytest-benchmark's own form, or that of this project's suite
    name, cores = (
        (cpu.get("brand_raw"), cpu.get("count")) if isinstance(cpu, Mapping) else (cpu, machine.get("cores"))
    )
    gpu = run.get("kdbench", {}).get("gpu") or machine.get("gpu")
    parts = [f"{name}, {cores} cores" if cores else name, gpu]
    return " and ".join(str(part) for part in parts if part) or "unknown hardware"


def _line(name: str, old: Mapping[str, Any], new: Mapping[str, Any], same: bool) -> BenchLine:
    return BenchLine(name, _time(old["stats"], new["stats"]) if same else None, _own(old, new))


def _own(old: Mapping[str, Any], new: Mapping[str, Any]) -> float | None:
    """Return how much worse the ratio got: ``ratio`` is a cost, ``speedup`` a gain."""
    for key, sign in (("ratio", 1), ("speedup", -1)):
        values = [b.get("extra_info", {}).get(key) for b in (old, new)]
        if all(isinstance(v, (int, float)) and v > 0 for v in values):
            return float((values[1] / values[0]) ** sign)
    return None


def _time(old: Mapping[str, Any], new: Mapping[str, Any]) -> Difference:
    """Compare medians: by the rounds where both runs kept them, else by the quartiles, as of normal values."""
    if old.get("data") and new.get("data"):
        return ratio_of_medians([float(t) for t in old["data"]], [float(t) for t in new["data"]])
    a, b = float(old["median"]), float(new["median"])
    errors = [_relative_error(stats) for stats in (old, new)]
    rounds = min(int(stats.get("rounds", 1)) for stats in (old, new))
    low = high = None
    if errors[0] is not None and errors[1] is not None:
        half = 1.96 * math.hypot(*errors)  # type: ignore[arg-type]
        low, high = b / a * math.exp(-half), b / a * math.exp(half)
    return Difference(rounds, a, b, b / a, low, high, 1.0)


def _relative_error(stats: Mapping[str, Any]) -> float | None:
    rounds, iqr = int(stats.get("rounds", 1)), stats.get("iqr")
    if rounds < 3 or iqr is None:
        return None
    return float(_MEDIAN * float(iqr) / _IQR / math.sqrt(rounds) / float(stats["median"]))
