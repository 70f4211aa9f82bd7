"""Checks of the loss's value: golden values, and a mean over the batch."""

from __future__ import annotations

import math
from typing import Any

import torch

from kdbench.protocol.types import Golden
from kdbench.testing.trial import Failed, Subject, Trial

#: Largest relative difference between a sum over images and the sum of its parts: a few roundings of float32, for
#: losses that compare images may come near a sum where all probabilities are alike.
EQUAL = 2e-5
#: Losses below are not judged.
SMALLEST = 1e-9


def golden(subject: Subject) -> str:
    """The method's own golden values come out."""
    items = list(subject.bench.cls.golden())
    for item in items:
        if not isinstance(item, Golden):
            raise Failed(f"golden() returns a {type(item).__name__}, expected kdbench.api.Golden")
        _compare(item)
    return f"{len(items)}: {'; '.join(item.name for item in items)}" if items else "none declared"


def _compare(item: Golden) -> None:
    try:
        value = item.value()
    except Exception as e:
        raise Failed(f"'{item.name}' raised {type(e).__name__}: {e}") from e
    got, want = _tensor(value), _tensor(item.expected)
    if got.shape != want.shape:
        raise Failed(f"'{item.name}' has shape {tuple(got.shape)}, expected {tuple(want.shape)}")
    # where the value must be 0, rounding errors have no relative size
    if not torch.allclose(got, want, rtol=item.rtol, atol=item.rtol * 1e-3):
        at = int((got - want).abs().flatten().nan_to_num(math.inf).argmax())
        raise Failed(
            f"'{item.name}' gives {float(got.flatten()[at]):.8g}, expected {float(want.flatten()[at]):.8g} "
            f"({item.source})"
        )


def _tensor(value: Any) -> torch.Tensor:
    return torch.as_tensor(value).detach().to(torch.float64)


def mean_over_batch(subject: Subject) -> str:
    """No loss is a sum over the images of a batch, which would tie its weight to the batch size.

    The first losses of each phase on 8 images, on 8 others and on all 16, with equal weights and with no layer
    that mixes images: a sum over images gives for all what it gives for both parts together. A mean gives half
    of it; a loss that compares images, however it is scaled, gives something else.
    """
    halves = tuple(range(8)), tuple(range(8, 16))
    one, other, both = (
        _first_losses(subject.trial(batches=(batch,), images=16, batch_size=8, epochs=1, frozen=True))
        for batch in (*halves, halves[0] + halves[1])
    )
    judged = 0
    for name, value in one.items():
        if name not in other or name not in both:
            continue
        total = value + other[name]
        if abs(total) < SMALLEST:
            continue
        judged += 1
        if abs(both[name] - total) < EQUAL * abs(total):
            raise Failed(
                f"{name} is a sum over the images: {value:.5g} and {other[name]:.5g} on 8 images each, "
                f"{both[name]:.5g} on the 16"
            )
    return f"{judged} losses, none a sum over images"


def _first_losses(trial: Trial) -> dict[str, float]:
    """Return the losses of the first step of each phase, by phase and name."""
    out: dict[str, float] = {}
    for row in trial.at.rows:
        for name, value in row["train"].items():
            if name.startswith("loss/"):
                out.setdefault(f"{row['phase']}: {name}", value)
    return out
