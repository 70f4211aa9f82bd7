"""Checks of what a method holds and leaves behind: registered state, hooks, flags, resume."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.engine.progress import Interrupted
from kdbench.testing.checks.teacher import changed
from kdbench.testing.trial import Failed, Subject, Trial, inplace_flags

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
)


def registered(subject: Subject) -> str:
    """Parameters and modules that the method holds are registered with it."""
    method = subject.reference.method
    known = {id(p) for p in method.parameters()} | {id(b) for b in method.buffers()}
    for name, value in vars(method).items():
        if name.startswith("_") and name in vars(nn.Module()):
            continue
        for item in _items(value):
            if isinstance(item, nn.Module):
                raise Failed(f"self.{name} holds a module in a plain {type(value).__name__}")
            learns = isinstance(item, nn.Parameter) or (
                isinstance(item, Tensor) and item.is_leaf and item.requires_grad
            )
            if learns and id(item) not in known:
                raise Failed(f"self.{name} holds a parameter that the module does not register")
    return "all registered"


def _items(value: Any, depth: int = 0) -> Iterator[Any]:
    """Walk lists, tuples, sets and mappings."""
    if isinstance(value, Mapping) and depth < 3:
        for item in value.values():
            yield from _items(item, depth + 1)
    elif isinstance(value, (list, tuple, set, frozenset)) and depth < 3:
        for item in value:
            yield from _items(item, depth + 1)
    else:
        yield value


def no_hooks(subject: Subject) -> str:
    """No hook is left on a network, a parameter of it, or its ``forward`` when the run is closed."""
    run = subject.reference.run
    run.close()
    for handle in run.handles():
        for path, module in handle.net.named_modules():
            where = f"'{path}' of {handle.name}" if path else handle.name
            if any(getattr(module, kind, None) for kind in _HOOKS):
                raise Failed(f"a hook is left on {where}")
            if "forward" in vars(module):
                raise Failed(f"forward() of {where} is replaced")
        for path, p in handle.net.named_parameters():
            if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None):
                raise Failed(f"a hook is left on parameter '{path}' of {handle.name}")
    return "none left"


def inplace_restored(subject: Subject) -> str:
    """Modules of all networks are in place or not as they were made."""
    trial = subject.reference
    total = 0
    for handle in trial.run.handles():
        old = trial.flags.get(handle.name)
        if old is None:
            continue
        for path, flag in inplace_flags(handle.net).items():
            total += 1
            if path in old and old[path] != flag:
                raise Failed(f"inplace of '{path}' of {handle.name}: {old[path]} -> {flag}")
    return f"{total} flags as they were"


def resumes(subject: Subject) -> str:
    """Cut in the middle of an epoch and between two phases, go on from the checkpoint: equal bit for bit."""
    straight = subject.reference
    steps = straight.at.global_step
    rows = straight.at.rows
    first = rows[0]["steps"]
    ends = [sum(r["steps"] for r in rows[: i + 1]) for i in range(len(rows) - 1)]
    turns = [e for e, a, b in zip(ends, rows, rows[1:], strict=False) if a["phase"] != b["phase"]]
    cuts = sorted({min(first + 1, steps - 1), *(t + 1 for t in turns[-1:] if t + 1 < steps)} - {0})
    for cut in cuts:
        _cut(subject, cut)
    return (
        f"cut after {' and '.join(map(str, cuts))} of {steps} steps: equal bit for bit"
        if cuts
        else "one step"
    )


def _cut(subject: Subject, cut: int) -> None:
    straight = subject.reference
    done = 0

    def stop() -> bool:
        nonlocal done
        done += 1
        return done == cut

    with tempfile.TemporaryDirectory() as folder:
        with contextlib.suppress(Interrupted):
            subject.trial(folder=Path(folder), should_stop=stop)
        resumed = subject.trial(folder=Path(folder))
    try:
        _compare(straight, resumed)
    except Failed as e:
        # a teacher starts anew from its file: what it became is lost
        because = "; the teacher changes, see 'teacher untouched'" if changed(straight) else ""
        raise Failed(f"{e}{because}") from e


def _compare(straight: Trial, resumed: Trial) -> None:
    for owner, state in straight.states.items():
        for key, value in state.items():
            if not torch.equal(value, resumed.states[owner][key]):
                raise Failed(f"'{key}' differs after a cut and a resume")
    for row, old in zip(resumed.losses(), straight.losses(), strict=True):
        for key, number in old.items():
            if row[key] != number:
                raise Failed(f"{key} differs after a cut and a resume: {row[key]:.6g} for {number:.6g}")
