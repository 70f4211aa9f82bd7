"""How far a run is, and that it was cut."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class Interrupted(Exception):
    """The user asked to stop; the state is on disk."""


@dataclass
class Progress:
    """Where a run is: what a checkpoint says besides tensors."""

    phase: int = 0
    epoch: int = 0
    step: int = 0
    global_step: int = 0
    total_epochs: int = 0
    images: int = 0
    train_s: float = 0.0
    eval_s: float = 0.0
    log_s: float = 0.0
    setup_s: float = 0.0
    shared_s: float = 0.0
    fill_s: float = 0.0
    compile_s: float = 0.0
    taught: int = 0
    answered: int = 0
    epoch_s: float = 0.0
    epoch_images: int = 0
    #: steps of the epoch that are in its clock; those in which something was compiled are not
    epoch_timed: int = 0
    attempts: int = 1
    rows: list[dict[str, Any]] = field(default_factory=list)
