"""The weights that a cell leaves for others: of the end of its training, and of epochs on the way there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

MODEL = "model.safetensors"


def route_path(folder: Path, epoch: int) -> Path:
    """Where the checkpoint after `epoch` epochs is kept."""
    return folder / "route" / f"epoch-{epoch:04d}.safetensors"


def is_whole(folder: Path, role: str, keep_epochs: Iterable[int]) -> bool:
    """Return whether a finished cell of this role has the files that others wait for."""
    kept = [route_path(folder, epoch) for epoch in keep_epochs]
    wanted = [folder / MODEL, *kept] if kept or role == "teacher" else []
    return all(path.exists() for path in wanted)
