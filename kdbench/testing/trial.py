"""One trial: a method set up and trained on the bench, with what was observed on the way."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdbench.engine.context import CellRun
from kdbench.engine.contract import ContractError
from kdbench.engine.progress import Progress
from kdbench.engine.seeds import rng_state, seed_everything
from kdbench.engine.trace import is_batchnorm
from kdbench.protocol.method import Method
from kdbench.protocol.types import Phase
from kdbench.testing.bench import Bench, Case
from kdbench.testing.leaks import fresh_start
from kdbench.testing.process import settings
from kdbench.testing.terms import LossTerms, watch_loss

State = dict[str, Tensor]
#: folder of the package kdbench
_HERE = str(Path(__file__).parents[1]) + os.sep


class Failed(Exception):
    """What a check saw."""


def weights(net: nn.Module) -> State:
    """Return a copy of parameters and buffers."""
    return {key: value.detach().clone() for key, value in net.state_dict().items()}


def inplace_flags(net: nn.Module) -> dict[str, bool]:
    """Return the ``inplace`` attribute of every module that has one, by path."""
    return {
        path: m.inplace for path, m in net.named_modules() if isinstance(getattr(m, "inplace", None), bool)
    }


@dataclass
class Seen:
    """What happened in the calls of ``run.optimize``; parameters by id, the run keeps them alive."""

    calls: int = 0
    driven: set[int] = field(default_factory=set)
    reached: set[int] = field(default_factory=set)
    #: total loss of each step
    losses: list[Tensor] = field(default_factory=list)
    #: modules of teachers that were in train mode
    training: list[str] = field(default_factory=list)
    #: what ``loss`` returned
    terms: LossTerms = field(default_factory=LossTerms)


@dataclass
class Trial:
    """A finished trial.

    Attributes:
        teachers: weights of each teacher before ``setup``.
        flags: ``inplace`` flags before ``setup``, per handle.
        states: weights of every student and of the method at the end.
        error: what the training raised, or None.
        rng_setup, rng_end: global random state after ``setup`` and after the training.
        trained_in_setup: modules of teachers that were in train mode after ``setup``.
        changed: settings of the process that differ after the training, as "name: was -> is".
    """

    run: CellRun
    method: Method
    phases: list[Phase]
    at: Progress
    seen: Seen
    teachers: list[State]
    flags: dict[str, dict[str, bool]]
    states: dict[str, State]
    error: BaseException | None
    rng_setup: dict[str, Any]
    rng_end: dict[str, Any]
    trained_in_setup: list[str]
    changed: list[str]

    def losses(self) -> list[dict[str, float]]:
        """Return the means of each epoch."""
        return [row["train"] for row in self.at.rows]


def try_out(
    bench: Bench,
    case: Case | None = None,
    *,
    folder: Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    frozen: bool = False,
    rng_seed: int = 0,
    catch: bool = False,
    **options: Any,
) -> Trial:
    """Set a method up and train it.

    Args:
        case: what the run is given; `options` are fields of it.
        folder: where the checkpoint lies; by default a temporary one.
        should_stop: polled after every step.
        frozen: whether optimizers only compute gradients and change no weight, and layers that mix or drop
            images (BatchNorm, dropout) stay in eval mode.
        rng_seed: of the global generators, before ``setup`` and before the training.
        catch: whether what the training raises is kept in the trial; otherwise it is raised.
    """
    seed_everything(rng_seed, deterministic=False)
    before = settings()
    run = bench.run(case, **options)
    handles = {h.name: h for h in run.handles()}
    teachers = [weights(h.net) for h in run.teachers]
    flags = {name: inplace_flags(h.net) for name, h in handles.items()}
    method = bench.method(run)
    rng_setup = rng_state()
    trained_in_setup = _in_train_mode(run)
    seen = _watch(run, frozen)
    watch_loss(method, seen.terms)
    if frozen:
        for net in (*(h.net for h in run.students.values()), method):
            _hold_still(net)
    error: BaseException | None = None
    with nullcontext(folder) if folder else tempfile.TemporaryDirectory() as place:
        loop = bench.loop(run, method, Path(place), seed=rng_seed, should_stop=should_stop)
        try:
            loop.train()
        except (Exception, SystemExit) as e:
            if not catch:
                raise
            error = e
    states = {name: weights(h.net) for name, h in run.students.items()}
    states["method"] = weights(method)
    after = settings()
    changed = [f"{k}: {v} -> {after[k]}" for k, v in before.items() if after[k] != v]
    return Trial(
        run,
        method,
        loop.phases,
        loop.at,
        seen,
        teachers,
        flags,
        states,
        error,
        rng_setup,
        rng_state(),
        trained_in_setup,
        changed,
    )


def _watch(run: CellRun, frozen: bool) -> Seen:
    """Observe ``run.optimize`` from here on."""
    seen, original = Seen(), run.optimize

    def optimize(loss: Tensor, *names: str, **kw: Any) -> None:
        if frozen:
            loss.backward(retain_graph=kw.get("retain_graph", False))
            return
        original(loss, *names, **kw)
        seen.calls += 1
        for driven in [run.optimizers[n] for n in (names or run.optimizers)]:
            seen.driven.update(id(p) for p in driven.params)
            waiting = (p for p in driven.params if p.grad is not None and id(p) not in seen.reached)
            seen.reached.update(id(p) for p in waiting if bool(p.grad.any()))
        seen.training += _in_train_mode(run)

    log = run.log

    def keep(values: Any) -> None:
        log(values)
        if isinstance(values.get("loss"), Tensor):
            seen.losses.append(values["loss"].detach())

    run.optimize = optimize  # type: ignore[method-assign]
    run.log = keep  # type: ignore[method-assign]
    return seen


def _in_train_mode(run: CellRun) -> list[str]:
    return [
        f"'{path}' of {teacher.name}, a teacher," if path else f"the teacher ({teacher.name})"
        for teacher in run.teachers
        for path, module in teacher.net.named_modules()
        if module.training
    ]


def _hold_still(net: nn.Module) -> None:
    """Put layers that mix or drop images into eval mode, for good."""
    for module in net.modules():
        if is_batchnorm(module) or "Drop" in type(module).__name__:
            module.eval()
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign,assignment,misc]


class Subject:
    """A method under test: its bench, and one trial of it that many checks look at."""

    def __init__(self, bench: Bench, name: str | None = None) -> None:
        self.bench, self.name = bench, name
        #: puts variables of the method's classes and modules back as they are now
        self.start_afresh = fresh_start(bench.cls)

    @cached_property
    def reference(self) -> Trial:
        """The first training of the ordinary case; what it raised is in ``error``."""
        return try_out(self.bench, catch=True)

    def trial(self, **options: Any) -> Trial:
        """Train once more; see :func:`try_out`."""
        return try_out(self.bench, **options)


def raised(e: BaseException) -> str:
    """Return what was raised, and the line of code outside kdbench and torch that raised it."""
    if isinstance(e, ContractError):
        return str(e)  # says where by itself
    frames = [
        f
        for f in traceback.extract_tb(e.__traceback__)
        if "site-packages" not in f.filename and not f.filename.startswith(_HERE)
    ]
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"raised {type(e).__name__}: {e}"[:300] + where
