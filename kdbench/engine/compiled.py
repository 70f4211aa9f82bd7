"""Networks compiled by ``torch.compile``, with their taps: ``recipe.compile: default`` and ``reduce-overhead``.

What cannot be compiled runs as it is, and the record says why.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.engine.clock import wait
from kdbench.engine.taps import Site

#: ``recipe.compile`` to the mode of ``torch.compile``.
MODES = {"default": "default", "reduce-overhead": "reduce-overhead"}

#: Compiler behind ``torch.compile``; tests take one that is quick.
BACKEND: Any = "inductor"

#: What a pass gives: logits, raw values by :attr:`Site.key`, the input of the classifier.
Given = tuple[Tensor | None, dict[tuple[str, int, str], Tensor], Tensor | None]


class Tapped(nn.Module):
    """A network that returns what it gives at sites, so that a compiler sees one function of the images.

    Its hooks stay on the network and do nothing in other passes.
    """

    def __init__(self, net: nn.Module, sites: Sequence[Site], classifier: nn.Module | None) -> None:
        super().__init__()
        self.net, self.head = net, True
        self._on = False
        self._raw: dict[tuple[str, int, str], Tensor] = {}
        self._pooled: list[Tensor] = []
        self._calls: dict[tuple[str, str], int] = {}
        for path in dict.fromkeys(site.module for site in sites):
            module, here = net.get_submodule(path), [s for s in sites if s.module == path]
            module.register_forward_pre_hook(self._before(path, here))
            module.register_forward_hook(self._after(path, here))
        if classifier is not None:
            classifier.register_forward_pre_hook(self._classified())

    def forward(self, x: Tensor) -> Given:
        self._raw, self._pooled, self._calls = {}, [], {}
        self._on = True
        logits = self.net(x)
        self._on = False
        raw, pooled = self._raw, self._pooled[0] if self._pooled else None
        self._raw, self._pooled = {}, []
        return (logits, raw, pooled) if self.head else (None, raw, None)

    def _keep(self, path: str, side: str, sites: Sequence[Site], value: Tensor) -> None:
        nth = self._calls.get((path, side), 0)
        self._calls[path, side] = nth + 1
        for site in sites:
            if site.side == side and site.nth == nth:
                self._raw[site.key] = value.clone() if site.clone else value

    def _before(self, path: str, sites: Sequence[Site]) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            if self._on:
                self._keep(path, "input", sites, args[0])

        return hook

    def _after(self, path: str, sites: Sequence[Site]) -> Any:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            if self._on:
                self._keep(path, "output", sites, out)

        return hook

    def _classified(self) -> Any:
        # a function and no bound method: copies of the network take functions as they are
        def hook(module: nn.Module, args: Any) -> None:
            if self._on and args and args[0].dim() in (2, 4):
                self._pooled.append(args[0])

        return hook


class Compiler:
    """Compiles the networks of one run when they are first used.

    Attributes:
        notes: why a network is not compiled, for the record.
    """

    def __init__(self, mode: str, device: torch.device) -> None:
        self._mode, self._device = MODES[mode], device
        self._made: dict[Hashable, tuple[Tapped, Any]] = {}
        self._failed: set[Hashable] = set()
        self._seen: set[Hashable] = set()
        self._seconds, self._fresh = 0.0, False
        self.notes: list[str] = []

    def __call__(
        self,
        name: str,
        net: nn.Module,
        sites: Sequence[Site],
        classifier: nn.Module | None,
        x: Tensor,
        head: bool,
    ) -> Given | None:
        """Forward images by the compiled network; None where it cannot be compiled."""
        key = (id(net), tuple(s.key for s in sites), head)
        if key in self._failed:
            return None
        kind = (key, net.training, torch.is_grad_enabled(), tuple(x.shape))
        if kind in self._seen:
            return self._made[key][1](x)  # type: ignore[no-any-return]
        try:
            out: Given = self._of(key, net, sites, classifier, head)(x)
        except Exception as e:  # of the compiler, or the network's own: then the pass that follows raises it
            self._failed.add(key)
            reason = " ".join(f"{type(e).__name__}: {e}".split())[:200]
            self.notes.append(f"{name} is not compiled ({reason})")
            return None
        self._seen.add(kind)
        self._fresh = True
        return out

    def end(self, seconds: Callable[[], float]) -> bool:
        """A step is over; returns whether it compiled something. Then all its `seconds` count as compiling.

        The backward pass is compiled when it is first run, so that the first passes alone do not tell.
        """
        if not self._fresh:
            return False
        self._fresh = False
        wait(self._device)
        self._seconds += seconds()
        return True

    def take(self) -> float:
        """Return the seconds of steps that compiled, since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def step(self) -> None:
        """A step begins: what the last one gave may be written over."""
        if self._device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()

    def _of(
        self, key: Hashable, net: nn.Module, sites: Sequence[Site], classifier: nn.Module | None, head: bool
    ) -> Any:
        if key not in self._made:
            tapped = Tapped(net, sites, classifier)
            tapped.head = head
            options = {} if self._mode == "default" else {"mode": self._mode}
            # the network is kept with it, so that its address stays its own
            self._made[key] = tapped, torch.compile(tapped, backend=BACKEND, dynamic=False, **options)
        return self._made[key][1]
