"""Which epochs of a teacher's training are kept for methods that follow its route."""

from __future__ import annotations


def route_epochs(total: int, anchors: int) -> list[int]:
    """Return `anchors` equally spaced epochs (1-based) of a run of `total`, the last included."""
    return sorted({max(1, round(total * (i + 1) / anchors)) for i in range(anchors)}) if anchors else []
