"""Checks of what a method declares to need: refused where it is missing, and nothing else is used."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

from kdbench.engine.build import setup_method
from kdbench.engine.context import CellRun
from kdbench.engine.optim import build_optimizers
from kdbench.engine.phases import checked, optimizers_of
from kdbench.errors import KdbenchError
from kdbench.protocol.types import NotApplicable
from kdbench.testing.bench import Bench, Case
from kdbench.testing.stream import Undeclared
from kdbench.testing.trial import Failed, Subject, raised

#: No BatchNorm, tokens in place of maps, no activation at the end of a stage.
TOKENS = "timm:test_vit"
#: Networks of different widths.
WIDTHS = ("timm:test_efficientnet", "timm:test_resnet")


def refused(subject: Subject) -> str:
    """Where something that the method declares to need is missing, the cell is not applicable, with a reason."""
    bench, reasons = subject.bench, []
    for what, case in _violations(bench):
        try:
            _set_up(bench, bench.run(case))
        except NotApplicable as e:
            if not str(e).strip():
                raise Failed(f"{what}: NotApplicable without a reason") from e
            reasons.append(what)
        except Exception as e:
            raise Failed(f"{what}: {raised(e)}, expected NotApplicable") from e
        else:
            raise Failed(f"{what}: the method sets up as if it were there")
    return f"refused: {', '.join(reasons)}" if reasons else "nothing declared that can be missing"


def _violations(bench: Bench) -> list[tuple[str, Case]]:
    needs = bench.needs
    out: list[tuple[str, Case]] = []
    if needs.teachers:
        out.append(("one teacher too few", Case(without="teacher")))
    if needs.assistants:
        out.append(("no assistant", Case(without="assistant")))
    if needs.route:
        out.append(("no training route", Case(without="route")))
    if needs.capabilities:
        out.append(("a task that offers nothing", Case(without="capabilities")))
    if needs.min_batch > 1:
        out.append((f"batches of {needs.min_batch - 1}", Case(batch_size=needs.min_batch - 1)))
    if needs.min_classes > 2:
        out.append((f"{needs.min_classes - 1} classes", Case(classes=needs.min_classes - 1)))
    if needs.teacher_bn:
        out.append(("a teacher without BatchNorm", Case(teacher=TOKENS)))
    if needs.stage_end_act:
        out.append(("a teacher without activations at stage ends", Case(teacher=TOKENS)))
    if needs.equal_channels:
        out.append(("unequal channels", Case(student=_other_widths(bench.teacher))))
    return out


def _other_widths(teacher: str) -> str:
    return next(name for name in WIDTHS if name != teacher)


def _set_up(bench: Bench, run: CellRun) -> Any:
    """Set up as a cell does, which also asks where the teachers come from."""
    source = SimpleNamespace(source="cell" if run.route else "pretrained")
    cell: Any = SimpleNamespace(method="method", params=_plain(bench), teachers=[source])
    registry: Any = SimpleNamespace(get=lambda kind, name: SimpleNamespace(load=lambda: bench.cls))
    return setup_method(registry, cell, run)


def _plain(bench: Bench) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(bench.cls.Params).dump_python(bench.params, mode="json")


def other_networks(subject: Subject) -> str:
    """On other networks and for two classes the method works, or says in ``setup`` why it cannot."""
    cases = {
        "2 classes": Case(classes=2),
        "a teacher of tokens, without BatchNorm": Case(teacher=TOKENS),
        "a student of other widths": Case(student=_other_widths(subject.bench.teacher)),
        "networks without stages": Case(without="stages"),
    }
    works, refuses = [], []
    for what, case in cases.items():
        run = subject.bench.run(case)
        try:
            subject.bench.method(run)
        except NotApplicable as e:
            if not str(e).strip():
                raise Failed(f"{what}: NotApplicable without a reason") from e
            refuses.append(f"{what} ({e})")
            continue
        except Exception as e:
            raise Failed(f"{what}: setup() {raised(e)}") from e
        try:
            trial = subject.trial(case=case, epochs=1, sizes=(8,))
        except Exception as e:
            raise Failed(f"{what}: the training {raised(e)}") from e
        if not all(math.isfinite(v) for row in trial.losses() for v in row.values()):
            raise Failed(f"{what}: a loss is not finite")
        works.append(what)
    parts = [f"works: {', '.join(works)}"] if works else []
    return "; ".join([*parts, f"refuses {'; '.join(refuses)}"] if refuses else parts)


def nothing_undeclared(subject: Subject) -> str:
    """Trains without what the needs do not name, and the planner can set it up without any data."""
    bench = subject.bench
    try:
        run = bench.run(probing=True)
        method = bench.method(run)
        for phase in checked(method.phases(run)):
            build_optimizers(optimizers_of(phase, method, run), run.recipe, epochs=1, steps_per_epoch=1)
    except Exception as e:
        raise Failed(f"without data, as the planner does it, setup() {raised(e)}") from e
    needs = bench.needs
    missing = [name for name, there in (("index", needs.index), ("labels", needs.labels)) if not there]
    if needs.teachers and needs.reads in ("logits", "pooled"):
        missing.append("features of teachers" if needs.reads == "pooled" else "more of teachers than logits")
    if needs.data == "none":
        missing = ["training images"]
    if not missing:
        return "the planner can set it up"
    try:
        subject.trial(without="undeclared", epochs=1)
    except Undeclared as e:
        raise Failed(str(e)) from e
    except Exception as e:
        raise Failed(f"without {' and '.join(missing)}, which the needs do not name: {raised(e)}") from e
    return f"trains without {' and '.join(missing)}"


def entry_agrees(subject: Subject) -> str:
    """The registry's entry declares the needs of the class."""
    assert subject.name is not None
    try:
        entry = subject.bench.registry.get("methods", subject.name).entry
    except KdbenchError as e:
        raise Failed(str(e)) from e
    if getattr(entry, "needs", None) != subject.bench.cls.needs:
        raise Failed("MethodEntry.needs differs from the class's needs")
    return "entry and class agree"
