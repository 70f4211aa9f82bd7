"""Of which images and views a training batch is made, so that what is known of these need not be computed."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


class Origin:
    """Image numbers and view ids of the tensors of one batch.

    Args:
        index: (B,) int64, numbers of the images in the training split.
        made: each tensor of images with its view ids, (B,) int64; None for views that have no id.
    """

    def __init__(self, index: Tensor, made: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        self._index = index
        self._made = [(x, x._version, ids) for x, ids in made]

    def of(self, copies: Iterable[Tensor]) -> Origin:
        """Return the origin of copies of the batch's tensors, in the same order."""
        return Origin(self._index, ((x, ids) for x, (_, _, ids) in zip(copies, self._made, strict=True)))

    def find(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return (image numbers, view ids) of `x`, if it is one of the batch's tensors, as it was made."""
        for made, version, ids in self._made:
            if made is x:
                return None if ids is None or x._version != version else (self._index, ids)
        return None
