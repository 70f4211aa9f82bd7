"""Images that are read and decoded once: each process reads its part of a batch, and all get the batch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kdbench.engine.together.group import Group


class Shared:
    """How the images of batches are shared out; without a group, or while it is not active, they are not."""

    def __init__(self, group: Group | None) -> None:
        self._group = group

    def now(self) -> Shared:
        """Return what holds for a pass over the data that begins now."""
        active = self._group is not None and self._group.active
        return self if active else Shared(None)

    def mine(self, at: Tensor) -> list[int]:
        """Return which of the images of a batch this process reads, of (B,) numbers."""
        group = self._group
        if group is None or len(at) < group.size:
            return at.tolist()  # type: ignore[no-any-return]
        return at[group.part(group.shares(len(at)))].tolist()  # type: ignore[no-any-return]

    def whole(self, made: list[Tensor], rows: int) -> Sequence[Tensor]:
        """Return whole batches of `rows` images of what this process made of its part."""
        group = self._group
        if group is None or rows < group.size:
            return made
        return group.gather(made, group.shares(rows))
