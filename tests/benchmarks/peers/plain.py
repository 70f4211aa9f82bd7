"""The loop that one finds in repositories of papers: PIL images from loader processes, meters read every step.

After the training loops of RepDistiller and mdistiller, without what they do beside training (files, bars).
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from .clock import Clock
from .material import Material, Outcome, weights_of
from .spec import Spec
from .views import to_normalised


class Meter:
    """A running mean of numbers on the host."""

    def __init__(self) -> None:
        self.sum, self.count = 0.0, 0

    def update(self, value: float, n: int) -> None:
        """Add a batch's mean."""
        self.sum, self.count = self.sum + value * n, self.count + n

    @property
    def mean(self) -> float:
        """The mean so far."""
        return self.sum / self.count


def train(spec: Spec, folder: Path, clock: Clock) -> Outcome:
    """Train the cell."""
    torch.manual_seed(spec.seed)
    material, device, t = Material(spec, folder), torch.device(spec.device), spec.temperature
    teacher, student = material.nets()
    loader = DataLoader(
        material.pictures("train", to_normalised(spec, material.info)),
        batch_size=spec.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=spec.workers,
        pin_memory=device.type == "cuda",
    )
    optimizer = torch.optim.SGD(
        student.parameters(), lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay
    )
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(spec.milestones), spec.gamma)
    epochs = []
    for _ in range(spec.epochs):
        clock.epoch()
        student.train()
        losses, top1 = Meter(), Meter()
        for x, y in loader:
            x, y = x.to(device), y.to(device)
            logits = student(x)
            with torch.no_grad():
                teacher_logits = teacher(x)
            soft = F.kl_div(
                F.log_softmax(logits / t, 1), F.softmax(teacher_logits / t, 1), reduction="batchmean"
            )
            loss = spec.ce_weight * F.cross_entropy(logits, y) + spec.kd_weight * t**2 * soft
            losses.update(loss.item(), len(x))
            top1.update((logits.argmax(1) == y).float().mean().item(), len(x))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        epochs.append(losses.mean)
    return Outcome(epochs, material.top1(student), weights_of(student))
