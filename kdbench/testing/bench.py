"""A tiny cell to try a method in: two small timm networks, sixteen random images, a few steps on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.engine.build import builder, make_task, prepare_method
from kdbench.engine.build_dataset import validated
from kdbench.engine.cellspec import Arch
from kdbench.engine.context import CellRun
from kdbench.engine.evaluation import evaluate_all
from kdbench.engine.handle import NetHandle
from kdbench.engine.loop import Loop
from kdbench.engine.seeds import seed_everything, seeded
from kdbench.matrix.recipe import Recipe
from kdbench.protocol.method import Method
from kdbench.protocol.types import Batch, DataInfo, TaskData
from kdbench.registry import Registry

IMAGE_SIZE, CLASSES = 32, 5


class TinyStream:
    """Random images with labels; `sizes` are the batch sizes of an epoch."""

    def __init__(self, sizes: tuple[int, ...], views: int, *, labelled: bool = True) -> None:
        generator = torch.Generator().manual_seed(1)
        n = sum(sizes)
        self._x = [torch.randn(n, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator) for _ in range(1 + views)]
        self.labels = torch.arange(n) % CLASSES if labelled else None
        self._sizes = sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        index = torch.arange(sum(self._sizes)).split(list(self._sizes))
        for i in index[start:]:
            main, *views = (x[i] for x in self._x)
            yield Batch(main, None if self.labels is None else self.labels[i], i, tuple(views))


class Bench:
    """Makes fresh, equal runs of one method."""

    def __init__(
        self,
        registry: Registry,
        cls: type[Method],
        params: Mapping[str, Any],
        *,
        teacher: str,
        student: str,
        task: str = "classification",
    ) -> None:
        self.registry, self.cls = registry, cls
        # the preset "check", where a method has one, makes its costly defaults small
        merged = {**cls.presets.get("check", {}), **params}
        self.params = validated(cls.Params, merged, f"method '{cls.__name__}'")
        self.needs = cls.requires(self.params)
        self._arch = {"teacher": Arch(name=teacher), "student": Arch(name=student)}
        self._task = make_task(registry, task)

    def run(self, *, sizes: tuple[int, ...] = (8, 8), precision: str = "fp32", seed: int = 0) -> CellRun:
        """Make a run; equal arguments give equal weights."""
        info = DataInfo(
            name="tiny",
            num_classes=CLASSES,
            class_names=tuple("abcde"),
            image_size=IMAGE_SIZE,
            mean=(0.5,) * 3,
            std=(0.25,) * 3,
            n_train=sum(sizes),
            n_test=sum(sizes),
            revision="tiny",
        )
        views = len(self.needs.views)
        train = TinyStream(sizes, views)
        streams = {"train": train, "train_unlabelled": TinyStream(sizes, views, labelled=False)}
        batches = list(TinyStream(sizes, 0).epoch(0))
        data = TaskData(
            streams=streams, splits={"val": batches, "test": batches}, info=info, labels=train.labels
        )
        recipe = Recipe.model_validate(
            {
                "epochs": 3,
                "batch_size": sizes[0],
                "optimizer": {"name": "momentum", "lr": 0.01},
                "schedule": {"name": "constant"},
                "precision": precision,
            }
        )

        def student() -> nn.Module:
            return self._task.build("student", builder(self.registry, self._arch["student"]), data)

        teachers = [self._handle("teacher", k, data) for k in range(self.needs.teachers)]
        route = [self._route(teachers[0].net, k) for k in range(self.needs.route)] if teachers else []
        return CellRun(
            student=self._handle("student", 0, data),
            teachers=teachers,
            build_student=student,
            build_assistant=student if self.needs.assistants else None,
            task=self._task,
            task_data=data,
            recipe=recipe,
            device=torch.device("cpu"),
            seed=seed,
            workdir=Path(tempfile.gettempdir()),
            route=route,
        )

    def method(self, run: CellRun) -> Method:
        """Make the method of a run."""
        return prepare_method(self.cls, self.params, run)

    def loop(self, run: CellRun, method: Method, folder: Path, **options: Any) -> Loop:
        """Return a training loop from a seeded start."""
        seed_everything(0, deterministic=False)
        return Loop(run, method, folder, evaluate=lambda: evaluate_all(method, run), **options)

    def _handle(self, role: str, k: int, data: TaskData) -> NetHandle:
        with seeded(100 * (role == "teacher") + k):
            net = self._task.build(role, builder(self.registry, self._arch[role]), data)
            if role == "teacher":
                _wake_norms(net)
        name = role if role == "student" else f"{role}{k}"
        device = torch.device("cpu")
        return NetHandle(name, net, image_size=IMAGE_SIZE, in_chans=3, device=device)

    def _route(self, net: nn.Module, k: int) -> Any:
        # a copy: the method loads these weights into the same network
        start = {key: v.clone() for key, v in net.state_dict().items()}

        def load() -> dict[str, Tensor]:
            return {key: v + 0.01 * k if v.is_floating_point() else v for key, v in start.items()}

        return load


def _wake_norms(net: nn.Module) -> None:
    """Give norm layers weights: fresh timm networks zero the last one of a block, trained ones do not."""
    for module in net.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 1 and weight.numel():
            nn.init.uniform_(weight, 0.5, 1.5)
