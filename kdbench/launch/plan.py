"""The plan of a matrix: every cell with its id, its status and, where it cannot be, the reason."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdbench.engine.cellspec import Arch, CellFile, Data, TeacherSource, Timing
from kdbench.errors import KdbenchError, MatrixError
from kdbench.launch.foresight import single_image, too_few, training_images
from kdbench.launch.kinds import (
    dataset_key,
    method_key,
    one_of_each,
    pattern_key,
    patterns_of,
    probe_question,
)
from kdbench.launch.looking import look_at
from kdbench.launch.places import (
    NETWORKS,
    place_of,
    place_of_parameter,
    place_of_problem,
    place_of_teacher,
)
from kdbench.launch.planned import Pattern, Plan, PlannedCell, Teaching
from kdbench.launch.precision import settle
from kdbench.launch.resolve import Resolver
from kdbench.launch.teacher_plan import cached
from kdbench.matrix import CellSpec, LoadedMatrix, cell_id, expand, identity, teacher_cell, variant_label
from kdbench.matrix.document import KeyPath
from kdbench.matrix.identity import PROTOCOL
from kdbench.matrix.storage import choose_storage
from kdbench.matrix.studies import read_studies
from kdbench.matrix.tune import DEFAULT
from kdbench.protocol.types import DataInfo
from kdbench.registry import Registry
from kdbench.results.schema import Labels, Tuning
from kdbench.results.store import RunFolder

__all__ = ["Plan", "PlannedCell", "Planner"]


class Planner:
    """Turns a matrix into a plan; asks the registry, the data sets and (through the resolver) torch."""

    def __init__(
        self,
        registry: Registry,
        loaded: LoadedMatrix,
        run: RunFolder,
        disable: Sequence[str],
        device: str = "auto",
        waits: Callable[[], None] | None = None,
    ) -> None:
        self._registry, self._loaded, self._run, self._device = registry, loaded, run, device
        self._disable = list(disable)
        self._resolver = Resolver(registry, disable, waits)
        self._infos: dict[str, DataInfo] = {}
        self._data_args: dict[str, dict[str, Any]] = {}
        self._methods: dict[str, dict[str, Any]] = {}
        self._digests: dict[str, str] = {}
        self._trained: dict[tuple[Any, ...], PlannedCell] = {}
        self._patterns: dict[tuple[Any, ...], Pattern] = {}

    def plan(self, only: Sequence[str] = ()) -> Plan:
        """Return the plan. Raises KdbenchError for anything in the matrix that cannot be understood."""
        found = None if self._loaded.matrix.tune is None else read_studies(self._run.path)
        expansion = expand(self._loaded, only=only, found=found)
        return self.plan_cells(expansion.cells, expansion.warnings)[0]

    def plan_cells(
        self,
        cells: Sequence[CellSpec],
        warnings: Sequence[str] = (),
        like: Sequence[PlannedCell] = (),
    ) -> tuple[Plan, list[PlannedCell]]:
        """Return the plan of these cells, and for each what was planned for it. Raises KdbenchError.

        `like` are cells of an earlier plan with the same networks, one for each: then none is built again.
        """
        specs, settled = settle(cells, self._resolver, self._device)
        self._check_names(specs)
        self._describe_datasets(specs)
        self._resolve_methods(specs)
        known: dict[str, PlannedCell] = {}
        self._trained.clear()
        self._patterns.clear()
        asked = [self._add(spec, known) for spec in specs]
        planned = list(known.values())
        planned.sort(key=lambda c: c.pattern.spec.role != "teacher")
        for cell, model in zip(asked, like, strict=bool(like)):
            cell.take_after(model)
        known_to_be = {cell.id for cell in asked} if like else set()
        self._probe([cell for cell in planned if cell.id not in known_to_be])
        planned = _without_idle_teachers(planned)
        there = self._run.cell_names()
        look_at([c for c in planned if c.id in there and c.status != "not_applicable"], self._registry)
        possible = [p.spec for p in patterns_of(planned)]
        doubts = dict.fromkeys(single_image(spec, self._infos[dataset_key(spec)]) for spec in possible)
        told = [*warnings, *(text for text in doubts if text)]
        return Plan(self._loaded, self._run, planned, told, settled), asked

    def space(self, spec: CellSpec) -> dict[str, Any]:
        """Return the space that the method of a planned cell declares for its search."""
        return dict(self._methods[method_key(spec)]["search"])

    def _check_names(self, specs: Sequence[CellSpec]) -> None:
        for spec in one_of_each(specs):
            wanted = [("tasks", spec.task), ("methods", spec.method.name)]
            nets = (spec.student, spec.teacher, spec.assistant)
            wanted += [("architectures", net.name) for net in nets if net is not None]
            wanted += [("datasets", spec.dataset.name), *(("evaluators", name) for name in spec.evaluators)]
            for kind, name in wanted:
                try:
                    self._registry.get(kind, name)
                except KdbenchError as e:
                    raise MatrixError(f"{self._loaded.where(*self._place(spec, kind, name))}: {e}") from e

    def _place(self, spec: CellSpec, kind: str, name: str) -> KeyPath:
        if kind == "methods":
            return spec.source
        keys = {"tasks": ("task",), "architectures": NETWORKS, "datasets": ("datasets", "include")}
        return place_of(self._loaded, keys.get(kind, (kind,)), name)

    def _describe_datasets(self, specs: Sequence[CellSpec]) -> None:
        from kdbench.engine.build_dataset import make_dataset

        for spec in one_of_each(specs):
            key = dataset_key(spec)
            if key in self._infos:
                continue
            where = self._loaded.where(*self._place(spec, "datasets", spec.dataset.name))
            try:
                dataset = make_dataset(self._registry, spec.dataset.name, spec.dataset.args)
                info = dataset.describe()
            except KdbenchError as e:
                raise type(e)(f"{where}: {e}") from e
            self._check_limits(spec, info, where)
            self._infos[key] = info
            resolved = dataset.params.model_dump(mode="json")
            self._data_args[key] = {k: v for k, v in resolved.items() if k not in dataset.location}

    def _check_limits(self, spec: CellSpec, info: DataInfo, where: str) -> None:
        for key, limit, images in (
            ("limit_train", spec.dataset.limit_train, info.n_train),
            ("limit_test", spec.dataset.limit_test, info.n_test),
        ):
            if limit is not None and not info.num_classes <= limit <= images:
                raise MatrixError(
                    f"{where}: {key}: {limit}: '{spec.dataset.label}' has {info.num_classes} classes and {images} "
                    f"images in that split; expected a number between the two"
                )

    def _resolve_methods(self, specs: Sequence[CellSpec]) -> None:
        distinct: dict[str, CellSpec] = {}
        for spec in one_of_each(specs):
            distinct.setdefault(method_key(spec), spec)
            if (alone := teacher_cell(spec)) is not None:
                distinct.setdefault(method_key(alone), alone)
        questions = [
            {
                "ask": "method",
                "name": s.method.name,
                "preset": s.method.preset,
                "params": dict(s.method.params),
            }
            for s in distinct.values()
        ]
        answers = self._resolver.ask(questions)
        for (key, spec), answer in zip(distinct.items(), answers, strict=True):
            if answer.get("error"):
                where = self._loaded.where(*place_of_parameter(spec, answer["error"]))
                raise MatrixError(f"{where}: {answer['error']}")
            self._methods[key] = answer

    def _add(self, spec: CellSpec, cells: dict[str, PlannedCell], keep: int = 0) -> PlannedCell:
        key = pattern_key(spec)
        pattern = self._patterns.get(key)
        if pattern is None:
            pattern = self._patterns[key] = self._pattern(spec, cells)
        cell_id = pattern.id_of(spec.seed)
        cell = cells.get(cell_id)
        if cell is None:
            cell = cells[cell_id] = PlannedCell(pattern, spec.seed, cell_id)
        elif spec.role == "student" and cell.pattern.spec.role == "teacher":
            cell.pattern = pattern
        if pattern.reason:
            cell.status, cell.reason = "not_applicable", pattern.reason
        if keep:
            from kdbench.matrix.route import route_epochs

            wanted = {*cell.file.keep_epochs, *route_epochs(spec.recipe.epochs, keep)}
            cell.change(keep_epochs=sorted(wanted))
        return cell

    def _pattern(self, spec: CellSpec, cells: dict[str, PlannedCell]) -> Pattern:
        method = self._methods[method_key(spec)]
        teachers: list[TeacherSource] = []
        after: list[str] = []
        reason = None
        if method["teachers"] and spec.teacher is None:
            reason = f"needs {method['teachers']} teacher(s), the pair has none"
        elif spec.teacher is not None:
            for k in range(method["teachers"]):
                source, dependency = self._teacher(spec, k, cells, method["route"])
                teachers.append(source)
                after += [dependency] if dependency else []
            reason = too_few(spec.teacher, method["teachers"])
        if reason is None and method["assistants"] and spec.assistant is None:
            reason = "needs a pair with an assistant"
        teaching = Teaching(
            info=self._infos[dataset_key(spec)],
            reads=method["reads"],
            real_data=method["real_data"],
            views=tuple(method["views"]),
        )
        file = self._file(spec, method, teachers)
        return Pattern(spec, file, self._run.cells, after, teaching=teaching, reason=reason)

    def _teacher(
        self, spec: CellSpec, k: int, cells: dict[str, PlannedCell], route: int
    ) -> tuple[TeacherSource, str | None]:
        teacher = spec.teacher
        assert teacher is not None
        arch = Arch(name=teacher.name, args=dict(teacher.args))
        if teacher.checkpoint is not None:
            path = Path(teacher.checkpoint).expanduser()
            where = self._loaded.where(*place_of_teacher(self._loaded, spec))
            digest = self._hash(path, where)
            if teacher.sha256 is not None and teacher.sha256.lower() != digest:
                raise MatrixError(f"{where}: {path}: sha256 is {digest}, the matrix expects {teacher.sha256}")
            channels = self._infos[dataset_key(spec)].in_chans
            if teacher.mean is not None and len(teacher.mean) != channels:
                raise MatrixError(
                    f"{where}: the teacher's mean and std have {len(teacher.mean)} values, "
                    f"'{spec.dataset.label}' has {channels} channels"
                )
            source = TeacherSource(
                architecture=arch,
                source="checkpoint",
                ref=str(path.resolve()),
                sha256=digest,
                mean=teacher.mean,
                std=teacher.std,
            )
            return source, None
        if teacher.pretrained:
            return TeacherSource(architecture=arch, source="pretrained", ref=teacher.name), None
        # the specs live as long as the plan is made, so their parts are known by identity
        key = (spec.task, id(teacher), id(spec.dataset), k, route)
        trained = self._trained.get(key)
        if trained is None:
            alone = teacher_cell(spec, k)
            assert alone is not None
            trained = self._trained[key] = self._add(alone, cells, keep=route)
        return TeacherSource(architecture=arch, source="cell", ref=trained.id), trained.id

    def _hash(self, path: Path, where: str) -> str:
        key = str(path)
        if key not in self._digests:
            try:
                with path.open("rb") as f:
                    self._digests[key] = hashlib.file_digest(f, "sha256").hexdigest()
            except OSError as e:
                raise MatrixError(
                    f"{where}: {path}: cannot read the teacher's checkpoint ({e.strerror or e})"
                ) from e
        return self._digests[key]

    def _file(self, spec: CellSpec, method: Mapping[str, Any], teachers: list[TeacherSource]) -> CellFile:
        get, info = self._registry.get, self._infos[dataset_key(spec)]
        storage = choose_storage(spec.dataset.storage, info, spec.recipe.augment.kind)
        # only for methods that use it, so that naming one leaves the ids of all other cells as they are
        assistant = spec.assistant if method["assistants"] else None
        described: list[dict[str, Any]] = []
        for t in teachers:
            if t.source == "cell":
                described.append({"cell": t.ref})
            else:
                body = {"architecture": t.architecture.name, "args": t.architecture.args}
                if t.mean is not None and t.std is not None:
                    body |= {"mean": list(t.mean), "std": list(t.std)}
                described.append({t.source: t.sha256 or t.ref, **body})
        table = cached(spec.recipe, method) if teachers else None
        who = identity(
            spec,
            params=method["params"],
            method_version=get("methods", spec.method.name).version,
            student_version=get("architectures", spec.student.name).version,
            dataset_revision=info.revision,
            dataset_version=get("datasets", spec.dataset.name).version,
            task_version=get("tasks", spec.task).version,
            teachers=described,
            assistant_version=get("architectures", assistant.name).version if assistant else None,
            storage=storage,
            dataset_args=self._data_args[dataset_key(spec)],
            teacher_cache=table,
        )
        timing = spec.throughput
        return CellFile(
            cell_id=cell_id(who),
            protocol=PROTOCOL,
            identity=who,
            labels=Labels(
                matrix=self._loaded.matrix.name,
                task=spec.task,
                dataset=spec.dataset.label,
                student=spec.student.label,
                teacher=spec.teacher.label if teachers and spec.teacher else None,
                assistant=assistant.label if assistant else None,
                method=spec.method.name,
                variant=variant_label(spec.method, table),
                recipe=spec.recipe.name,
                role=spec.role,
                seed=spec.seed,
                fidelity=method["fidelity"],
                preset=spec.method.preset,
                track=spec.tuning.track if spec.tuning else DEFAULT,
            ),
            task=spec.task,
            method=spec.method.name,
            params=method["params"],
            student=Arch(name=spec.student.name, args=dict(spec.student.args)),
            assistant=Arch(name=assistant.name, args=dict(assistant.args)) if assistant else None,
            teachers=teachers,
            dataset=Data(
                name=spec.dataset.name,
                label=spec.dataset.label,
                args=dict(spec.dataset.args),
                limit_train=spec.dataset.limit_train,
                limit_test=spec.dataset.limit_test,
                storage=storage,
                revision=info.revision,
            ),
            recipe=spec.recipe,
            seed=spec.seed,
            teacher_cache=table,
            route=method["route"],
            evaluators=list(spec.evaluators),
            throughput=Timing.model_validate(timing.model_dump(mode="json")) if timing else None,
            disable_plugins=self._disable,
            tuning=_tuning(spec),
        )

    def _probe(self, cells: Sequence[PlannedCell]) -> None:
        groups: dict[str, list[Pattern]] = {}
        for pattern in patterns_of(cells):
            groups.setdefault(json.dumps(probe_question(pattern.file), sort_keys=True), []).append(pattern)
        answers = self._resolver.ask([json.loads(q) for q in groups])
        for group, answer in zip(groups.values(), answers, strict=True):
            spec = group[0].spec
            if answer.get("error"):
                about = place_of_problem(self._loaded, spec, answer["error"])
                if answer.get("teacher_error"):
                    about = place_of_teacher(self._loaded, spec)
                where = self._loaded.where(*about)
                raise MatrixError(f"{where}: {answer['error']}")
            for pattern in group:
                pattern.macs = answer.get("macs")
                pattern.images = training_images(pattern.spec, self._infos[dataset_key(pattern.spec)])
                if pattern.teaching is not None:
                    pattern.teaching.pooled = tuple(answer.get("pooled") or ())
                pattern.reason = pattern.reason or answer.get("reason")
        for cell in cells:
            if cell.pattern.reason and cell.status != "not_applicable":
                cell.status, cell.reason = "not_applicable", cell.pattern.reason


def _without_idle_teachers(cells: Sequence[PlannedCell]) -> list[PlannedCell]:
    """Drop the teachers of nothing but cells that cannot be."""
    wanted = {teacher for cell in cells if cell.status != "not_applicable" for teacher in cell.after}
    return [cell for cell in cells if cell.pattern.spec.role != "teacher" or cell.id in wanted]


def _tuning(spec: CellSpec) -> Tuning | None:
    if spec.tuning is None:
        return None
    facts = {key: value for key, value in vars(spec.tuning).items() if key != "shared"}
    return Tuning.model_validate({**facts, "seeds": list(spec.tuning.seeds)})
