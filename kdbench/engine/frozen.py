"""A teacher made ready for forwards without gradient: BatchNorm folded, kernels trimmed, autocast's weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.engine.fold import agrees, foldable, folded
from kdbench.engine.normalise import Renormalise
from kdbench.engine.seeds import seeded
from kdbench.engine.taps import Site
from kdbench.engine.trim import Size, conv_sizes, trimmed

#: Times that a copy is made anew because a method wrote into the teacher, before it is left alone.
REMADE = 8

#: Layers whose weights autocast converts on each call.
_CONVERTED = (nn.Conv2d, nn.Linear)


class Frozen:
    """Stands in for a network where nobody can tell the difference but by rounding.

    Nobody can while the network's weights are what they were when the copy was made, it is in eval mode and no
    hook waits on it. Otherwise :meth:`net` makes the copy anew, or returns None: the network itself is to be
    used. What is read between a convolution and its BatchNorm is not there in the copy.
    """

    def __init__(self, net: nn.Module, size: tuple[int, ...], device: torch.device) -> None:
        self._net, self._size, self._device = net, size, device
        self._pairs: list[tuple[str, str]] | None = None
        #: of the input of each convolution
        self._sizes: dict[str, Size] = {}
        self._looked = False
        self._modules = list(net.modules())
        self._stamp: list[Any] = []
        self._copies: dict[torch.dtype | None, nn.Module] = {}
        self._stale = False
        self._made = 0
        #: whether a copy serves that has nothing folded, too
        self.always = False

    def net(self, sites: Iterable[Site] = ()) -> nn.Module | None:
        """Return the network to run under the present autocast, or None for the network itself."""
        if self._made > REMADE or self._disturbed():
            return None
        if not self._looked:
            self._pairs, self._looked = self._find(), True
        if not self.serves(sites):
            return None
        stamp = self._now()
        if stamp != self._stamp:
            self._stamp, self._stale = stamp, True
            self._made += 1
        if self._stale:
            self._copies = {dtype: self._renewed(old, dtype) for dtype, old in self._copies.items()}
            self._stale = False
        kind = torch.get_autocast_dtype(self._device.type)
        dtype = kind if torch.is_autocast_enabled(self._device.type) else None
        if dtype not in self._copies:
            self._copies[dtype] = self._copy(dtype)
        return self._copies[dtype]

    def mark(self) -> None:
        """Count from here how often the network was written into; before, it is still being made."""
        self._stamp, self._stale = self._now(), True
        self._made = 0

    def forget(self) -> None:
        """Make the copy anew when it is next asked for: torch does not count writes through ``.data``."""
        self._stale = True

    def serves(self, sites: Iterable[Site]) -> bool:
        """Return whether all sites can be read on the copy."""
        if not self._pairs and (self._pairs is None or not self.always):
            return False
        first, second = ({p[k] for p in self._pairs} for k in (0, 1))
        return not any(
            (s.module in first and s.side == "output") or (s.module in second and s.side == "input")
            for s in sites
        )

    def _images(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn((2, *self._size), generator=generator).to(self._device)

    def _find(self) -> list[tuple[str, str]] | None:
        """Return what can be folded; None where the network does not allow a copy that agrees with it."""
        x = self._images()
        with seeded(0), torch.autocast(self._device.type, enabled=False):
            try:
                pairs = foldable(self._net, x)
                if pairs or self.always:
                    self._sizes = conv_sizes(self._net, x)
                    if not agrees(self._net, self._trim(folded(self._net, pairs)), x):
                        return None
            except Exception:  # a network that cannot be copied or looked into is run as it is
                return None
        return pairs

    def _copy(self, dtype: torch.dtype | None) -> nn.Module:
        net = folded(self._net, self._pairs or ())
        if dtype is None:
            return self._trim(net)
        with torch.no_grad():
            for module in net.modules():
                if type(module) not in _CONVERTED:
                    continue
                for name in ("weight", "bias"):
                    value = getattr(module, name)
                    if value is not None and value.dtype == torch.float32:
                        setattr(module, name, nn.Parameter(value.to(dtype), requires_grad=False))
        return self._trim(net)

    def _trim(self, net: nn.Module) -> nn.Module:
        """Put convolutions with smaller kernels into a copy, where the images leave a part of them unused."""
        for path, size in self._sizes.items():
            part = trimmed(net.get_submodule(path), size)
            if part is not None:
                parent, _, name = path.rpartition(".")
                setattr(net.get_submodule(parent), name, part)
        return net

    def _renewed(self, old: nn.Module, dtype: torch.dtype | None) -> nn.Module:
        """Return a copy with the weights of today: the old one where it can be, which may be compiled."""
        new = self._copy(dtype)
        pairs = list(zip(_tensors(old), _tensors(new), strict=False))
        if any(a.shape != b.shape or a.dtype != b.dtype for a, b in pairs):
            return new
        with torch.no_grad():
            for a, b in pairs:
                if a is not b:
                    a.copy_(b)
        return old

    def _disturbed(self) -> bool:
        return any(
            m.training
            or m._forward_hooks
            or (m._forward_pre_hooks and not _only_ours(m._forward_pre_hooks.values()))
            for m in self._modules
        )

    def _now(self) -> list[Any]:
        out: list[Any] = []
        for m in self._modules:
            for t in (*m._parameters.values(), *m._buffers.values()):
                if t is not None:
                    out.append((t.data_ptr(), t._version))
        return out


def _tensors(net: nn.Module) -> list[Tensor]:
    return [*net.parameters(), *net.buffers()]


def _only_ours(hooks: Iterable[Any]) -> bool:
    """Return whether the hooks do no more than to convert the images, which the copy does as well."""
    return all(isinstance(hook, Renormalise) for hook in hooks)
