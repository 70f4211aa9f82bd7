"""Checks that teachers stay as they were."""

from __future__ import annotations

import torch

from kdbench.testing.trial import Failed, State, Subject, Trial


def untouched(subject: Subject) -> str:
    """Parameters and buffers equal bit for bit, no gradient, no optimizer, eval mode."""
    trial = subject.reference
    driven = trial.seen.driven
    # first, because statistics of BatchNorm drift in train mode
    for modules, when in ((trial.trained_in_setup, "setup()"), (trial.seen.training, "a step")):
        if modules:
            raise Failed(f"{modules[0]} was put into train mode in {when}")
    moved = changed(trial)
    if moved:
        raise Failed(moved)
    for handle in trial.run.teachers:
        for path, p in handle.net.named_parameters():
            if id(p) in driven:
                raise Failed(f"'{path}' of the teacher is in an optimizer")
            if p.requires_grad or p.grad is not None:
                raise Failed(f"'{path}' of the teacher has, or asks for, a gradient")
        if any(m.training for m in handle.net.modules()):
            raise Failed(f"{handle.name} is in train mode at the end")
    n = len(trial.run.teachers)
    return f"{n} teacher(s), parameters and buffers equal bit for bit" if n else "no teacher"


def changed(trial: Trial) -> str:
    """Return what changed of the weights and buffers of the teachers, or an empty string."""
    for k, handle in enumerate(trial.run.teachers):
        allowed = [trial.teachers[k]]
        if k == 0:
            allowed += [dict(load()) for load in trial.run.route]
        moved = [_moved(dict(handle.net.state_dict()), state) for state in allowed]
        if all(moved):
            return f"'{moved[0]}' of {handle.name}, a teacher, changed"
    return ""


def _moved(state: State, old: State) -> str:
    """Return the first key that differs, or an empty string."""
    if state.keys() != old.keys():
        return next(iter(state.keys() ^ old.keys()))
    return next((key for key, value in state.items() if not torch.equal(value, old[key])), "")
