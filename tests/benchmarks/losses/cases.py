"""Which method is compared with which formula, and how it is set up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.registry import Registry

from . import straight_features as features
from . import straight_logits as logits
from .world import Size, World, start


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: of the case; the method's name unless `method` is given.
        plain: the formula.
        params: hyper-parameters other than the defaults.
        phase: which phase's step is measured; None: the last one.
        world: options of the world.
        ours: replaces the step: ``ours(world, m) -> scalar``, where a step cannot be repeated or needs networks.
        prepare: called once after setup.
    """

    name: str
    plain: Callable[[World, Any], Tensor]
    method: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    phase: str | None = None
    world: Mapping[str, Any] = field(default_factory=dict)
    ours: Callable[[World, Any], Tensor] | None = None
    prepare: Callable[[World, Any], None] | None = None


class Drawn(nn.Module):
    """Negatives drawn beforehand, in place of the module that draws them."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, index: Tensor, k: int, generator: Any) -> Tensor:
        return self.rows


def _draw_once(world: World, m: SimpleNamespace) -> None:
    """Fix the negatives, and the constants Z by a first batch: what is left is the formula."""
    m.method.others = Drawn(m.method.others(world.index, m.method.k, world.rng))
    with torch.no_grad():
        m.method.loss(world.student(world.x), [world.teacher(world.x)], world.batch, world)


def _crd(world: World, m: SimpleNamespace) -> Tensor:
    """The loss without the renewal of the banks, after which it would be another."""
    parts = m.method.loss(world.student(world.x), [world.teacher(world.x)], world.batch, world)
    return sum(parts.values(), start=world.student.logits.new_zeros(()))


def _dfad(world: World, m: SimpleNamespace) -> Tensor:
    from kdbench_methods.dfad import discrepancy

    return discrepancy(world.student.logits, world.teacher.logits)


def _bss(world: World, m: SimpleNamespace) -> Tensor:
    from kdbench_methods.bss import soft_cross_entropy

    zs, zt, t = world.student.logits, world.teacher.logits, m.hp.temperature
    alpha, beta = m.method.weights(world.epoch, world.phase_epochs)
    task = m.hp.ce_weight * world.task.loss(world.student(world.x), world.batch)
    counts = torch.ones(len(zs), device=zs.device)
    return task + alpha * soft_cross_entropy(zs, zt, t) + beta * soft_cross_entropy(zs, zt, t, counts)


CASES = [
    Case("vanilla", logits.vanilla, world={"teachers": 0}),
    Case("kd", logits.kd),
    Case("kd-ls", logits.kd_ls),
    Case("dkd", logits.dkd),
    Case("dist", logits.dist),
    Case("mlkd", logits.mlkd),
    Case("wsld", logits.wsld),
    Case("ctkd", logits.ctkd),
    Case("rco", logits.rco),
    Case("takd", logits.takd),
    Case("dml", logits.dml, params={"update": "simultaneous"}, world={"teachers": 0}),
    Case("tfkd", logits.tfkd, world={"teachers": 0}),
    Case("tfkd-reg", logits.tfkd_reg, "tfkd", {"variant": "reg"}, world={"teachers": 0}),
    Case("timm-logit", logits.timm_logit),
    Case("timm-feature", logits.timm_feature),
    Case("timm-token", logits.timm_token, world={"two_heads": True}),
    Case("dfad", logits.dfad, ours=_dfad),
    Case("bss", logits.bss, ours=_bss),
    Case("ffl", logits.ffl, world={"teachers": 0}),
    Case("fitnet", features.fitnet),
    Case("ab", features.ab, phase="init"),
    Case("ofd", features.ofd),
    Case("feed", features.feed, world={"teachers": 2}),
    Case("ft", features.ft),
    Case("at", features.at),
    Case("sp", features.sp),
    Case("cc", features.cc),
    Case("cc-rbf", features.cc_rbf, "cc", {"form": "rbf"}),
    Case("vid", features.vid),
    Case("rkd", features.rkd),
    Case("pkt", features.pkt),
    Case("nst", features.nst),
    Case("fsp", features.fsp, phase="flow"),
    Case("crd", features.crd, ours=_crd, prepare=_draw_once),
    Case("reviewkd", features.reviewkd),
    Case("simkd", features.simkd),
    Case("srrl", features.srrl),
    Case("ofa", features.ofa),
]


class Comparison:
    """A case made ready: `ours` and `plain` do a forward and a backward pass and return the loss."""

    def __init__(self, registry: Registry, case: Case, size: Size, device: str) -> None:
        self.world = World(size, device, **case.world)
        cls = registry.get("methods", case.method or case.name).load()
        self.made = start(cls, self.world, case.phase, **case.params)
        # all prepared outputs exist from here on, so that no pass is measured with making them
        for handle in (self.world.student, *self.world.teachers, *self.world.others.values()):
            handle(self.world.x)
        if case.prepare is not None:
            case.prepare(self.world, self.made)
        self._case = case

    def ours(self) -> Tensor:
        self._clear()
        if self._case.ours is None:
            self.world.losses.clear()
            self.made.step()
            return sum(self.world.losses[1:], start=self.world.losses[0])
        loss = self._case.ours(self.world, self.made)
        loss.backward()
        return loss.detach()

    def plain(self) -> Tensor:
        self._clear()
        loss = self._case.plain(self.world, self.made)
        loss.backward()
        return loss.detach()

    def leaves(self) -> list[Tensor]:
        """All that takes a gradient: the student's outputs and the method's parameters."""
        own = [p for p in self.made.method.parameters() if p.requires_grad]
        return [*self.world.leaves(), *own]

    def gradients(self) -> list[Tensor | None]:
        """The gradients of the last pass."""
        return [t.grad for t in self.leaves()]

    def _clear(self) -> None:
        for t in self.leaves():
            t.grad = None
