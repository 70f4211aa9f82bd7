"""Passes of networks, divided: each process takes its part of the batch, and all get what the whole batch gives.

A method sees whole batches, so it computes the same in every process, whatever it looks at: losses over the
batch, banks, its own modules, random numbers. The gradient that reaches an output is therefore known in every
process; each takes the rows of its part through the network and, so that the *mean* over the processes is the
gradient of the whole batch, `size` times as large. The mean is right for what was not divided, too: there all
processes have the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kdbench.engine.handle import Captured, NetHandle
from kdbench.engine.seeds import seeded
from kdbench.engine.taps import Site
from kdbench.engine.together.batch_norm import WholeBatch
from kdbench.engine.together.group import Group
from kdbench.errors import KdbenchError
from kdbench.matrix.identity import derive_seed


class Divider:
    """Divides the passes of the networks of one run.

    Args:
        group: the processes.
        seed: the cell's.
        step: returns the number of the step, for the random numbers that a pass draws.

    Attributes:
        notes: what a reader of the record should know.
    """

    def __init__(self, group: Group, seed: int, step: Callable[[], int]) -> None:
        self.group, self.notes = group, list[str]()
        self._seed, self._step = seed, step
        self._passes = 0, 0
        self._optimizing = False
        self._watched: set[int] = set()
        self._hooked: dict[int, tuple[nn.Module, bool]] = {}

    def divides(self, x: Any, net: nn.Module | None = None) -> bool:
        """Return whether a pass of `x` is divided: each process must get a row.

        Networks in which somebody put a hook run as a whole in each process: a hook looks at whole batches, too.
        """
        able = self.group.active and isinstance(x, Tensor) and x.dim() > 1 and len(x) >= self.group.size
        return able and (net is None or not self._has_hooks(net))

    def forward(
        self, handle: NetHandle, x: Tensor, sites: Iterable[Site], capture: Callable[[Tensor], Captured]
    ) -> Captured:
        """Return what `capture` gives for `x`, of which it is called with a part.

        Raises KdbenchError where a value has something else than the images of the batch in front.
        """
        shares = self.group.shares(len(x))
        with self._in_part():
            got = capture(self._part(x, shares))
        rows = shares[self.group.rank]
        for site in sites:
            # shapes of sites are those of a batch of two
            if got.raw[site.key].shape[0] * 2 != site.shape[0] * rows:
                raise KdbenchError(
                    f"{handle.name}: '{site.module}' does not give a row for each image, so its values cannot be "
                    "divided among processes; run this cell on one"
                )
        tensors = {"logits": got.logits, "pooled": got.pooled, **got.raw}
        there = {key: t for key, t in tensors.items() if t is not None}
        whole = dict(zip(there, self._whole(list(there.values()), shares), strict=True))
        raw = {key: whole[key] for key in got.raw}
        return Captured(whole.get("logits"), raw, whole.get("pooled"), got.kind)

    def wrap(self, net: nn.Module) -> nn.Module:
        """Return a network that gives what `net` gives, its passes divided; parameters and modes are `net`'s."""
        return _Divided(net, self)

    def call(self, net: nn.Module, x: Any, more: Any, named: Any) -> Any:
        """Return ``net(x)``, divided where that can be done."""
        if more or named or not self.divides(x, net):
            return net(x, *more, **named)
        shares = self.group.shares(len(x))
        with self._in_part():
            out = net(self._part(x, shares))
        (whole,) = self._whole([out], shares)
        return whole

    @contextmanager
    def optimizing(self, params: Iterable[nn.Parameter]) -> Iterator[None]:
        """Let gradients of the whole batch come from the backward pass in the block."""
        self._optimizing = True
        try:
            yield
        finally:
            self._optimizing = False
        self.group.mean_([p.grad for p in params if p.grad is not None])

    def watch(self, params: Iterable[nn.Parameter]) -> None:
        """Let gradients of these be those of the whole batch, if they are taken without ``run.optimize``."""
        for p in params:
            if p.requires_grad and id(p) not in self._watched:
                self._watched.add(id(p))
                p.register_hook(self._mean)

    def _mean(self, grad: Tensor) -> Tensor | None:
        if self._optimizing or not self.group.active:
            return None
        if grad.requires_grad:
            raise KdbenchError(
                "the method takes gradients of gradients of weights, which cannot be divided among processes; "
                "run this cell on one"
            )
        mean = grad.clone()
        self.group.mean_([mean])
        return mean

    def _has_hooks(self, net: nn.Module) -> bool:
        # looked at when a network is seen first: while it runs it has our own
        known = self._hooked.get(id(net))
        if known is None or known[0] is not net:
            known = net, any(_hooks(m) for m in net.modules())
            self._hooked[id(net)] = known
            if known[1]:
                note = "a network with hooks in it ran as a whole in every process"
                self.notes = list(dict.fromkeys([*self.notes, note]))
        return known[1]

    def look_again(self) -> None:
        """Look anew at which networks have hooks."""
        self._hooked.clear()

    def _part(self, x: Tensor, shares: Sequence[int]) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return _Part.apply(self.group, shares, x)  # type: ignore[no-any-return]
        return x[self.group.part(shares)]

    def _whole(self, tensors: list[Tensor], shares: Sequence[int]) -> Sequence[Tensor]:
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return _Whole.apply(self.group, shares, *tensors)  # type: ignore[no-any-return]
        return self.group.gather(tensors, shares)

    @contextmanager
    def _in_part(self) -> Iterator[None]:
        """Let a pass draw numbers of its own, and leave the generators as all processes have them."""
        step = self._step()
        self._passes = step, self._passes[1] + 1 if self._passes[0] == step else 0
        seed = derive_seed(self._seed, "part", self.group.rank, *self._passes)
        with seeded(seed), WholeBatch(self.group):
            yield


class _Divided(nn.Module):
    def __init__(self, net: nn.Module, divider: Divider) -> None:
        super().__init__()
        self.net = net
        self._divider = divider

    def forward(self, x: Any, *more: Any, **named: Any) -> Any:
        return self._divider.call(self.net, x, more, named)


class _Part(torch.autograd.Function):
    """Rows of this process; the gradient of all rows."""

    @staticmethod
    def forward(ctx: Any, group: Group, shares: Sequence[int], x: Tensor) -> Tensor:
        ctx.group, ctx.shares = group, shares
        return x[group.part(shares)].clone(memory_format=torch.preserve_format)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (whole,) = ctx.group.gather([grad], ctx.shares)
        return None, None, whole / ctx.group.size


class _Whole(torch.autograd.Function):
    """All rows; the gradient of those of this process, `size` times as large."""

    @staticmethod
    def forward(ctx: Any, group: Group, shares: Sequence[int], *parts: Tensor) -> tuple[Tensor, ...]:
        ctx.group, ctx.shares = group, shares
        ctx.set_materialize_grads(False)
        return tuple(group.gather(parts, shares))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        group, shares = ctx.group, ctx.shares
        mine, rows = group.part(shares), sum(shares)

        def own(grad: Tensor) -> Tensor:
            each = len(grad) // rows
            return grad[mine.start * each : mine.stop * each] * group.size

        return None, None, *(None if g is None else own(g) for g in grads)


def _hooks(m: nn.Module) -> bool:
    return bool(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks)
