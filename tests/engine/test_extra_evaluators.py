"""Extra measurements: one that fails, or gives no finite number, costs a warning and not the cell."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

from kdbench.engine.context import CellRun
from kdbench.engine.evaluation import run_evaluators


class Registry:
    """Evaluators by name."""

    def __init__(self, **evaluators: Any) -> None:
        self.evaluators = evaluators

    def get(self, kind: str, name: str) -> Any:
        assert kind == "evaluators"
        return SimpleNamespace(entry=SimpleNamespace(needs_teacher=False), load=lambda: self.evaluators[name])


def fails(run: Any, net: Any, split: Any) -> dict[str, float]:
    raise ZeroDivisionError("no images")


def test_what_is_not_finite_is_left_out_and_told(run: CellRun) -> None:
    registry: Any = Registry(
        odd=lambda *_: {"ratio": math.nan, "length": math.inf, "angle": 0.5},
        fine=lambda *_: {"agreement": 90.0},
        fails=fails,
    )
    numbers, warnings = run_evaluators(registry, ["odd", "fine", "fails"], run.student.net, run)
    assert numbers == {"angle": 0.5, "agreement": 90.0}
    assert warnings == [
        "evaluator 'odd': ratio is nan, left out",
        "evaluator 'odd': length is inf, left out",
        "evaluator 'fails' failed: ZeroDivisionError: no images",
    ]
