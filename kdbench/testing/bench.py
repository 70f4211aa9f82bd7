"""A tiny cell to try a method in: two small timm networks, sixteen random images, a few steps on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.engine.build import builder, make_task, method_params, prepare_method
from kdbench.engine.cellspec import Arch
from kdbench.engine.context import CellRun
from kdbench.engine.evaluation import evaluate_all
from kdbench.engine.handle import Captured, NetHandle
from kdbench.engine.loop import Loop
from kdbench.engine.seeds import seed_everything, seeded
from kdbench.engine.taps import Site
from kdbench.engine.teacher_cache import TableOut
from kdbench.matrix.recipe import Recipe
from kdbench.protocol.method import Method
from kdbench.protocol.types import DataInfo, TaskData
from kdbench.registry import Registry
from kdbench.testing.stream import IMAGE_SIZE, TinyStream, Undeclared


@dataclass(frozen=True)
class Case:
    """What a run is given. The defaults give every method all that it needs.

    Attributes:
        sizes: images of each step of an epoch.
        batches: numbers of the images of each step, in place of `sizes`.
        images: number of training images, where there are more than the steps use.
        batch_size: the recipe's, in place of that of the first step.
        epochs, precision, optimizer, lr: of the recipe.
        seed: of the cell.
        classes: number of classes, K.
        variant: another number gives other images and other initial weights.
        route_step: how far each weight of the teacher moves between two points of its route.
        teacher, student: architectures, in place of the bench's.
        without: what is left out: ``"teacher"`` (one of them), ``"assistant"``, ``"route"``, ``"stages"``,
            ``"capabilities"``, ``"undeclared"`` (all of a batch that the needs do not name).
        probing: whether the run is one of the planner's, which reads no data.
    """

    sizes: tuple[int, ...] = (8, 8)
    batches: tuple[tuple[int, ...], ...] = ()
    images: int = 0
    batch_size: int = 0
    epochs: int = 3
    precision: str = "fp32"
    optimizer: str = "momentum"
    lr: float = 0.01
    seed: int = 0
    classes: int = 5
    variant: int = 0
    route_step: float = 0.01
    teacher: str = ""
    student: str = ""
    without: str = ""
    probing: bool = False

    def steps(self) -> Sequence[Sequence[int]]:
        """Numbers of the images of each step."""
        if self.batches:
            return self.batches
        return [t.tolist() for t in torch.arange(sum(self.sizes)).split(list(self.sizes))]


class Bench:
    """Makes fresh, equal runs of one method; `name` is what errors call it."""

    def __init__(
        self,
        registry: Registry,
        cls: type[Method],
        params: Mapping[str, Any],
        *,
        teacher: str,
        student: str,
        task: str = "classification",
        name: str = "",
        preset: str | None = None,
    ) -> None:
        self.registry, self.cls = registry, cls
        # the preset "check", where a method has one, makes its costly defaults small; a named one goes over it
        named = cls.presets.get(preset, {}) if preset is not None else {}
        small = {key: value for key, value in cls.presets.get("check", {}).items() if key not in named}
        self.params = method_params(cls, name or cls.__name__, preset, {**small, **params})
        self.needs = cls.requires(self.params)
        self.teacher, self.student, self._task_name = teacher, student, task

    def run(self, case: Case | None = None, **options: Any) -> CellRun:
        """Make a run; equal arguments give equal weights. `options` are fields of :class:`Case`."""
        case = replace(case or Case(), **options)
        task = make_task(self.registry, self._task_name)
        if case.without == "capabilities":
            task.capabilities = frozenset()  # type: ignore[misc]
        data = self._data(case)
        n = self.needs.teachers - (case.without == "teacher")
        teachers = [self._handle(task, "teacher", k, data, case) for k in range(n)]
        points = 0 if case.without == "route" else self.needs.route
        assistant = self.needs.assistants and case.without != "assistant"

        def learner() -> nn.Module:
            return self._net(task, "student", data, case)

        run = CellRun(
            student=self._handle(task, "student", 0, data, case),
            teachers=teachers,
            build_student=learner,
            build_assistant=learner if assistant else None,
            task=task,
            task_data=data,
            recipe=_recipe(case),
            device=torch.device("cpu"),
            seed=case.seed,
            workdir=Path(tempfile.gettempdir()),
            route=[_route(teachers[0].net, k * case.route_step) for k in range(points)] if teachers else [],
            probing=case.probing,
        )
        if case.without == "undeclared" and self.needs.reads in ("logits", "pooled"):
            run.lookup = _only(self.needs.reads)
        return run

    def method(self, run: CellRun) -> Method:
        """Make the method of a run."""
        return prepare_method(self.cls, self.params, run)

    def loop(self, run: CellRun, method: Method, folder: Path, *, seed: int = 0, **options: Any) -> Loop:
        """Return a training loop from a seeded start."""
        seed_everything(seed, deterministic=False)
        return Loop(run, method, folder, evaluate=lambda: evaluate_all(method, run), **options)

    def _data(self, case: Case) -> TaskData:
        steps, views = case.steps(), len(self.needs.views)
        strict = case.without == "undeclared"
        kinds: dict[str, Any] = {"views": views, "classes": case.classes, "variant": case.variant}
        if strict:
            kinds["indexed"] = self.needs.index
            kinds["readable"] = self.needs.data == "real"
        kinds["images"] = case.images
        train = TinyStream(steps, labelled=self.needs.labels or not strict, **kinds)
        streams = {"train": train, "train_unlabelled": TinyStream(steps, labelled=False, **kinds)}
        split = list(TinyStream(steps, classes=case.classes, variant=case.variant).epoch(0))
        info = DataInfo(
            name="tiny",
            num_classes=case.classes,
            class_names=tuple(f"class {k}" for k in range(case.classes)),
            image_size=IMAGE_SIZE,
            mean=(0.5,) * 3,
            std=(0.25,) * 3,
            n_train=train.n,
            n_test=train.n,
            revision="tiny",
        )
        if case.probing:
            return TaskData({}, {}, info)
        return TaskData(streams, {"val": split, "test": split}, info, labels=train.labels)

    def _net(self, task: Any, role: str, data: TaskData, case: Case) -> nn.Module:
        name = (case.teacher or self.teacher) if role == "teacher" else (case.student or self.student)
        net: nn.Module = task.build(role, builder(self.registry, Arch(name=name)), data)
        if case.without == "stages":
            net.feature_info = []  # type: ignore[assignment]
        return net

    def _handle(self, task: Any, role: str, k: int, data: TaskData, case: Case) -> NetHandle:
        with seeded(1000 * case.variant + 100 * (role == "teacher") + k):
            net = self._net(task, role, data, case)
            if role == "teacher":
                _wake_norms(net)
        name = role if role == "student" else f"{role}{k}"
        return NetHandle(name, net, image_size=IMAGE_SIZE, in_chans=3, device=torch.device("cpu"))


def _only(reads: str) -> Any:
    """Return a stand-in for teachers that gives no more than a table of their outputs would."""

    def lookup(handle: NetHandle, x: Tensor, sites: tuple[Site, ...], head: bool) -> Captured:
        if sites:
            raise Undeclared(f'a feature of a teacher is read, and the needs say reads="{reads}"')
        got = handle.capture(x, ())
        return Captured(got.logits, {}, got.pooled if reads == "pooled" else None, TableOut)

    return lookup


def _recipe(case: Case) -> Recipe:
    return Recipe.model_validate(
        {
            "epochs": case.epochs,
            "batch_size": case.batch_size or len(case.steps()[0]),
            "optimizer": {"name": case.optimizer, "lr": case.lr},
            "schedule": {"name": "constant"},
            "precision": case.precision,
        }
    )


def _route(net: nn.Module, shift: float) -> Any:
    # a copy: the method loads these weights into the same network
    start = {key: v.clone() for key, v in net.state_dict().items()}

    def load() -> dict[str, Tensor]:
        return {key: v + shift if v.is_floating_point() else v for key, v in start.items()}

    return load


def _wake_norms(net: nn.Module) -> None:
    """Give norm layers weights: fresh timm networks zero the last one of a block, trained ones do not."""
    for module in net.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 1 and weight.numel():
            nn.init.uniform_(weight, 0.5, 1.5)
