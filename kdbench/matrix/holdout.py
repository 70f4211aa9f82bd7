"""How many training images are held out for validation."""

from __future__ import annotations

from kdbench.protocol.types import DataInfo


def held_out(images: int, info: DataInfo, val_fraction: float) -> int:
    """Return how many of `images` are held out: a share, at least one a class; 0 where `val` is there already."""
    return 0 if info.n_val or not val_fraction else max(info.num_classes, round(val_fraction * images))
