"""Checks of the training itself: it ends, it learns, at any batch size and precision."""

from __future__ import annotations

from kdbench.engine.phases import own_parameters
from kdbench.testing.trial import Failed, Subject

#: Repetitions of one batch in an epoch of the overfitting run.
REPEATS = 8
#: A phase ends with its last quarter; shorter ones are not judged.
QUARTERS = 4


def finite(subject: Subject) -> str:
    """Train three epochs of two steps; every loss is finite."""
    trial = subject.reference
    if trial.error is not None:
        raise trial.error
    losses = trial.losses()
    names = sorted({k for row in losses for k in row})
    if "loss" not in names:
        raise Failed("a step returned no loss")
    return ", ".join(f"{k} {losses[-1][k]:.4g}" for k in names if k in losses[-1])


def overfits(subject: Subject) -> str:
    """Repeat one batch: in each phase that reads data the total loss falls.

    The mean of the last quarter of a phase is compared with its first step. Adam, because its steps do not grow
    with the scale of a loss; a teacher's route stands still, because its next point is another target.
    """
    eight = tuple(range(8))
    trial = subject.trial(batches=(eight,) * REPEATS, optimizer="adam", lr=1e-3, route_step=0.0)
    losses = [float(loss) for loss in trial.seen.losses]
    seen, done = [], 0
    for phase in trial.phases:
        n = sum(row["steps"] for row in trial.at.rows if row["phase"] == phase.name)
        mine, done = losses[done : done + n], done + n
        if not isinstance(phase.source, str) or n < QUARTERS:
            continue
        last = mine[-(n // QUARTERS) :]
        first, end = mine[0], sum(last) / len(last)
        if not end < first:
            raise Failed(
                f"loss of phase '{phase.name}' goes from {first:.4g} to {end:.4g} in {n} equal steps"
            )
        seen.append(f"{phase.name} {first:.4g} -> {end:.4g}")
    return "; ".join(seen) if seen else "no phase reads the training set: nothing to repeat"


def every_parameter_learns(subject: Subject) -> str:
    """Every trainable parameter is in an optimizer of some phase and receives a gradient that is not zero.

    Every term that ``loss`` returns, a constant aside, depends on something that learns.
    """
    trial = subject.reference
    if trial.error is not None:
        raise trial.error
    seen, method = trial.seen, trial.method
    if not seen.calls:
        raise Failed("run.optimize() was never called")
    idle = seen.terms.idle()
    if idle:
        raise Failed(f"loss/{idle} depends on nothing that learns (detached, or under torch.no_grad?)")
    own = {id(p) for p in own_parameters(method, trial.run)}
    for name, p in method.named_parameters():
        if id(p) in own and id(p) not in seen.driven:
            raise Failed(f"'{name}' is in no phase's optimizer")
        if id(p) in own and id(p) not in seen.reached:
            raise Failed(f"'{name}' never received a gradient")
    student = [p for p in trial.run.student.net.parameters() if id(p) in seen.reached]
    if not student:
        raise Failed("no parameter of the student received a gradient")
    return f"{len(own)} own parameters, {len(student)} of the student"


def odd_batches(subject: Subject) -> str:
    """The last batch of an epoch is smaller than the first."""
    small = _smallest(subject)
    subject.trial(sizes=(small + 3, small), epochs=1)
    return f"batches of {small + 3} and {small}"


def smallest_batch(subject: Subject) -> str:
    """Every batch has two images, or as few as the needs allow."""
    small = _smallest(subject)
    subject.trial(sizes=(small, small), epochs=1)
    return f"batches of {small}"


def autocast(subject: Subject) -> str:
    """Train under bfloat16 autocast."""
    subject.trial(precision="bf16", epochs=1)
    return "finite under bfloat16"


def _smallest(subject: Subject) -> int:
    return max(2, subject.bench.needs.min_batch)
