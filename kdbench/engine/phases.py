"""Phases of a run: validation of what a method declares, and the division of the epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from kdbench.engine.context import CellRun
from kdbench.protocol.method import Method
from kdbench.protocol.types import Opt, Phase


def epochs_of(phases: Sequence[Phase], epochs: int) -> list[int]:
    """Return the epochs of each phase.

    Integer budgets are taken as they are; shares of `epochs` are rounded so that their sum keeps, and each
    phase with a positive share gets at least one epoch.
    """
    out: list[int] = []
    exact = done = 0.0
    for phase in phases:
        if isinstance(phase.budget, bool) or phase.budget <= 0:
            raise ValueError(f"phase '{phase.name}': budget must be a positive share or number of epochs")
        if isinstance(phase.budget, int):
            out.append(phase.budget)
            continue
        exact += phase.budget * epochs
        n = max(1, round(exact) - int(done))
        done += n
        out.append(n)
    return out


def checked(phases: Sequence[Phase]) -> list[Phase]:
    """Return the phases; raises ValueError for none, or for two of one name."""
    names = [p.name for p in phases]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"phases() must return phases with distinct names, got {names}")
    return list(phases)


def optimizers_of(phase: Phase, method: Method, run: CellRun) -> dict[str, Opt]:
    """Return the named optimizers of a phase; by default one for the student and the method's own modules."""
    if phase.optimizers is not None:
        return dict(phase.optimizers)
    return {"main": Opt((run.student.net, *own_parameters(method, run)))}


def own_parameters(method: Method, run: CellRun) -> list[nn.Parameter]:
    """Return the method's trainable parameters that belong to no handle."""
    foreign = {id(p) for h in run.handles() for p in h.net.parameters()}
    return [p for p in method.parameters() if p.requires_grad and id(p) not in foreign]


def extra_parameters(method: Method, run: CellRun) -> int:
    """Return how many trainable parameters exist besides the student's (connectors, peers, generators)."""
    student = {id(p) for p in run.student.net.parameters()}
    peers = {id(p): p for h in run.students.values() for p in h.net.parameters() if id(p) not in student}
    own = {id(p): p for p in own_parameters(method, run)}
    everything: dict[int, Any] = {**peers, **own}
    return sum(p.numel() for p in everything.values())
