"""From a matrix to its cells: product, ``exclude``, ``include``, duplicates, ``--only``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from kdbench.errors import MatrixError
from kdbench.matrix.document import KeyPath
from kdbench.matrix.identity import canonical_json
from kdbench.matrix.load import LoadedMatrix
from kdbench.matrix.recipe import Recipe
from kdbench.matrix.recipe_files import flatten
from kdbench.matrix.schema import ArchItem, DatasetItem, Include, MethodItem, TeacherItem
from kdbench.matrix.searches import HeldOut, SearchSpec, choose_dataset, searches, tuned_cells
from kdbench.matrix.select import excluded, select
from kdbench.matrix.spec import (
    ArchSpec,
    CellSpec,
    DatasetSpec,
    MethodSpec,
    TeacherSpec,
    content_key,
    dataset_key,
    variant_label,
)
from kdbench.matrix.studies import Study

T = TypeVar("T")

#: Most cells of one matrix.
MAX_CELLS = 100_000


@dataclass
class Expansion:
    """The cells of a matrix in a fixed order (data set, pair, method, seed), without those of teachers.

    Those with searched hyper-parameters come last. `searches` are all that the matrix asks for.
    """

    cells: list[CellSpec]
    warnings: list[str] = field(default_factory=list)
    searches: list[SearchSpec] = field(default_factory=list)


@dataclass(frozen=True)
class _Method:
    spec: MethodSpec
    recipe: Recipe
    source: KeyPath


@dataclass(frozen=True)
class _Pair:
    teacher: TeacherSpec | None
    student: ArchSpec
    label: str
    assistant: ArchSpec | None = None


def expand(
    loaded: LoadedMatrix, *, only: Sequence[str] = (), found: Mapping[str, Study] | None = None
) -> Expansion:
    """Return the cells of a matrix.

    ``exclude`` thins out the product of the axes, ``include`` then adds to it, equal cells are merged with a
    warning, the same cells follow with hyper-parameters that the searches `found` (see
    :mod:`kdbench.matrix.searches`), and `only` (terms such as ``method=ab,kd``) keeps what it names. Raises
    MatrixError.
    """
    return _Expander(loaded).run(only, found)


class _Expander:
    def __init__(self, loaded: LoadedMatrix) -> None:
        self._loaded, self._matrix = loaded, loaded.matrix
        self._recipe = self._named(self._matrix.recipe, ("recipe",))
        teacher_recipe = self._matrix.teacher_recipe
        self._teacher_recipe = (
            self._recipe if teacher_recipe is None else self._named(teacher_recipe, ("teacher_recipe",))
        )
        self._warnings: list[str] = []

    def run(self, only: Sequence[str], found: Mapping[str, Study] | None) -> Expansion:
        matrix = self._matrix
        self._methods = [self._method(item, ("methods", i)) for i, item in enumerate(matrix.methods)]
        self._datasets = [_dataset(item) for item in matrix.datasets]
        self._pairs = self._all_pairs()
        cells = self._product(self._methods, self._pairs, self._datasets, matrix.seeds)
        groups: list[tuple[KeyPath, list[CellSpec]]] = [((), self._without_excluded(cells))]
        for i, item in enumerate(matrix.include):
            groups.append((("include", i), self._included(item, ("include", i))))
            self._check_count(sum(len(group) for _, group in groups), ("include", i))
        cells = self._merged(groups)
        self._check_labels(cells)
        if not cells:
            raise MatrixError(f"{self._loaded.where('exclude')}: exclude: it leaves no cell of the matrix")
        searches = self._searches(cells)
        if searches and found is not None:
            further, lacking = tuned_cells(searches, cells, found)
            cells += further
            self._warnings += lacking
        chosen = select(cells, only)
        if not chosen:
            raise MatrixError(f"--only {' '.join(only)}: no cell matches all of it")
        return Expansion(chosen, self._warnings, searches)

    def _searches(self, cells: Sequence[CellSpec]) -> list[SearchSpec]:
        tune = self._matrix.tune
        if tune is None:
            return []
        held_out = None
        if tune.pair is not None:
            teacher = self._teacher(tune.pair.teacher, ("tune", "pair", "teacher"))
            pair = _pair(teacher, _arch(tune.pair.student), tune.pair.label, tune.pair.assistant)
            dataset = choose_dataset(self._loaded, self._datasets, tune.dataset)
            held_out = HeldOut(teacher, pair.student, pair.assistant, pair.label, dataset)
        return searches(self._loaded, tune, cells, held_out)

    def _product(
        self,
        methods: Sequence[_Method],
        pairs: Sequence[_Pair],
        datasets: Sequence[DatasetSpec],
        seeds: Sequence[int],
        recipe: Recipe | None = None,
    ) -> list[CellSpec]:
        self._check_count(math.prod(map(len, (methods, pairs, datasets, seeds))), ("seeds",))
        matrix = self._matrix
        return [
            CellSpec(
                role="student",
                task=matrix.task,
                method=method.spec,
                teacher=pair.teacher,
                student=pair.student,
                dataset=dataset,
                recipe=recipe or method.recipe,
                seed=seed,
                source=method.source,
                evaluators=matrix.evaluators,
                throughput=matrix.throughput,
                timeout_s=matrix.timeout_s,
                pair=pair.label,
                assistant=pair.assistant,
            )
            for dataset, pair, method, seed in product(datasets, pairs, methods, seeds)
        ]

    def _check_count(self, count: int, path: KeyPath) -> None:
        if count > MAX_CELLS:
            where = self._loaded.where(*path)
            raise MatrixError(
                f"{where}: the matrix has more than {MAX_CELLS:,} cells; split it, or exclude some"
            )

    def _named(self, recipe: Recipe, path: KeyPath) -> Recipe:
        return recipe.named(self._loaded.recipes[path].label)

    def _method(self, item: MethodItem, path: KeyPath) -> _Method:
        recipe, changes = self._recipe, {}
        if item.recipe is not None:
            recipe = self._named(item.recipe, (*path, "recipe"))
            changes = self._changes((*path, "recipe"))
        spec = MethodSpec(item.name, item.params, item.preset, item.label, changes)
        return _Method(spec, recipe, path)

    def _changes(self, path: KeyPath) -> dict[str, Any]:
        """Return how a recipe differs from the matrix's, in terms of what was written."""
        own, other = self._loaded.recipes[("recipe",)], self._loaded.recipes[path]
        if own.root != other.root:
            return {"base": other.root, **other.changes}
        before, after = flatten(own.raw), flatten(other.raw)
        dropped = dict.fromkeys(before.keys() - after.keys(), "default")
        return {key: value for key, value in after.items() if before.get(key) != value} | dict(
            sorted(dropped.items())
        )

    def _teacher(self, item: TeacherItem | None, path: KeyPath) -> TeacherSpec | None:
        if item is None:
            return None
        checkpoint = None
        if item.checkpoint is not None:
            # An absolute path on the right wins, so only relative ones start at the matrix file.
            checkpoint = str(self._loaded.path.parent / Path(item.checkpoint).expanduser())
        return TeacherSpec(
            name=item.name,
            args=item.args,
            checkpoint=checkpoint,
            sha256=item.sha256,
            mean=item.mean,
            std=item.std,
            pretrained=item.pretrained,
            recipe=self._teacher_recipe
            if item.recipe is None
            else self._named(item.recipe, (*path, "recipe")),
            seed=self._matrix.teacher_seed if item.seed is None else item.seed,
            method=self._matrix.teacher_method,
        )

    def _all_pairs(self) -> list[_Pair]:
        matrix = self._matrix
        if matrix.pairs is not None:
            return [
                _pair(
                    self._teacher(p.teacher, ("pairs", i, "teacher")), _arch(p.student), p.label, p.assistant
                )
                for i, p in enumerate(matrix.pairs)
            ]
        teachers = [self._teacher(t, ("teachers", i)) for i, t in enumerate(matrix.teachers or ())]
        return [_pair(t, _arch(s)) for t, s in product(teachers, matrix.students or ())]

    def _without_excluded(self, cells: list[CellSpec]) -> list[CellSpec]:
        for i, item in enumerate(self._matrix.exclude):
            kept = [spec for spec in cells if not excluded(spec, item)]
            if len(kept) == len(cells):
                self._warnings.append(f"{self._loaded.where('exclude', i)}: exclude[{i}] matches no cell")
            cells = kept
        return cells

    def _included(self, item: Include, path: KeyPath) -> list[CellSpec]:
        given = item.model_fields_set
        methods: list[_Method] = self._methods
        if item.method is not None:
            methods = []
            for j, each in enumerate(item.method):
                known = [m for m in self._methods if each.name in (m.spec.name, variant_label(m.spec))]
                plain = each.model_fields_set == {"name"}
                methods += (
                    known if plain and known else [self._method(each, self._item_path(path, "method", j))]
                )
        datasets: list[DatasetSpec] = self._datasets
        if item.dataset is not None:
            datasets = []
            for data in item.dataset:
                same = [d for d in self._datasets if data.name in (d.name, d.label)]
                datasets += same if data.model_fields_set == {"name"} and same else [_dataset(data)]
        pairs = self._pairs
        if "teacher" in given or item.student is not None:
            teachers = _unique(pair.teacher for pair in self._pairs)
            if "teacher" in given:
                teachers = []
                for j, one in enumerate(item.teacher):
                    teachers += self._included_teachers(one, self._item_path(path, "teacher", j))
            students = _unique(pair.student for pair in self._pairs)
            if item.student is not None:
                students = []
                for arch in item.student:
                    known_students = [
                        p.student for p in self._pairs if arch.name in (p.student.name, p.student.label)
                    ]
                    plain = arch.model_fields_set == {"name"}
                    students += _unique(known_students) if plain and known_students else [_arch(arch)]
            pairs = [self._known_pair(t, s) for t, s in product(teachers, students)]
        if item.assistant is not None:
            pairs = [replace(pair, assistant=_arch(item.assistant)) for pair in pairs]
        recipe = None if item.recipe is None else self._named(item.recipe, (*path, "recipe"))
        if recipe is not None:
            changes = self._changes((*path, "recipe"))
            methods = [replace(m, spec=replace(m.spec, recipe=changes)) for m in methods]
        seeds = self._matrix.seeds if item.seed is None else item.seed
        return self._product(methods, pairs, datasets, seeds, recipe)

    def _item_path(self, path: KeyPath, axis: str, position: int) -> KeyPath:
        """Return the key path of a value of an include axis, which may be written with or without a list."""
        listed = (*path, axis, position)
        written = (*listed, "recipe") in self._loaded.recipes or listed in self._loaded.document.marks
        return listed if written else (*path, axis)

    def _included_teachers(self, item: TeacherItem | None, path: KeyPath) -> list[TeacherSpec | None]:
        if item is not None and item.model_fields_set == {"name"}:
            known = [
                p.teacher for p in self._pairs if p.teacher and item.name in (p.teacher.name, p.teacher.label)
            ]
            if known:
                return _unique(known)
        return [self._teacher(item, path)]

    def _known_pair(self, teacher: TeacherSpec | None, student: ArchSpec) -> _Pair:
        return next(
            (p for p in self._pairs if p.teacher == teacher and p.student == student), _pair(teacher, student)
        )

    def _merged(self, groups: Sequence[tuple[KeyPath, list[CellSpec]]]) -> list[CellSpec]:
        """Drop cells that are equal to an earlier one; say where both stand."""
        kept: dict[tuple[int, int], tuple[CellSpec, KeyPath]] = {}
        merged: dict[tuple[str, str], int] = {}
        contents: dict[bytes, int] = {}
        # cells of a product have their parts in common, so what they say but for the seed is worked out once
        known: dict[tuple[int, ...], int] = {}
        for origin, cells in groups:
            for spec in cells:
                parts = (spec.method, spec.teacher, spec.student, spec.assistant, spec.dataset, spec.recipe)
                key = tuple(map(id, parts))
                if key not in known:
                    known[key] = contents.setdefault(content_key(replace(spec, seed=0)), len(contents))
                path = origin or spec.source
                first, first_path = kept.setdefault((known[key], spec.seed), (spec, path))
                if first is not spec:
                    where = self._loaded.where(*first_path), self._loaded.where(*path)
                    merged[where] = merged.get(where, 0) + 1
        for (one, other), count in merged.items():
            places = one if one == other else f"{one} and {other}"
            self._warnings.append(f"{places}: {count} duplicate cell{'s' if count > 1 else ''} merged")
        return [spec for spec, _ in kept.values()]

    def _check_labels(self, cells: Sequence[CellSpec]) -> None:
        """Refuse one label for two different things: their results would share a row."""
        things: dict[int, tuple[str, str, Any, KeyPath]] = {}
        for spec in cells:
            method, data = spec.method, spec.dataset
            if id(method) not in things:
                content = [method.name, method.preset, method.params]
                things[id(method)] = ("method", variant_label(method), content, spec.source)
            if id(data) not in things:
                things[id(data)] = ("data set", data.label, dataset_key(data), ("datasets",))
        seen: dict[tuple[str, str], bytes] = {}
        for kind, label, content, source in things.values():
            key = canonical_json(content)
            if seen.setdefault((kind, label), key) != key:
                where = self._loaded.where(*source)
                raise MatrixError(
                    f"{where}: {kind} '{label}': two different ones have this label; give one another label"
                )


def _arch(item: ArchItem) -> ArchSpec:
    return ArchSpec(item.name, item.args)


def _dataset(item: DatasetItem) -> DatasetSpec:
    return DatasetSpec(
        name=item.name,
        label=item.label or item.name,
        args=item.args,
        limit_train=item.limit_train,
        limit_test=item.limit_test,
        storage=item.storage,
    )


def _pair(
    teacher: TeacherSpec | None,
    student: ArchSpec,
    label: str | None = None,
    assistant: ArchItem | None = None,
) -> _Pair:
    label = label or (f"{teacher.label}->{student.label}" if teacher else student.label)
    return _Pair(teacher, student, label, None if assistant is None else _arch(assistant))


def _unique(items: Iterable[T]) -> list[T]:
    out: list[T] = []
    for item in items:
        if item not in out:
            out.append(item)
    return out
