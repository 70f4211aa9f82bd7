"""timm's distillation task in a loop like that of its ``train.py``, with its loader, optimizer and schedule."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from timm.data import create_loader
from timm.data.transforms import ToNumpy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import DistillationTeacher, LogitDistillationTask
from timm.utils import AverageMeter, random_seed
from torch import nn
from torchvision import transforms

from kdbench.protocol.types import DataInfo

from .clock import Clock
from .material import Material, Outcome, weights_of
from .spec import Spec
from .views import crop_and_flip


def train(spec: Spec, folder: Path, clock: Clock) -> Outcome:
    """Train the cell."""
    random_seed(spec.seed)
    material, device = Material(spec, folder), torch.device(spec.device)
    teacher, student = material.nets()
    for net in (teacher, student):
        _expects(net, material.info)
    task = LogitDistillationTask(
        student_model=student,
        teacher_model=DistillationTeacher(teacher, device=device),
        criterion=nn.CrossEntropyLoss(),
        task_loss_weight=spec.ce_weight,
        distill_loss_weight=spec.kd_weight,
        temperature=spec.temperature,
        device=device,
        verbose=False,
    )
    loader = _loader(spec, material, device)
    # its default keeps biases and normalisation out of the weight decay, which nobody else here does
    optimizer = create_optimizer_v2(
        student,
        opt="momentum",
        lr=spec.lr,
        momentum=spec.momentum,
        weight_decay=spec.weight_decay,
        filter_bias_and_bn=False,
    )
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="multistep",
        # decays one epoch before a milestone
        decay_milestones=[m + 1 for m in spec.milestones] or [spec.epochs + 1],
        decay_rate=spec.gamma,
        num_epochs=spec.epochs,
        warmup_epochs=0,
    )
    losses = []
    for epoch in range(spec.epochs):
        clock.epoch()
        losses.append(_epoch(task, loader, optimizer))
        schedule.step(epoch + 1)
    return Outcome(losses, material.top1(student), weights_of(student))


def _epoch(task: Any, loader: Any, optimizer: torch.optim.Optimizer) -> float:
    update_time, data_time, losses = AverageMeter(), AverageMeter(), AverageMeter()
    task.train()
    began = waited = time.time()
    optimizer.zero_grad()
    for x, y in loader:
        data_time.update(time.time() - waited)
        loss = task(x, y)["loss"]
        loss.backward()
        optimizer.step()
        losses.update(loss.item(), x.size(0))
        optimizer.zero_grad()
        now = time.time()
        update_time.update(now - began)
        began = waited = now
    return float(losses.avg)


def _loader(spec: Spec, material: Material, device: torch.device) -> Any:
    info = material.info
    pictures = material.pictures("train", None)
    loader = create_loader(
        pictures,
        input_size=(info.in_chans, info.image_size, info.image_size),
        batch_size=spec.batch_size,
        is_training=True,
        no_aug=True,
        mean=info.mean,
        std=info.std,
        num_workers=spec.workers,
        pin_memory=device.type == "cuda",
        device=device,
    )
    # timm has no transform that pads and crops to the old size; the loader's prefetching takes uint8 arrays
    pictures.transform = transforms.Compose([*crop_and_flip(spec, info.image_size), ToNumpy()])
    return loader


def _expects(net: nn.Module, info: DataInfo) -> None:
    """Tell the task that both networks take the same input; it converts where teacher and student differ."""
    net.pretrained_cfg = {**(getattr(net, "pretrained_cfg", None) or {}), "mean": info.mean, "std": info.std}  # type: ignore[assignment]
