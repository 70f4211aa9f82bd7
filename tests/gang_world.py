"""Cells of milliseconds that can share: a plug-in with a small network and a method that misbehaves on request."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fake_distributions import Distributions

PLUGIN = """
from kdbench.hooks import ArchitectureEntry, MethodEntry, Needs, hookimpl


@hookimpl
def kdbench_methods():
    return [MethodEntry(name="odd", target="gang_plugin:Odd", version="1", needs=Needs())]


@hookimpl
def kdbench_architectures():
    return [ArchitectureEntry(name="tiny-net", target="gang_plugin:tiny", version="1")]
"""

CODE = '''
import os
import random

import numpy as np
import torch
from pydantic import Field
from torch import nn

from kdbench.api import Method, MethodParams, NotApplicable, Phase, Tap


class Tiny(nn.Module):
    """Two strided convolutions with BatchNorm, dropout, a linear classifier."""

    def __init__(self, num_classes, in_chans, width, drop):
        super().__init__()
        self.feature_info = [
            {"num_chs": width, "reduction": 4, "module": "act1"},
            {"num_chs": width, "reduction": 8, "module": "act2"},
        ]
        self.conv1 = nn.Conv2d(in_chans, width, 3, stride=4, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(drop)
        self.fc = nn.Linear(width, num_classes)
        self.num_features = width

    def get_classifier(self):
        return self.fc

    def forward(self, x):
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))
        return self.fc(self.drop(x.mean((2, 3))))


def tiny(num_classes, in_chans, image_size, width=4, drop=0.3):
    return Tiny(num_classes, in_chans, width, drop)


class Odd(Method):
    """Distils by squared error of logits and a feature, and does something unusual at step `at`."""

    class Params(MethodParams):
        act: str = Field("none")
        at: int = Field(0)

    taps = {"student": [Tap(1)], "teacher": [Tap(1)]}

    def setup(self, run):
        if self.hp.act == "setup":
            raise RuntimeError("sabotage in setup")
        if self.hp.act == "hook":
            run.student.aux_hook(run.student.net.act1, self.look)

    def look(self, module, args, out):
        self.seen = out.detach().amax(0)

    def phases(self, run):
        if self.hp.act == "source":
            return [Phase(source=self.source)]
        return super().phases(run)

    def source(self, run):
        with torch.no_grad():
            for batch in run.task_data.streams["train"].epoch(run.epoch):
                yield batch

    def step(self, batch, run):
        if self.hp.act == "source":
            with torch.enable_grad():
                return super().step(batch, run)
        now = run.global_step >= self.hp.at
        act = self.hp.act if now else "none"
        if act == "images":
            batch.x.mul_(0.5)
            batch.y[0] = 0
            batch.index.zero_()
        if act == "images-data":
            batch.x.data.mul_(0.5)
        if act == "grad":
            x = batch.x.clone().requires_grad_()
            run.teach(run.teacher, x, grad=True).logits.sum().backward()
            batch.x.add_(x.grad.sign(), alpha=0.01)
        if act == "bn":
            run.teach(run.teacher, batch.x, bn="batch")
        if act == "taps":
            early = run.teach(run.teacher, batch.x, taps=[Tap(0)]).feats[Tap(0)]
            batch.x.add_(0.01 * early.mean())
        return super().step(batch, run)

    def loss(self, S, T, batch, run):
        act = self.hp.act if run.global_step >= self.hp.at else "none"
        logits, feat = T[0].logits, T[0].feats[Tap(1)]
        if act == "raise":
            raise ValueError("sabotage in the loss")
        if act == "cannot":
            raise NotApplicable("cannot go on")
        if act == "memory" and len(os.environ.get("GANG_ROOM", "")) == 0:
            raise MemoryError("no room")
        if act == "exit":
            os._exit(7)
        if act == "weights":
            first = next(run.student.net.parameters())
            (slope,) = torch.autograd.grad(run.task.loss(S, batch), first, retain_graph=True)
            logits = logits * (1 + slope.abs().mean())
        if act == "hook":
            logits = logits + self.seen.mean()
        if act == "write":
            logits.add_(1.0)
            feat.zero_()
            T[0].pooled.mul_(3.0)
        if act == "teacher":
            run.teacher.net.fc.weight.mul_(0.9)
        if act == "teacher-data":
            run.teacher.net.fc.weight.data.mul_(0.9)
        if act == "random":
            torch.manual_seed(7)
            random.seed(random.random() + np.random.rand())
        if act == "settings":
            torch.set_num_threads(2)
            torch.set_float32_matmul_precision("medium")
            torch.use_deterministic_algorithms(False)
        if act == "dtype":
            torch.set_default_dtype(torch.float64)
        task = run.task.loss(S, batch)
        if act == "nan":
            task = task * float("nan")
        noise = 1 + 0.01 * random.random() + 0.01 * np.random.rand()
        kd = noise * (S.logits - logits).square().mean()
        return {"task": task, "kd": kd, "feature": feat.mean() * S.logits.mean()}
'''

RECIPE = {
    "epochs": 2,
    "batch_size": 16,
    "optimizer": {"name": "momentum", "lr": 0.05},
    "schedule": {"name": "cosine"},
    "eval_batch_size": 64,
    "deterministic": True,
}
#: What keeps methods as short as the recipe is.
PARAMS: dict[str, dict[str, Any]] = {"dfad": {"batch_size": 8, "iterations": 1}, "rco": {"anchors": 2}}
#: Steps of an epoch: 80 images, a tenth of them held out, batches of 16.
STEPS = 5


def install(folder: Path) -> Distributions:
    """Write the plug-in as a distribution into `folder`, which has to be put on ``sys.path``."""
    made = Distributions(folder)
    (folder / "gang_plugin.py").write_text(CODE)
    made.add("gangs", PLUGIN)
    return made


class World:
    """Folders of cells with one teacher, trained when the world is made.

    A cell is named by its method, or ``odd:act[@step]``; its folder is ``<where>/cells/<id>``.
    """

    def __init__(self, root: Path) -> None:
        from kdbench.registry import Registry

        self.root = root
        self.registry = Registry.load()
        self.teacher = _id("teacher")
        self._alone: dict[str, dict[str, Any]] = {}
        content = self.content("vanilla", teacher=False) | {"cell_id": self.teacher}
        content |= {"student": {"name": "tiny-net", "args": {"width": 8}}, "keep_epochs": [1, 2]}
        self._teacher_folder = self._write(root / "teacher", content)
        self._train(self._teacher_folder)

    def content(self, name: str, *, teacher: bool = True, **over: Any) -> dict[str, Any]:
        """Return the content of ``cell.json``."""
        method, _, act = name.partition(":")
        params: dict[str, Any] = {}
        if act:
            act, _, at = act.partition("@")
            params = {"act": act, "at": int(at or 0)}
        params |= PARAMS.get(method, {})
        source = {
            "architecture": {"name": "tiny-net", "args": {"width": 8}},
            "source": "cell",
            "ref": self.teacher,
        }
        teacher = teacher and method != "vanilla"
        labels = {"matrix": "m", "task": "classification", "dataset": "digits", "student": "tiny-net"}
        content: dict[str, Any] = {
            "cell_id": _id(name),
            "protocol": 1,
            "identity": {},
            "labels": {**labels, "method": method, "variant": name, "recipe": "r", "seed": 0},
            "task": "classification",
            "method": method,
            "params": params,
            "student": {"name": "tiny-net", "args": {}},
            "teachers": [source] if teacher else [],
            "dataset": {
                "name": "digits",
                "label": "digits",
                "limit_train": 80,
                "limit_test": 40,
                "storage": "resident",
                "revision": "digits-v1",
            },
            "recipe": RECIPE,
            "seed": 0,
            "route": 2 if method == "rco" else 0,
            "threads": 1,
        }
        return {**content, **over}

    def folder(self, where: Path, name: str, **over: Any) -> Path:
        """Make the folder of a cell, beside a copy of the teacher's."""
        beside = where / "cells" / self.teacher
        if not beside.exists():
            shutil.copytree(self._teacher_folder, beside)
        return self._write(where, self.content(name, **over))

    def folders(self, where: Path, names: Iterable[str], **over: Any) -> list[Path]:
        return [self.folder(where, name, **over) for name in names]

    def alone(self, name: str, **over: Any) -> dict[str, Any]:
        """Return the outcome of a cell that runs alone; it runs once."""
        key = json.dumps([name, over], sort_keys=True)
        if key not in self._alone:
            from kdbench.engine.settings import put_back, settings

            folder = self.folder(self.root / f"alone-{len(self._alone)}", name, **over)
            before = settings()
            try:
                self._train(folder)
            finally:
                put_back(before)
            self._alone[key] = outcome(folder)
        return self._alone[key]

    def _train(self, folder: Path) -> None:
        from kdbench.engine.cell import CellTrainer

        CellTrainer(folder, self.registry).run()

    def _write(self, where: Path, content: Mapping[str, Any]) -> Path:
        folder = where / "cells" / content["cell_id"]
        folder.mkdir(parents=True)
        (folder / "cell.json").write_text(json.dumps(content))
        return folder


def outcome(folder: Path) -> dict[str, Any]:
    """Return what must not depend on the company in which a cell ran."""
    record = json.loads((folder / "result.json").read_text())
    rows = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
    return {
        "status": record["status"],
        "weights": record["weights_sha256"],
        "quality": record["deployables"],
        "steps": record["cost"]["steps"],
        "epochs": [(r["epoch"], r["phase"], r["train"], r.get("eval")) for r in rows],
    }


def importable(folder: Path) -> None:
    """Forget modules of an earlier world, whose folder is not on the path any more."""
    sys.modules.pop("gang_plugin", None)
    assert (folder / "gang_plugin.py").exists()


def _id(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
