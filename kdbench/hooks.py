"""Hook specifications and registry entries: what a plug-in tells kdbench about itself.

This module imports neither torch nor anything of kdbench, so that a plug-in package can be asked for its
entries in milliseconds. An entry names its object as ``"package.module:attribute"``; the target is imported
only when a cell, or `kdbench show`, needs it.

A plug-in is a module or package with functions marked :data:`hookimpl`, registered through the entry-point
group ``kdbench``::

    [project.entry-points.kdbench]
    my_methods = "my_package.kdbench_plugin"
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import pluggy

#: Version of the plug-in interface. An entry made for a newer one is reported as incompatible.
API_VERSION = 1
#: Entry-point group in which plug-ins register; also the pluggy project name.
GROUP = "kdbench"

#: Capabilities of a task in words, each what a method needs of the task.
CAPABILITIES = {
    "supervised": "a task with labels to learn from",
    "distillable": "a task whose outputs can be compared",
    "features": "networks with inner features",
}

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a method needs of a cell. A cell that cannot give it is "not applicable", with the reason.

    Attributes:
        teachers: number of teachers (0: the method has none; online methods make their own peers).
        assistants: number of assistants, further architectures that the pair names (0 or 1).
        route: number of checkpoints on the teacher's training route, at equal epoch intervals (0: none).
        data: ``"real"`` or ``"none"`` (data-free: the training set is never read).
        labels: whether labels of the training set are used.
        index: whether ``batch.index`` (the sample's number in the training split) is used.
        views: names of extra views of each image in ``batch.views``: ``"weak"``, ``"strong"``.
        teacher_bn: the teacher must have BatchNorm running statistics.
        stage_end_act: the teacher's stages must end in an activation (pre-activation values exist).
        equal_channels: teacher's and student's stages must have equal channel counts.
        min_batch: smallest batch on which the loss is defined.
        min_classes: smallest number of classes on which the loss is defined.
        capabilities: task capabilities, e.g. ``"distillable"``, ``"supervised"``, ``"features"``.
        reads: what is used of what ``run.teach`` gives for training images: ``"logits"``; ``"pooled"``, logits and
            pooled features; ``"taps"``, features at taps only; or ``"all"``, anything. With the first two a
            teacher's outputs can come from a table of all views, where the recipe asks for one; with ``"taps"``
            its forward stops at the last tap.
    """

    teachers: int = 1
    assistants: int = 0
    route: int = 0
    data: str = "real"
    labels: bool = True
    index: bool = False
    views: tuple[str, ...] = ()
    teacher_bn: bool = False
    stage_end_act: bool = False
    equal_channels: bool = False
    min_batch: int = 1
    min_classes: int = 2
    capabilities: frozenset[str] = frozenset()
    reads: Literal["taps", "logits", "pooled", "all"] = "all"

    def describe(self, given: Collection[str] = ()) -> list[str]:
        """Return the needs that go beyond one teacher, real data and labels, as short phrases.

        Capabilities in `given` are left out: where every task has them, they tell nothing.
        """
        out: list[str] = []
        if self.teachers != 1:
            out.append("no teacher" if self.teachers == 0 else f"{self.teachers} teachers")
        if self.assistants:
            out.append("an assistant")
        if self.route:
            out.append(f"teacher route of {self.route} checkpoints")
        if self.data == "none":
            out.append("no data")
        if self.index:
            out.append("sample index")
        if self.views:
            out.append("views: " + ", ".join(self.views))
        if self.teacher_bn:
            out.append("teacher with BatchNorm")
        if self.stage_end_act:
            out.append("teacher with stage-end activations")
        if self.equal_channels:
            out.append("equal channel counts")
        if self.min_batch > 1:
            out.append(f"batch >= {self.min_batch}")
        if self.min_classes > 2:
            out.append(f"classes >= {self.min_classes}")
        out.extend(capability_text(c) for c in sorted(self.capabilities - set(given)))
        return out


def capability_text(name: str) -> str:
    """Return a capability as what is needed: ``a task ...``."""
    return CAPABILITIES.get(name, f"a task that is {name}")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What every registry entry has.

    Attributes:
        name: the name in matrix files, unique per kind.
        target: ``"package.module:attribute"``, imported when needed.
        summary: one line for `kdbench list`.
        version: enters the cell id; raise it when results made by an older version no longer compare.
            Empty: the version of the distribution that provides the entry.
        tags: free words for `kdbench list`.
        api: plug-in interface that the entry was written for.
    """

    name: str
    target: str
    summary: str = ""
    version: str = ""
    tags: tuple[str, ...] = ()
    api: int = API_VERSION


@dataclass(frozen=True, kw_only=True)
class MethodEntry(Entry):
    """A distillation method; target: a subclass of :class:`kdbench.api.Method`.

    `check_student` is the architecture that the conformance suite tries it on, where the usual one cannot serve.
    """

    paper: str = ""
    needs: Needs = field(default_factory=Needs)
    check_student: str = "timm:test_resnet"


@dataclass(frozen=True, kw_only=True)
class ArchitectureEntry(Entry):
    """An architecture, or a namespace of them.

    Target: a callable ``build(*, num_classes, in_chans, image_size, **args) -> nn.Module``. With
    ``namespace=True`` the entry serves every name ``"<name>:<model>"`` and the callable also gets
    ``model=``; `names` then points at a torch-free callable that lists the model names.

    Attributes:
        pretrained: ``"package.module:attribute"`` of a callable that raises KdbenchError where there are no
            pretrained weights, without fetching anything; it gets the matrix's ``args``, and ``model=`` in a
            namespace. A teacher with ``pretrained: true`` is then built with ``pretrained=True``. Empty: the
            architecture has no such weights.
    """

    namespace: bool = False
    names: str = ""
    params_count: int | None = None
    pretrained: str = ""


@dataclass(frozen=True, kw_only=True)
class DatasetEntry(Entry):
    """A data set; target: a subclass of :class:`kdbench.api.Dataset` (its module must not import torch)."""

    task: str = "classification"


@dataclass(frozen=True, kw_only=True)
class TaskEntry(Entry):
    """A task; target: a subclass of :class:`kdbench.api.Task`."""

    capabilities: frozenset[str] = frozenset()
    kind: str = "categorical"
    primary: str = "top1"


@dataclass(frozen=True, kw_only=True)
class EvaluatorEntry(Entry):
    """An extra measurement of a trained student; target: ``evaluate(run, net, split) -> dict[str, float]``."""

    needs_teacher: bool = False


@dataclass(frozen=True, kw_only=True)
class LauncherEntry(Entry):
    """A way to run cells; target: a class that follows :class:`Launcher`. Its module must not import torch."""


@dataclass(frozen=True, kw_only=True)
class SinkEntry(Entry):
    """A place that mirrors records; target: a class that follows :class:`Sink`."""


@dataclass(frozen=True, slots=True)
class Job:
    """One cell as a launcher sees it: a folder with a ``cell.json`` that ``python -m kdbench cell FOLDER`` runs.

    Attributes:
        cell_id: 64 hexadecimal digits.
        folder: the cell's folder; the worker leaves ``result.json`` there.
        label: short text for people.
        after: cell ids that must be done before this one starts (its teachers).
        timeout_s: hard limit in seconds of one attempt.
        method: the cell's method, for launchers that give methods different resources.
        cost: expected seconds, or while these are unknown a number that grows with them; the longest start first.
        gang: for a job of several cells in one process, one job for each of them; the other fields then speak
            for all. Only launchers with an attribute ``gangs = True`` get such jobs.
    """

    cell_id: str
    folder: Path
    label: str
    after: tuple[str, ...] = ()
    timeout_s: float | None = None
    cost: float = 1.0
    gang: tuple[Job, ...] = ()
    method: str = ""


#: A file that is in a cell's folder while its process (``kdbench cell``) waits for others of its machine, because
#: it or they measure speed alone: time that does not count against the limit of the attempt.
WAITS = ".waits"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the cells of a launcher run that does not run them on this machine.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        cores: cores of each cell.
        leaving: what to tell a user who stops the run; empty: as with workers on this machine.
        news: whether there are endings of cells that were not reported, from before this process.
    """

    device: str
    cores: int = 1
    leaving: str = ""
    news: bool = False


class Launcher(Protocol):
    """Runs jobs and reports events; owns processes, never results.

    ``report`` is called with mappings that have at least ``event`` and ``cell_id``; events are ``started``,
    ``epoch`` (the row of ``curves.jsonl``), ``finished`` (the cell's record is on disk), ``died`` (the
    process ended without a record: keys ``status``, ``message``), ``released`` (the cell left a gang and
    runs again in another process: key ``message``), ``found`` (the cell's record was written before this
    process began, and nobody told of it) and, without a ``cell_id``, ``note`` (key ``message``). ``stop()``
    turns true when the user wants to leave: running cells save their state and end.

    A class method ``check(settings, methods)`` is optional: it raises :class:`kdbench.errors.OptionError` for what
    the launcher does not take of its part of a matrix's ``launcher_options``, also where another one is chosen.

    A launcher whose cells run on other machines has a class method ``place(options, device) -> Place``, with the
    options of :meth:`__init__` as far as they are known before the run and the device that the user asked for.
    """

    def __init__(self, options: Mapping[str, Any]) -> None: ...

    def run(
        self,
        jobs: Sequence[Job],
        report: Callable[[Mapping[str, Any]], None],
        stop: Callable[[], int],
    ) -> None: ...


class Sink(Protocol):
    """Mirrors finished records; idempotent by cell id. May raise: the run goes on and `kdbench sync` repairs.

    A sink may also have ``annotate(cell_id, metrics)``, which gets what only the whole matrix can tell (nan:
    nothing), ``summarise(rows)``, which gets what is said of the seeds of each row together, ``observe(samples)``,
    which gets how busy the machine was, and a static ``prepare()``, called in a thread before :meth:`open`, to
    import what takes long.
    """

    def open(self, matrix: Mapping[str, Any], *, uri: str | None = None) -> None: ...

    def write(self, record: Mapping[str, Any], folder: Path) -> None: ...

    def close(self, status: str) -> None: ...


class KdbenchSpec:
    """The hooks. Each provider hook returns a list of entries; each event hook returns nothing."""

    @hookspec
    def kdbench_methods(self) -> Sequence[MethodEntry]:  # type: ignore[empty-body]
        """Distillation methods."""

    @hookspec
    def kdbench_architectures(self) -> Sequence[ArchitectureEntry]:  # type: ignore[empty-body]
        """Architectures for teachers and students."""

    @hookspec
    def kdbench_datasets(self) -> Sequence[DatasetEntry]:  # type: ignore[empty-body]
        """Data sets."""

    @hookspec
    def kdbench_tasks(self) -> Sequence[TaskEntry]:  # type: ignore[empty-body]
        """Tasks."""

    @hookspec
    def kdbench_evaluators(self) -> Sequence[EvaluatorEntry]:  # type: ignore[empty-body]
        """Extra measurements of trained students."""

    @hookspec
    def kdbench_launchers(self) -> Sequence[LauncherEntry]:  # type: ignore[empty-body]
        """Ways to run cells."""

    @hookspec
    def kdbench_sinks(self) -> Sequence[SinkEntry]:  # type: ignore[empty-body]
        """Places that mirror records."""

    @hookspec
    def kdbench_matrix_started(self, plan: Mapping[str, Any]) -> None:
        """A matrix starts; `plan` has the matrix name and the cells with their statuses."""

    @hookspec
    def kdbench_matrix_finished(self, summary: Mapping[str, Any]) -> None:
        """A matrix ended; `summary` counts cells per status."""

    @hookspec
    def kdbench_cell_started(self, cell: Mapping[str, Any]) -> None:
        """A worker took up a cell."""

    @hookspec
    def kdbench_cell_finished(self, cell: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """A cell has its record."""

    @hookspec
    def kdbench_epoch_finished(self, cell: Mapping[str, Any], epoch: Mapping[str, Any]) -> None:
        """A cell finished an epoch; `epoch` is the row of ``curves.jsonl``."""
