"""kdbench itself: a matrix file, its plan, and the trainer that a worker process runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

from kdbench.engine.cell import CellTrainer, Hooks
from kdbench.launch.plan import Planner
from kdbench.matrix import load_matrix
from kdbench.registry import Registry
from kdbench.results.store import RunFolder, atomic_write_json

from .clock import Clock
from .material import TEACHER, Outcome
from .spec import Spec


def train(spec: Spec, folder: Path, clock: Clock, recipe: Mapping[str, Any] | None = None) -> Outcome:
    """Train the cell.

    Args:
        recipe: keys of kdbench's recipe over those that the cell gives, e.g. its precision.
    """
    loss = {"alpha": spec.kd_weight, "ce_weight": spec.ce_weight, "temperature": spec.temperature}
    teacher = {"name": spec.teacher, "checkpoint": str(folder / TEACHER)}
    content = {
        **_shared(spec, recipe or {}),
        "pairs": [{"teacher": teacher, "student": spec.student}],
        "methods": [{"name": "kd", "params": loss}],
    }
    return _run(content, spec, folder, clock)


def train_teacher(spec: Spec, folder: Path, clock: Clock) -> Outcome:
    """Train the teacher alone, by the recipe of the student."""
    content = {
        **_shared(spec, {}),
        "pairs": [{"teacher": None, "student": spec.teacher}],
        "methods": ["vanilla"],
    }
    return _run(content, spec, folder, clock)


def _shared(spec: Spec, recipe: Mapping[str, Any]) -> dict[str, Any]:
    data = {"name": spec.dataset, "args": spec.dataset_args}
    data |= {} if spec.images is None else {"limit_train": spec.images}
    data |= {} if spec.test_images is None else {"limit_test": spec.test_images}
    steps = {"name": "multistep", "milestones": list(spec.milestones), "gamma": spec.gamma}
    augment: dict[str, Any] = {"kind": "none"}
    if spec.padding or spec.flip:
        augment = {"kind": "crop", "padding": spec.padding, "flip": spec.flip}
    return {
        "name": "peers",
        "datasets": [data],
        "seeds": [spec.seed],
        "throughput": False,
        "evaluators": [],
        "recipe": {
            "epochs": spec.epochs,
            "batch_size": spec.batch_size,
            "drop_last": True,
            "optimizer": {
                "name": "momentum",
                "lr": spec.lr,
                "momentum": spec.momentum,
                "weight_decay": spec.weight_decay,
            },
            "schedule": steps if spec.milestones else {"name": "constant"},
            "augment": augment,
            "val_fraction": 0.0,
            # the others evaluate once, too
            "eval_every": spec.epochs,
            **recipe,
        },
    }


class _Epochs(Hooks):
    """Tells the clock when an epoch starts: a worker asks then whether it may go on."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def gate(self) -> None:
        self._clock.epoch()


def _run(content: dict[str, Any], spec: Spec, folder: Path, clock: Clock) -> Outcome:
    registry = Registry.load()
    path = folder / "matrix.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    plan = Planner(registry, load_matrix(str(path)), RunFolder(folder / "run"), ()).plan()
    (cell,) = plan.cells
    if cell.status == "not_applicable":
        raise ValueError(f"kdbench: {cell.label}: {cell.reason}")
    cell.change(device=spec.device, threads=spec.threads)
    cell.folder.mkdir(parents=True)
    atomic_write_json(cell.folder / "cell.json", cell.file.model_dump(mode="json"))
    record = CellTrainer(cell.folder, registry, _Epochs(clock)).run()
    rows = [json.loads(line) for line in (cell.folder / "curves.jsonl").read_text().splitlines()]
    return Outcome(
        [row["train"]["loss"] for row in rows],
        record.deployables[record.primary].last["top1"],
        load_file(cell.folder / "model.safetensors"),
    )
