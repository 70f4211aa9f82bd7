"""A handle: one network of a run, with its taps. Implements :class:`kdbench.protocol.run.Handle`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.engine.compiled import Compiler
from kdbench.engine.frozen import Frozen
from kdbench.engine.normalise import Normalisation
from kdbench.engine.taps import Site, deliver, feature_info, resolution_stages, resolve
from kdbench.engine.trace import Trace, is_batchnorm, trace
from kdbench.protocol.types import NO_HEAD, Feats, NotApplicable, Out, Tap


@dataclass
class Captured:
    """What one forward pass gave: logits, raw values by :attr:`Site.key`, the input of the classifier.

    Logits are None where the pass ended at the last site. `kind` is what a method gets.
    """

    logits: Tensor | None
    raw: dict[tuple[str, int, str], Tensor]
    pooled: Tensor | None
    kind: type[Out] = Out


class _Enough(Exception):
    """Every site was read."""


class NetHandle:
    """A network with resolved taps. Hooks exist only while a call runs, so none is ever left behind."""

    def __init__(
        self, name: str, net: nn.Module, *, image_size: int, in_chans: int, device: torch.device
    ) -> None:
        self.name = name
        self._owner = _owner(name)
        self.net = net
        self._size = (in_chans, image_size, image_size)
        self._device = device
        self._trace: Trace | None = None
        self._wanted: dict[Tap, Site] = {}
        self._aux: list[Any] = []
        self._batches: Callable[[int], Iterator[Any]] | None = None
        self.locked = False
        self.stages = resolution_stages(feature_info(net))
        self.classifier = self._find_classifier()
        paths = [path for path, m in net.named_modules() if m is self.classifier]
        self._classifier_path = paths[0] if paths else None
        self.frozen = Frozen(net, self._size, device)
        self.num_features = 0 if self.classifier is None else self._pooled_width()
        #: compiles passes; with `only_frozen` those of the copy for passes without gradient only
        self.compiler: Compiler | None = None
        self.only_frozen = False
        #: divides passes among the processes of the cell; None where there is one
        self.divider: Any = None
        #: what the network's weights expect, where its input is converted to it
        self.normalisation: Normalisation | None = None

    def __call__(self, x: Tensor, taps: Sequence[Tap] | None = None) -> Out:
        sites = self.sites(taps)
        return self.assemble(self.capture(x, sites.values()), sites)

    def sites(self, taps: Sequence[Tap] | None = None) -> Mapping[Tap, Site]:
        """Return where the taps are read; None: all that were wanted."""
        return self._wanted if taps is None else {t: self._site(t) for t in taps}

    def capture(
        self, x: Tensor, sites: Iterable[Site], *, frozen: bool = False, head: bool = True
    ) -> Captured:
        """Forward `x` and keep what the network gives at the sites.

        Args:
            frozen: run a copy of the network that is made for passes without gradient, where it serves.
            head: go on to the logits; else stop at the last site.
        """
        sites = tuple(sites)
        if self.divider is not None and self.divider.divides(x, self.net):
            taken = partial(self._capture, sites=sites, frozen=frozen, head=head)
            return self.divider.forward(self, x, sites, taken)  # type: ignore[no-any-return]
        return self._capture(x, sites, frozen=frozen, head=head)

    def _capture(self, x: Tensor, sites: tuple[Site, ...], *, frozen: bool, head: bool) -> Captured:
        net = (self.frozen.net(sites) if frozen else None) or self.net
        if self.compiler is not None and (net is not self.net or not self.only_frozen):
            given = self.compiler(self.name, net, sites, self._classifier_of(net), x, head or not sites)
            if given is not None:
                return Captured(*given)
        raw: dict[tuple[str, int, str], Tensor] = {}
        pooled: list[Tensor] = []
        logits = None
        with self._hooked(sites, raw, pooled, net, stop=not head and bool(sites)):
            try:
                logits = net(x)
            except _Enough:
                pooled.clear()
        return Captured(logits, raw, pooled[0] if pooled else None)

    def assemble(self, got: Captured, sites: Mapping[Tap, Site]) -> Out:
        """Turn what was kept into the formats that the taps ask for."""
        feats = Feats({t: deliver(self.net, s, t.fmt, got.raw[s.key]) for t, s in sites.items()})
        feats.owner = self._owner
        logits: Any = NO_HEAD if got.logits is None else got.logits
        return got.kind(logits, feats, None if got.pooled is None else got.pooled.flatten(1))

    def duplicate(self) -> NetHandle:
        """Return a handle of a copy of the network: equal weights, modes and input, and nobody else's."""
        channels, size, _ = self._size
        made = NetHandle(
            self.name, copy.deepcopy(self.net), image_size=size, in_chans=channels, device=self._device
        )
        made.normalisation = self.normalisation
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> NetHandle:
        """Copy the network and its taps for a deployable that holds a handle: not the run behind it."""
        made = object.__new__(type(self))
        memo[id(self)] = made
        left_out = {"_batches": None, "_aux": [], "_trace": None, "compiler": None, "divider": None}
        for key, value in vars(self).items():
            setattr(made, key, left_out[key] if key in left_out else copy.deepcopy(value, memo))
        return made

    @property
    def wanted(self) -> tuple[Tap, ...]:
        """The taps that were asked for."""
        return tuple(self._wanted)

    def want(self, *taps: Tap) -> None:
        if self.locked:
            raise RuntimeError(f"{self.name}.want() belongs in setup(), not in the training loop")
        for tap in taps:
            self._wanted[tap] = self._site(tap)

    def shape(self, tap: Tap) -> tuple[int, ...]:
        site = self._site(tap)
        return tuple(deliver(self.net, site, tap.fmt, torch.empty(site.shape, device="meta")).shape)

    def has_activation(self, tap: Tap) -> bool:
        return self._site(tap).kind in ("stage-end", "next-norm")

    def bn_before(self, tap: Tap) -> nn.Module | None:
        path = self._site(tap).bn
        return None if path is None else self.net.get_submodule(path)

    def batchnorms(self) -> list[tuple[str, nn.Module]]:
        return [(path, m) for path, m in self.net.named_modules() if is_batchnorm(m)]

    def blocks(self) -> list[tuple[str, nn.Module]]:
        slots = ("drop_path", "drop_path1")
        return [(path, m) for path, m in self.net.named_modules() if any(hasattr(m, slot) for slot in slots)]

    def aux_hook(self, module: nn.Module, fn: Callable[..., Any], *, pre: bool = False) -> None:
        register = module.register_forward_pre_hook if pre else module.register_forward_hook
        self._aux.append(register(fn))

    def calibrate(self, fn: Callable[[Out], None], n_batches: int) -> None:
        if self._batches is None:
            raise RuntimeError("calibrate() needs data: call it in on_phase_start(), not in setup()")
        with torch.no_grad():
            for batch in self._batches(n_batches):
                fn(self(batch.x))

    def close(self) -> None:
        """Remove auxiliary hooks."""
        for handle in self._aux:
            handle.remove()
        self._aux.clear()

    @property
    def trace(self) -> Trace:
        """The trace of one forward pass, made once."""
        if self._trace is None:
            generator = torch.Generator().manual_seed(0)
            x = torch.randn((2, *self._size), generator=generator).to(self._device)
            try:
                self._trace = trace(self.net, x)
            except Exception as e:
                reason = f"{self.name} cannot take {self._size[1]}x{self._size[2]} images: {e}"
                raise NotApplicable(reason.splitlines()[0][:300]) from e
        return self._trace

    def _site(self, tap: Tap) -> Site:
        if tap in self._wanted:
            return self._wanted[tap]
        try:
            site = resolve(self.net, self.trace, tap)
            deliver(self.net, site, tap.fmt, torch.empty(site.shape, device="meta"))
        except NotApplicable as e:
            raise NotApplicable(f"{self.name}: {e}") from e
        return site

    def _find_classifier(self) -> nn.Module | None:
        get = getattr(self.net, "get_classifier", None)
        module = get() if get is not None else None
        if isinstance(module, (tuple, list)):
            module = module[0]
        return None if module is None or isinstance(module, nn.Identity) else module

    def _classifier_of(self, net: nn.Module) -> nn.Module | None:
        """Return the classifier of a network that has this one's modules or copies of them."""
        if net is self.net or self._classifier_path is None:
            return self.classifier
        return net.get_submodule(self._classifier_path)

    def _pooled_width(self) -> int:
        module = self.classifier
        for attribute in ("in_features", "in_channels"):
            width = getattr(module, attribute, None)
            if isinstance(width, int):
                return width
        return int(getattr(self.net, "num_features", 0))

    @contextmanager
    def _hooked(
        self,
        sites: Any,
        raw: dict[tuple[str, int, str], Tensor],
        pooled: list[Tensor],
        net: nn.Module | None = None,
        *,
        stop: bool = False,
    ) -> Iterator[None]:
        net = self.net if net is None else net
        handles: list[Any] = []
        by_module: dict[str, list[Site]] = {}
        distinct = dict.fromkeys(sites)
        for site in distinct:
            by_module.setdefault(site.module, []).append(site)
        enough = len({site.key for site in distinct}) if stop else None
        classifier = self._classifier_of(net)
        try:
            for path, here in by_module.items():
                handles += _watch(net.get_submodule(path), here, raw, enough)
            if classifier is not None:

                def keep(module: nn.Module, args: Any) -> None:
                    if args and args[0].dim() in (2, 4):
                        pooled.append(args[0])

                handles.append(classifier.register_forward_pre_hook(keep))
            yield
        finally:
            for handle in handles:
                handle.remove()


def _owner(name: str) -> str:
    """Return how a method reaches the handle of this name."""
    if name == "student":
        return "run.student"
    number = name.removeprefix("teacher")
    if number != name and number.isdecimal():
        return "run.teacher" if number == "0" else f"run.teachers[{number}]"
    return f"handle '{name}'"


def _watch(
    module: nn.Module,
    sites: Sequence[Site],
    raw: dict[tuple[str, int, str], Tensor],
    enough: int | None = None,
) -> list[Any]:
    calls = {"input": 0, "output": 0}

    def keep(side: str, value: Tensor) -> None:
        nth = calls[side]
        calls[side] += 1
        for site in sites:
            if site.side == side and site.nth == nth:
                raw[site.key] = value.clone() if site.clone else value
        if len(raw) == enough:
            raise _Enough

    # every hook is called in every pass, so there is none on a side that nobody reads
    sides, handles = {site.side for site in sites}, []
    if "input" in sides:
        handles.append(module.register_forward_pre_hook(lambda m, args: keep("input", args[0])))
    if "output" in sides:
        handles.append(module.register_forward_hook(lambda m, args, out: keep("output", out)))
    return handles
