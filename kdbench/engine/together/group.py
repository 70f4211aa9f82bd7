"""The processes that train one cell: this one's place among them, and what they tell one another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

#: Elements that are reduced at once: 64 MiB of float32, so that the copy beside the gradients stays small.
BUCKET = 1 << 24


class PeerLost(RuntimeError):
    """Another process of the cell cannot be reached any more."""


class Group:
    """A process among `size`, of which number 0 leads: it alone writes.

    All of them run the same program on the same values. While the group is :attr:`active`, passes of networks and
    the reading of images are divided; everything else is done by each, so it needs nothing of this class.

    Raises (all its methods): PeerLost when another process is gone.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.lead = rank == 0
        self.active = False

    @contextmanager
    def dividing(self) -> Iterator[None]:
        """Divide what is done in the block. All processes must be in it, doing the same."""
        self.active = True
        try:
            yield
        finally:
            self.active = False

    def shares(self, rows: int) -> list[int]:
        """Return how many of the rows of a batch each process takes, in order; they differ by one at most."""
        ends = [rows * (k + 1) // self.size for k in range(self.size)]
        return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]

    def part(self, shares: Sequence[int]) -> slice:
        """Return the rows that this process takes."""
        begin = sum(shares[: self.rank])
        return slice(begin, begin + shares[self.rank])

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in a process. It is asked on the CPU, so no device is waited for."""
        told = torch.tensor([int(flag)])
        with _reached():
            dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return bool(told.item())

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over the processes, in place."""
        with _reached():
            dist.all_reduce(tensor)
        return tensor

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over the processes."""
        with _reached():
            for bucket in _buckets(tensors):
                flat = torch.cat([t.reshape(-1) for t in bucket])
                dist.all_reduce(flat)
                flat.div_(self.size)
                for t, mean in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                    t.copy_(mean.view(t.shape))

    def same_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by those of the leading process."""
        with _reached():
            for bucket in _buckets(tensors):
                flat = torch.cat([t.reshape(-1) for t in bucket])
                dist.broadcast(flat.view(torch.uint8), 0)
                for t, value in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                    t.copy_(value.view(t.shape))

    def gather(self, tensors: Sequence[Tensor], shares: Sequence[int]) -> list[Tensor]:
        """Return whole batches of which each process has its `shares` of the rows.

        A tensor may have several rows for each of the batch. Memory formats are kept.
        """
        rows = shares[self.rank]
        with _reached():
            return [self._gather(t, [len(t) // rows * n for n in shares]) for t in tensors]

    def _gather(self, mine: Tensor, sizes: Sequence[int]) -> Tensor:
        last = mine.dim() == 4 and mine.is_contiguous(memory_format=torch.channels_last)
        flat = (mine.permute(0, 2, 3, 1) if last else mine).contiguous()
        most = max(sizes)
        if len(flat) < most:  # tensors of one size are what every backend can gather
            flat = torch.cat([flat, flat.new_zeros((most - len(flat), *flat.shape[1:]))])
        parts = [torch.empty_like(flat) for _ in sizes]
        # as bytes: not every backend knows every type
        dist.all_gather([_bytes(part) for part in parts], _bytes(flat))
        whole = torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])
        return whole.permute(0, 3, 1, 2) if last else whole


@contextmanager
def _reached() -> Iterator[None]:
    try:
        yield
    except RuntimeError as e:
        if isinstance(e, torch.OutOfMemoryError):
            raise
        raise PeerLost(f"the processes of the cell lost one another: {str(e).splitlines()[0]}") from e


def _bytes(t: Tensor) -> Tensor:
    return t.view(-1).view(torch.uint8)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    kinds: dict[Any, list[Tensor]] = {}
    for t in tensors:
        kinds.setdefault((t.dtype, t.device), []).append(t)
    for alike in kinds.values():
        bucket: list[Tensor] = []
        for t in alike:
            if bucket and sum(b.numel() for b in bucket) + t.numel() > BUCKET:
                yield bucket
                bucket = []
            bucket.append(t)
        yield bucket
