"""Evaluation of deployables: curves, the three selection rules, extra evaluators."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from kdbench.engine.context import CellRun
from kdbench.errors import DataError
from kdbench.protocol.method import Method
from kdbench.registry import Registry
from kdbench.results.schema import BestEpoch


def deployables(method: Method, run: CellRun) -> dict[str, nn.Module]:
    """Return what the method deploys, checked. The first is the primary one."""
    out = dict(method.deploy(run))
    if not out or not all(isinstance(net, nn.Module) for net in out.values()):
        raise TypeError("deploy() must return {name: nn.Module}, with at least one")
    return out


def evaluate_all(
    method: Method, run: CellRun, *, test: bool = True, by_class: Callable[[Tensor], None] | None = None
) -> dict[str, dict[str, float]]:
    """Return ``{deployable: {"test/top1": ..., "val/top1": ...}}`` with every metric of the task.

    Without `test` only the validation split counts, and there must be one: raises DataError otherwise. `by_class`
    gets the confusion counts of the primary deployable on the test split, where the task has them.
    """
    results: dict[str, dict[str, float]] = {}
    splits = ["val"] if "val" in run.task_data.splits else []
    if not (splits or test):
        raise DataError(f"{run.data.name}: a search needs a validation split, and there is none")
    splits += ["test"] if test else []
    for name, deployed in deployables(method, run).items():
        net = deployed if run.divider is None else run.divider.wrap(deployed)
        row: dict[str, float] = {}
        for split in splits:
            task, images = run.task, run.task_data.splits[split]
            with run.amp():
                if by_class is not None and split == "test" and not results:
                    metrics, counts = task.evaluate_classes(net, images, run.task_data)
                    if counts is not None:
                        by_class(counts)
                else:
                    metrics = task.evaluate(net, images, run.task_data)
            row.update({f"{split}/{k}": v for k, v in metrics.items()})
        results[name] = row
    return results


def best_epoch(rows: list[dict[str, Any]], name: str, by: str, metric: str, higher: bool) -> BestEpoch | None:
    """Return the first epoch at which ``by/metric`` is best, with its test value; None without that split."""
    sign = 1 if higher else -1
    best: tuple[float, dict[str, Any], int] | None = None
    for row in rows:
        values: Mapping[str, float] | None = row.get("eval", {}).get(name)
        if values is None or f"{by}/{metric}" not in values:
            continue
        score = sign * values[f"{by}/{metric}"]
        if best is None or score > best[0]:
            best = (score, dict(values), row["epoch"])
    if best is None:
        return None
    _, values, epoch = best
    return BestEpoch(epoch=epoch, by=values[f"{by}/{metric}"], top1=values[f"test/{metric}"])


def run_evaluators(
    registry: Registry, names: list[str], net: nn.Module, run: CellRun
) -> tuple[dict[str, float], list[str]]:
    """Return the numbers of the named evaluators on the test split, and a warning per evaluator that failed."""
    numbers: dict[str, float] = {}
    warnings: list[str] = []
    for name in names:
        found = registry.get("evaluators", name)
        if getattr(found.entry, "needs_teacher", False) and not run.teachers:
            continue
        try:
            given = found.load()(run, net, run.task_data.splits["test"])
            bad = {k: v for k, v in given.items() if not math.isfinite(v)}
            warnings += [f"evaluator '{name}': {k} is {v}, left out"[:300] for k, v in bad.items()]
            numbers.update({k: v for k, v in given.items() if k not in bad})
        except Exception as e:
            warnings.append(f"evaluator '{name}' failed: {type(e).__name__}: {e}"[:300])
    return numbers, warnings
