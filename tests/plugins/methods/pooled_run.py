"""A fake run whose handles give pooled features and whose networks show their classifier."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from fake_run import CLASSES, FakeHandle, FakeRun, TinyNet, batch
from torch import Tensor, nn

from kdbench.api import Batch, Out, Tap


class OpenNet(TinyNet):
    """A TinyNet with timm's ``get_classifier``."""

    def get_classifier(self) -> nn.Module:
        return self.head


class PooledHandle(FakeHandle):
    """A handle that also gives the classifier's input."""

    def __call__(self, x: Tensor, taps: Any = None) -> Out:
        taps = self.wanted if taps is None else taps
        last = Tap(len(self.net.stages))
        out = super().__call__(x, [*taps, last])
        out.pooled = out.feats[last].mean((2, 3))
        out.feats = {tap: out.feats[tap] for tap in taps}
        return out


class PooledRun(FakeRun):
    """A fake run with such handles."""

    def __init__(self, student: TinyNet, *teachers: TinyNet, n_train: int = 32, **kw: Any) -> None:
        super().__init__(student, *teachers, **kw)
        self.student = PooledHandle("student", student)
        self.teachers = [PooledHandle(h.name, h.net) for h in self.teachers]
        self.students = {"student": self.student}
        self.data = dataclasses.replace(self.data, n_train=n_train)

    def labels(self) -> Tensor:
        """Classes in turn; one label while probing, as the engine has it."""
        return torch.arange(1 if self.probing else self.data.n_train) % CLASSES


def open_net(seed: int, **kw: Any) -> OpenNet:
    """A network of random weights with a classifier to show."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return OpenNet(**kw)


def indexed(n: int = 8, seed: int = 0, first: int = 0) -> Batch:
    """A batch of the images `first`, `first` + 1, ..., with the labels of :meth:`PooledRun.labels`."""
    index = torch.arange(first, first + n)
    return dataclasses.replace(batch(n, seed), index=index, y=index % CLASSES)
