"""Training steps of whole cells, networks included, on random images of CIFAR's size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from kdbench.engine.build import builder, make_task, prepare_method
from kdbench.engine.cellspec import Arch
from kdbench.engine.context import CellRun
from kdbench.engine.handle import NetHandle
from kdbench.engine.optim import build_optimizers
from kdbench.engine.phases import optimizers_of
from kdbench.engine.seeds import seeded
from kdbench.matrix.recipe import Recipe
from kdbench.protocol.types import Batch, DataInfo, TaskData
from kdbench.registry import Registry

from .world import BATCH, SIZES


class Stepper:
    """One method's cell, ready to step: the first phase, one batch of 64 images."""

    def __init__(self, registry: Registry, name: str, teacher: str, student: str, device: str) -> None:
        size, where = SIZES["cifar"], torch.device(device)
        task = make_task(registry, "classification")
        stats, names = (0.5, 0.5, 0.5), tuple(map(str, range(size.classes)))
        info = DataInfo("random", size.classes, names, size.side, stats, stats, size.n_train, 0, "1")
        labels = torch.arange(size.n_train) % size.classes
        data = TaskData({}, {}, info, labels=labels)
        generator = torch.Generator().manual_seed(0)
        index = torch.randperm(size.n_train, generator=generator)[:BATCH]
        x = torch.randn(BATCH, 3, size.side, size.side, generator=generator)
        self.batch = Batch(x.to(where), labels[index].to(where), index.to(where))
        optimizer = {"name": "momentum", "lr": 0.01}
        recipe = Recipe.model_validate({"epochs": 1, "batch_size": BATCH, "optimizer": optimizer})

        def handle(role: str, arch: str, seed: int) -> NetHandle:
            with seeded(seed):
                net = task.build(role, builder(registry, Arch(name=arch)), data)
            return NetHandle(role, net.to(where), image_size=size.side, in_chans=3, device=where)

        run: Any = CellRun(
            student=handle("student", student, 0),
            teachers=[handle("teacher0", teacher, 1)],
            build_student=lambda: None,  # type: ignore[arg-type, return-value]
            task=task,
            task_data=data,
            recipe=recipe,
            device=where,
            seed=0,
            workdir=Path(),
        )
        cls = registry.get("methods", name).load()
        self.run, self.method = run, prepare_method(cls, cls.Params(), run)
        phase = self.method.phases(run)[0]
        self._step = phase.step or self.method.step
        named = optimizers_of(phase, self.method, run)
        run.optimizers = build_optimizers(named, recipe, epochs=1, steps_per_epoch=1)
        run.student.net.train()
        self.method.train()

    def step(self) -> None:
        """Forward passes, loss, backward pass, optimizer step."""
        self._step(self.batch, self.run)
