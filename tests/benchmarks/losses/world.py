"""Prepared outputs of two networks in place of the networks, and a run that hands them to a method.

What a method does between the forward passes and the optimizer step then runs as it is: taps, connectors, loss
and backward pass.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.api import Batch, DataInfo, NotApplicable, Out, Tap
from kdbench_tasks.classification import Classification

BATCH = 64


@dataclass(frozen=True)
class Size:
    """Shapes of one data set's networks.

    Attributes:
        classes: K.
        side: of the images, pixels.
        n_train: training images.
        maps: (C, side) of the stem and of each stage; the same for both networks, so that every method runs.
    """

    classes: int
    side: int
    n_train: int
    maps: tuple[tuple[int, int], ...]

    @property
    def width(self) -> int:
        """Width of the pooled feature."""
        return self.maps[-1][0]


SIZES = {
    # resnet32x4 and resnet8x4
    "cifar": Size(100, 32, 50_000, ((32, 32), (64, 32), (128, 16), (256, 8))),
    # ResNet-34 and ResNet-18
    "imagenet": Size(1000, 224, 1_281_167, ((64, 112), (64, 56), (128, 28), (256, 14), (512, 7))),
}


class Port(nn.Module):
    """What stands for the network itself: its classifier, and the BatchNorm before each activation."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.classifier = nn.Linear(size.width, size.classes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c, _ in size.maps)
        for norm in self.norms:
            nn.init.normal_(norm.weight, 1.0, 0.3)
            nn.init.normal_(norm.bias, 0.0, 0.3)
        self.num_features = size.width

    def set_distilled_training(self, enable: bool = True) -> None:
        pass

    def get_classifier(self) -> nn.Module:
        return self.classifier


class Handle:
    """A network whose outputs exist already: `logits` (B, K), `pooled` (B, D) and maps by stage and side."""

    def __init__(self, name: str, world: World, *, learns: bool) -> None:
        self.name, self.world, self.learns = name, world, learns
        self.net = Port(world.size).to(world.device)
        self.stages = tuple(range(1, len(world.size.maps)))
        self.num_features = world.size.width
        self.wanted: list[Tap] = []
        self._made: dict[Any, Tensor] = {}
        if not learns:
            self.net.requires_grad_(False)

    @property
    def leaves(self) -> list[Tensor]:
        """The tensors that take gradients."""
        return [t for t in self._made.values() if t.requires_grad]

    def map(self, stage: int, when: str = "post") -> Tensor:
        """Output of a stage (0: the stem), or the value before its activation: (B, C, H, W)."""
        stage = stage % len(self.world.size.maps)
        c, side = self.world.size.maps[stage]
        return self._make((stage, when), (BATCH, c, side, side))

    @property
    def pooled(self) -> Tensor:
        """Input of the classifier, (B, D); the teacher's is the spatial mean of its last map."""
        if self.learns:
            return self._make("pooled", (BATCH, self.num_features))
        return self._kept("pooled", lambda: self.map(-1).mean((2, 3)))

    @property
    def logits(self) -> Tensor:
        """(B, K); the teacher's follow from its pooled feature."""
        if self.learns:
            return self._make("logits", (BATCH, self.world.size.classes))
        return self._kept("logits", lambda: 6 * self.net.classifier(self.pooled))

    def _make(self, key: Any, shape: tuple[int, ...]) -> Tensor:
        def draw() -> Tensor:
            seed = zlib.crc32(f"{self.name} {key}".encode())
            x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.world.device)
            x = x.relu() if key[-1] == "post" else x
            return x.requires_grad_(self.learns)

        return self._kept(key, draw)

    def _kept(self, key: Any, make: Any) -> Tensor:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def __call__(self, x: Tensor, taps: Sequence[Tap] | None = None) -> Out:
        feats = {t: self.map(int(t.at), t.when) for t in (self.wanted if taps is None else taps)}
        if len(x) == BATCH:
            return Out(self.logits, feats, self.pooled)
        # a probe of two images in setup: the classifier's own output, without the scale
        n, pooled = len(x), self.pooled[: len(x)]
        return Out(self.net.classifier(pooled), {t: f[:n] for t, f in feats.items()}, pooled)

    def want(self, *taps: Tap) -> None:
        self.wanted += [t for t in taps if t not in self.wanted]

    def shape(self, tap: Tap) -> tuple[int, ...]:
        c, side = self.world.size.maps[int(tap.at)]
        return (2, c, side, side)

    def bn_before(self, tap: Tap) -> nn.Module:
        return self.net.norms[int(tap.at)]


class TwoHeads(Handle):
    """A student with a distillation head, whose output is a pair of logits."""

    @property
    def token_logits(self) -> Tensor:
        """Of the distillation head, (B, K)."""
        return self._make("token", (BATCH, self.world.size.classes))

    def __call__(self, x: Tensor, taps: Sequence[Tap] | None = None) -> Out:
        return Out((self.logits, self.token_logits), {}, self.pooled)  # type: ignore[arg-type]


class World:
    """Networks, labels and a run (:class:`kdbench.api.Run`) of one size on one device.

    The run is in the middle of its epochs, where warm-ups are over.
    """

    def __init__(self, size: Size, device: str, *, teachers: int = 1, two_heads: bool = False) -> None:
        self.size, self.device = size, torch.device(device)
        torch.manual_seed(0)
        self.student = (TwoHeads if two_heads else Handle)("student", self, learns=True)
        self.teachers = [Handle(f"teacher{k}", self, learns=False) for k in range(teachers)]
        self.others: dict[str, Handle] = {}
        self.rng = torch.Generator(device=device).manual_seed(0)
        generator = torch.Generator().manual_seed(1)
        self.y = torch.randint(size.classes, (BATCH,), generator=generator).to(device)
        self.index = torch.randperm(size.n_train, generator=generator)[:BATCH].to(device)
        self.x = torch.zeros(BATCH, 3, 1, 1, device=device)
        self.task, self.probing = Classification(), False
        self.epoch, self.phase_epochs, self.steps_per_epoch, self.frac = 100, 240, 10, 0.4
        stats = (0.5, 0.5, 0.5)
        names = tuple(map(str, range(size.classes)))
        self.data = DataInfo("prepared", size.classes, names, size.side, stats, stats, size.n_train, 0, "1")
        self.losses: list[Tensor] = []

    @property
    def teacher(self) -> Handle:
        return self.teachers[0]

    @property
    def batch(self) -> Batch:
        return Batch(self.x, self.y, self.index, (self.x,))

    def leaves(self) -> list[Tensor]:
        """All tensors of networks that take gradients."""
        return [t for h in (self.student, *self.others.values()) for t in h.leaves]

    def labels(self) -> Tensor:
        return torch.arange(self.size.n_train, device=self.device) % self.size.classes

    def new_student(self, name: str, *, share: str = "none", seed: int = 0) -> Handle:
        if share != "none":
            raise NotApplicable("prepared outputs have no trunk to share")
        self.others[name] = Handle(name, self, learns=True)
        return self.others[name]

    new_assistant = new_student

    def teach(self, handle: Handle, x: Tensor, **options: Any) -> Out:
        return handle(x, options.get("taps"))

    def optimize(self, loss: Tensor, *names: str, retain_graph: bool = False) -> None:
        """Backward pass; there is nothing to step."""
        self.losses.append(loss.detach())
        loss.backward()

    def amp(self) -> Any:
        return nullcontext()

    def fp32(self) -> Any:
        return torch.autocast(self.device.type, enabled=False)

    def log(self, values: Mapping[str, Any]) -> None:
        pass


def start(cls: Any, world: World, phase: str | None = None, **params: Any) -> SimpleNamespace:
    """Set a method up; return it as ``method`` with ``step()``, one step of a phase (None: the last one)."""
    method = cls(cls.Params(**params))
    for handle, role in ((world.student, "student"), *((t, "teacher") for t in world.teachers)):
        handle.want(*method.taps.get(role, ()))
    method.setup(world)
    method.to(world.device).train()
    phases = list(method.phases(world))
    (chosen,) = [p for p in phases if p.name == phase] if phase else phases[-1:]
    step = chosen.step or method.step
    return SimpleNamespace(method=method, hp=method.hp, step=lambda: step(world.batch, world))
