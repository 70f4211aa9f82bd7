"""Checks that a cell neither depends on what ran before it nor leaves a trace in the process."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdbench.testing.process import seeding_watched
from kdbench.testing.trial import Failed, Subject, Trial

#: Sizes and seed of the cell in between: other images, other weights, another number of steps.
OTHER: dict[str, Any] = {"sizes": (8, 8, 8), "seed": 3, "variant": 1, "rng_seed": 99, "epochs": 1}
#: Of the global generators, in two trials.
SEEDS = (11, 12)


def generators_left_alone(subject: Subject) -> str:
    """Global generators are drawn from, never seeded: where they end depends on where they began."""
    ends: list[Trial] = []
    seeds: list[int] = []
    for seed in SEEDS:
        with seeding_watched() as calls:
            trial = subject.trial(epochs=1, sizes=(8,), rng_seed=seed)
        if calls:
            raise Failed(f"the method calls {calls[0]}")
        ends.append(trial)
        seeds.append(torch.initial_seed())
    a, b = ends
    for name in ("torch", "numpy", "python"):
        for when in ("rng_setup", "rng_end"):
            if _equal(getattr(a, when)[name], getattr(b, when)[name]):
                stage = "setup()" if when == "rng_setup" else "the training"
                raise Failed(f"{stage} leaves {name}'s generator in one state, whatever it was seeded with")
    if seeds != [*SEEDS]:
        raise Failed(f"torch's generator is seeded with {seeds[0]} after the training")
    return "never seeded"


def settings_left_alone(subject: Subject) -> str:
    """Settings of the process (grad mode, default dtype, threads, ...) are as before."""
    changed = subject.reference.changed
    if changed:
        raise Failed(f"the training changes {changed[0]}")
    return "as before"


def any_position(subject: Subject) -> str:
    """Trained alone, and again after another cell, the weights are equal bit for bit."""
    alone = subject.reference.states
    # so that the other cell is the first to fill a cache, which the reference has filled before
    subject.start_afresh()
    subject.trial(**OTHER)
    again = subject.trial().states
    for owner, state in alone.items():
        for key, value in state.items():
            if not torch.equal(value, again[owner][key]):
                raise Failed(f"'{key}' of {owner} differs when another cell was trained before")
    return "alone and after another cell: equal bit for bit"


def memory(subject: Subject) -> str:
    """Networks of a finished cell are freed, and no tensor stays behind."""
    counts = []
    gc.collect()
    gc.freeze()  # what is there already need not be looked at again
    try:
        # what the first cell makes and keeps for all is no growth
        for _ in range(3):
            held = _one_cell(subject)
            gc.collect()
            for name, ref in held:
                if ref() is not None:
                    raise Failed(f"{name} of a finished cell is still in memory")
            counts.append(_live_tensors())
    finally:
        gc.unfreeze()
    (first, first_bytes), (last, last_bytes) = counts[0], counts[-1]
    if last > first or last_bytes > first_bytes:
        raise Failed(f"two more cells leave {last - first} tensors, {last_bytes - first_bytes} bytes behind")
    return "freed; two more cells leave no tensor behind"


def _one_cell(subject: Subject) -> list[tuple[str, Any]]:
    """Train a cell and return weak references to what must go with it."""
    trial = subject.trial(epochs=1, sizes=(8,))
    trial.run.close()
    held: list[tuple[str, Any]] = [(h.name, h.net) for h in trial.run.handles()]
    held.append(("the method", trial.method))
    held += [(f"the method's '{path}'", m) for path, m in trial.method.named_children()]
    return [(name, weakref.ref(thing)) for name, thing in held]


def _live_tensors() -> tuple[int, int]:
    """Return number and bytes of the tensors that the garbage collector sees; shared storage counts once."""
    number, storages = 0, {}
    for thing in gc.get_objects():
        # isinstance() would ask lazy proxies of other packages for their class
        if issubclass(type(thing), Tensor):
            number += 1
            if thing.layout == torch.strided and thing.device.type == "cpu":
                storage = thing.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return number, sum(storages.values())


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
