"""A small run in memory: networks, data and a recipe, without a data set on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.engine.context import CellRun
from kdbench.engine.handle import NetHandle
from kdbench.engine.seeds import seeded
from kdbench.matrix.recipe import Recipe
from kdbench.protocol.types import Batch, DataInfo, TaskData
from kdbench_tasks.classification import Classification

SIZE, CLASSES = 8, 3


class Net(nn.Module):
    """Two convolutions, BatchNorm, dropout; milliseconds a step."""

    feature_info = [
        {"num_chs": 4, "reduction": 2, "module": "act1"},
        {"num_chs": 6, "reduction": 4, "module": "act2"},
    ]

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4, width, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(width, CLASSES)
        self.num_features = width

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))
        return self.fc(self.drop(x.mean((2, 3))))


class Stream:
    """Random images; other images in every epoch; `sizes` are the batch sizes."""

    def __init__(self, sizes: tuple[int, ...], labelled: bool = True) -> None:
        self.sizes, self.labelled = sizes, labelled
        self.asked: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self.sizes)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        self.asked.append((epoch, start))
        generator = torch.Generator().manual_seed(epoch)
        n = sum(self.sizes)
        x = torch.randn(n, 3, SIZE, SIZE, generator=generator)
        y = torch.randint(0, CLASSES, (n,), generator=generator)
        for index in torch.arange(n).split(list(self.sizes))[start:]:
            yield Batch(x[index], y[index] if self.labelled else None, index)


def make_run(
    workdir: Path,
    *,
    teachers: int = 1,
    sizes: tuple[int, ...] = (6, 6, 5),
    net: Callable[[], nn.Module] = Net,
    seed: int = 0,
    device: str = "cpu",
    **recipe: Any,
) -> CellRun:
    info = DataInfo(
        "tiny", CLASSES, tuple("abc"), SIZE, (0.0,) * 3, (1.0,) * 3, sum(sizes), sum(sizes), revision="1"
    )
    plain: dict[str, Any] = {
        "epochs": 2,
        "batch_size": sizes[0],
        "optimizer": {"name": "momentum", "lr": 0.05},
        "schedule": {"name": "cosine"},
        "channels_last": False,
    }
    streams = {"train": Stream(sizes), "train_unlabelled": Stream(sizes, labelled=False)}
    batches = list(Stream(sizes).epoch(99))
    data = TaskData(streams=streams, splits={"val": batches, "test": batches}, info=info)
    where: dict[str, Any] = {"image_size": SIZE, "in_chans": 3, "device": torch.device(device)}

    def handle(name: str, k: int) -> NetHandle:
        with seeded(k):
            made = net().to(device)
        return NetHandle(name, made, **where)

    return CellRun(
        student=handle("student", 0),
        teachers=[handle(f"teacher{k}", 100 + k) for k in range(teachers)],
        build_student=lambda: net().to(device),
        task=Classification(),
        task_data=data,
        recipe=Recipe.model_validate(plain | recipe),
        device=torch.device(device),
        seed=seed,
        workdir=workdir,
    )
