"""Whether a cell can be, found out before anything is trained: parameters, architectures, taps, needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kdbench.engine.build import builder, make_run, make_task, method_params, setup_method
from kdbench.engine.build_dataset import make_dataset
from kdbench.engine.cellspec import Arch, CellFile
from kdbench.engine.optim import build_optimizers
from kdbench.engine.phases import checked, optimizers_of
from kdbench.engine.precision import Precision
from kdbench.engine.seeds import seeded
from kdbench.engine.teachers import TeacherError, load_checkpoint
from kdbench.engine.work import step_macs
from kdbench.errors import KdbenchError, did_you_mean
from kdbench.protocol.dataset import Dataset
from kdbench.protocol.types import Build, DataInfo, NotApplicable, TaskData
from kdbench.registry import Registry


@dataclass
class Verdict:
    """Outcome of a probe.

    Attributes:
        reason: why the cell is not applicable.
        error: bad input (exit code 2).
        teacher_error: whether `error` is about the teacher.
        macs: multiply-accumulates of a training step, for one image; None where they cannot be counted.
    """

    params: dict[str, Any] | None = None
    #: where the method's hyper-parameters are searched, as it declares it
    search: dict[str, Any] = field(default_factory=dict)
    fidelity: str = ""
    teachers: int = 0
    assistants: int = 0
    route: int = 0
    #: what the method uses of its teachers, see :class:`kdbench.hooks.Needs`
    reads: str = "all"
    #: whether the method reads training images, and which further views of them
    real_data: bool = True
    views: list[str] = field(default_factory=list)
    #: width of the pooled feature of each teacher, where the networks were built
    pooled: list[int] = field(default_factory=list)
    reason: str | None = None
    error: str | None = None
    teacher_error: bool = False
    macs: float | None = None


def resolve_method(registry: Registry, name: str, preset: str | None, params: Mapping[str, Any]) -> Verdict:
    """Resolve hyper-parameters and what they make the method need."""
    try:
        cls = registry.get("methods", name).load()
        resolved = method_params(cls, name, preset, params)
        needs = cls.requires(resolved)
        space = search_space(cls, name)
    except KdbenchError as e:
        return Verdict(error=str(e))
    from pydantic import TypeAdapter

    dumped = TypeAdapter(cls.Params).dump_python(resolved, mode="json")
    return Verdict(
        params=dumped,
        search=space,
        fidelity=cls.fidelity,
        teachers=needs.teachers,
        assistants=needs.assistants,
        route=needs.route,
        reads=needs.reads,
        real_data=needs.data == "real",
        views=list(needs.views),
    )


def search_space(cls: Any, name: str) -> dict[str, Any]:
    """Return the space that a method declares, as JSON has it. Raises KdbenchError for one of no parameter."""
    known = list(getattr(cls.Params, "model_fields", None) or getattr(cls.Params, "__dataclass_fields__", {}))
    for key in cls.search:
        if key not in known:
            raise KdbenchError(
                f"method '{name}': search: it has no hyper-parameter '{key}'{did_you_mean(key, known)}"
            )
    return {key: cls.search[key].plain() for key in sorted(cls.search)}


def check_device(name: str, precision: str) -> str | None:
    """Return why a device or a precision on it cannot be used, or None."""
    if name.startswith("cuda") and not torch.cuda.is_available():
        return f"--device {name}: this machine has no usable CUDA device; use --device cpu"
    try:
        Precision(precision, torch.device(name))
    except KdbenchError as e:
        return str(e)
    return None


def check_compile(device: str, mode: str) -> str | None:
    """Return why ``recipe.compile`` cannot be had on a device, or None."""
    if mode == "graph" and not device.startswith("cuda"):
        return f"recipe.compile: graph needs a CUDA device; use none, default or auto on {device}"
    return None


def probe(registry: Registry, cell: CellFile, build: Callable[[Registry, Arch], Build] = builder) -> Verdict:
    """Build the networks of a cell on the CPU and let the method set up, without data and weights."""
    verdict = Verdict(params=cell.params)
    try:
        dataset: Dataset = make_dataset(registry, cell.dataset.name, cell.dataset.args)
        info: DataInfo = dataset.describe()
        task = make_task(registry, cell.task)
        data = TaskData(streams={}, splits={}, info=info)
        with seeded(0):
            run = make_run(
                registry,
                cell,
                info,
                task,
                data,
                torch.device("cpu"),
                Path(),
                probing=True,
                load_teacher=lambda k, net: _check_weights(registry, cell, k, net),
                build=build,
            )
            method = setup_method(registry, cell, run)
            verdict.pooled = [teacher.num_features for teacher in run.teachers]
            for phase in checked(method.phases(run)):
                named = optimizers_of(phase, method, run)
                build_optimizers(named, cell.recipe, epochs=cell.recipe.epochs, steps_per_epoch=1)
        sources = [source.architecture for source in cell.teachers]
        nets = [handle.net for handle in run.teachers]
        teachers = list(zip(sources, nets, strict=True))
        verdict.macs = step_macs((cell.student, run.student.net), teachers, info)
    except NotApplicable as e:
        verdict.reason = str(e)
    except KdbenchError as e:
        verdict.error, verdict.teacher_error = str(e), isinstance(e, TeacherError)
    return verdict


def _check_weights(registry: Registry, cell: CellFile, k: int, net: torch.nn.Module) -> None:
    source = cell.teachers[k]
    if source.source == "checkpoint":
        load_checkpoint(net, Path(source.ref), source.sha256)
    elif source.source == "pretrained":
        registry.check_pretrained(source.architecture.name, source.architecture.args)
