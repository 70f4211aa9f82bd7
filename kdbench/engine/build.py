"""From names to objects: data set, networks, task and method of one cell, seeded per axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdbench.engine.build_dataset import validated
from kdbench.engine.cellspec import Arch, CellFile, TeacherSource
from kdbench.engine.context import CellRun
from kdbench.engine.data.context import DataContext
from kdbench.engine.handle import NetHandle
from kdbench.engine.normalise import config, renormalise
from kdbench.engine.seeds import seeded
from kdbench.engine.teachers import TeacherError, expected_normalisation
from kdbench.errors import KdbenchError, did_you_mean
from kdbench.hooks import Needs, capability_text
from kdbench.matrix.identity import derive_seed
from kdbench.protocol.dataset import Dataset
from kdbench.protocol.method import Method
from kdbench.protocol.task import Task
from kdbench.protocol.types import Build, DataInfo, NotApplicable, Tap, TaskData
from kdbench.registry import Registry


def make_task(registry: Registry, name: str) -> Task:
    """Make a task."""
    return registry.get("tasks", name).load()()  # type: ignore[no-any-return]


def method_params(cls: type[Method], name: str, preset: str | None, params: Mapping[str, Any]) -> Any:
    """Return the validated hyper-parameters: defaults, then the preset, then the overrides."""
    if preset is not None and preset not in cls.presets:
        raise KdbenchError(
            f"method '{name}' has no preset '{preset}'{did_you_mean(preset, cls.presets)}; "
            f"it has {', '.join(cls.presets) or 'none'}"
        )
    merged = {**(cls.presets[preset] if preset else {}), **params}
    return validated(cls.Params, merged, f"method '{name}'")


def builder(registry: Registry, arch: Arch) -> Callable[..., nn.Module]:
    """Return ``build(num_classes=, in_chans=, image_size=)`` for an architecture."""
    found = registry.get("architectures", arch.name)
    build = found.load()
    extra = {} if found.model is None else {"model": found.model}

    def make(**facts: Any) -> nn.Module:
        try:
            return build(**extra, **facts, **arch.args)  # type: ignore[no-any-return]
        except KdbenchError:
            raise
        except TypeError as e:
            raise KdbenchError(f"architecture '{arch.name}': {e}") from e
        except Exception as e:
            reason = f"{type(e).__name__}: {e}".splitlines()[0][:200]
            raise NotApplicable(
                f"architecture '{arch.name}' cannot be built for {facts.get('image_size')} px images ({reason})"
            ) from e

    return make


def make_net(
    build: Build,
    task: Task,
    data: TaskData,
    role: str,
    seed: int,
    recipe_channels_last: bool,
) -> nn.Module:
    """Build one network with its initialisation seeded by `seed`, on the CPU."""
    with seeded(seed):
        net = task.build(role, build, data)
    return net.to(memory_format=torch.channels_last) if recipe_channels_last else net  # type: ignore[call-overload, no-any-return]


def make_run(
    registry: Registry,
    cell: CellFile,
    info: DataInfo,
    task: Task,
    task_data: TaskData,
    device: torch.device,
    workdir: Path,
    *,
    route: Sequence[Any] = (),
    probing: bool = False,
    load_teacher: Callable[[int, nn.Module], None] = lambda k, net: None,
    build: Callable[[Registry, Arch], Build] = builder,
) -> CellRun:
    """Build the networks of a cell, by `build`, and put them into a run."""
    where: dict[str, Any] = {"image_size": info.image_size, "in_chans": info.in_chans, "device": device}
    # the memory format is of no account to whether a cell can be, and takes time
    last = cell.recipe.channels_last and not probing

    def learner(arch: Arch) -> nn.Module:
        net = task.build("student", build(registry, arch), task_data)
        net = net.to(memory_format=torch.channels_last) if last else net  # type: ignore[call-overload]
        return net.to(device)

    with seeded(derive_seed(cell.seed, "init", "student")):
        student_net = learner(cell.student)
    teachers = []
    for k, source in enumerate(cell.teachers):
        arch = source.architecture
        if source.source == "pretrained" and not probing:
            arch = Arch(name=arch.name, args={**arch.args, "pretrained": True})
        try:
            net = make_net(build(registry, arch), task, task_data, "teacher", derive_seed(k, "teacher"), last)
            load_teacher(k, net)
        except KdbenchError as e:
            raise TeacherError(str(e)) from e
        teachers.append(_teacher_handle(k, source, net.to(device), info, probing, **where))
    return CellRun(
        student=NetHandle("student", student_net, **where),
        teachers=teachers,
        build_student=partial(learner, cell.student),
        build_assistant=partial(learner, cell.assistant) if cell.assistant else None,
        task=task,
        task_data=task_data,
        recipe=cell.recipe,
        device=device,
        seed=cell.seed,
        workdir=workdir,
        route=route,
        probing=probing,
    )


def _teacher_handle(
    k: int, source: TeacherSource, net: nn.Module, info: DataInfo, probing: bool, **where: Any
) -> NetHandle:
    """Make the handle of a teacher that takes images as the data set gives them. Raises NotApplicable."""
    name = f"teacher{k}"
    expected = expected_normalisation(source, net)
    handle = NetHandle(name, net, **where)
    handle.normalisation = renormalise(net, info, expected, name, where["device"])
    cfg = config(net)
    size = tuple(cfg.get("input_size") or ())
    if probing and cfg.get("fixed_input_size") and size[-2:] != (info.image_size, info.image_size):
        _ = handle.trace  # refuses images of another size before anything is trained
    return handle


def setup_method(registry: Registry, cell: CellFile, run: CellRun) -> Method:
    """Make the cell's method and let it set up. Raises NotApplicable."""
    cls = registry.get("methods", cell.method).load()
    params = validated(cls.Params, cell.params, f"method '{cell.method}'")
    if cls.requires(params).route and any(t.source != "cell" for t in cell.teachers):
        raise NotApplicable("needs the training route of a teacher trained here; loaded weights have none")
    return prepare_method(cls, params, run)


def prepare_method(cls: type[Method], params: Any, run: CellRun) -> Method:
    """Make a method, check its needs, resolve its taps and let it set up. Raises NotApplicable."""
    with seeded(derive_seed(run.seed, "method")):
        method = cls(params)
        run.needs = cls.requires(params)
        check_needs(run.needs, run)
        run.student.want(*method.taps.get("student", ()))
        for teacher in run.teachers:
            teacher.want(*method.taps.get("teacher", ()))
        method.setup(run)
    run.lock()
    return method.to(run.device)


def check_needs(needs: Needs, run: CellRun) -> None:
    """Raise NotApplicable with the first need that the networks or the data do not meet."""
    if len(run.teachers) < needs.teachers:
        raise NotApplicable(f"needs {needs.teachers} teacher(s), the pair has {len(run.teachers)}")
    if needs.assistants and not run.has_assistant:
        raise NotApplicable("needs a pair with an assistant")
    if run.data.num_classes < needs.min_classes:
        raise NotApplicable(
            f"needs at least {needs.min_classes} classes, the data set has {run.data.num_classes}"
        )
    if run.recipe.batch_size < needs.min_batch:
        raise NotApplicable(
            f"needs batches of at least {needs.min_batch}, the recipe has {run.recipe.batch_size}"
        )
    missing = needs.capabilities - run.task.capabilities
    if missing:
        raise NotApplicable(f"needs {capability_text(sorted(missing)[0])}")
    for teacher in run.teachers:
        if needs.teacher_bn and not teacher.batchnorms():
            raise NotApplicable("needs a teacher with BatchNorm statistics")
        if needs.stage_end_act:
            _check_activations(teacher)
        if needs.equal_channels:
            _check_channels(run.student, teacher)


def _check_activations(teacher: NetHandle) -> None:
    if not any(teacher.has_activation(Tap(stage)) for stage in teacher.stages):
        raise NotApplicable(
            "needs a teacher whose stages end in an activation (no pre-activation value exists)"
        )


def _check_channels(student: NetHandle, teacher: NetHandle) -> None:
    n = min(len(student.stages), len(teacher.stages))
    if n == 0:
        raise NotApplicable("needs stages on both sides, one of the networks has none")
    for s, t in zip(student.stages[-n:], teacher.stages[-n:], strict=True):
        cs, ct = student.shape(Tap(s))[1], teacher.shape(Tap(t))[1]
        if cs != ct:
            raise NotApplicable(f"needs equal channel counts, stage widths are {cs} and {ct}")


def data_context(
    cell: CellFile,
    dataset: Dataset,
    info: DataInfo,
    device: torch.device,
    views: tuple[str, ...],
    make: Callable[..., DataContext] = DataContext,
) -> DataContext:
    """Make the data context of a cell; its order and views are seeded by the cell's seed alone."""
    return make(
        dataset,
        info,
        cell.recipe,
        storage=cell.dataset.storage,
        seed=derive_seed(cell.seed, "data"),
        device=device,
        limit_train=cell.dataset.limit_train,
        limit_test=cell.dataset.limit_test,
        views=views,
        workers=cell.loaders,
        test=not cell.trial,
    )
