"""The searches that a matrix with a `tune` block asks for, and the cells that their results give.

A search belongs to a method (as the matrix lists it) and, under ``per-pair``, to a pair and a data set. Its trials
are the method's cells on seeds, or on a pair, that nothing is ranked by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from pydantic import ValidationError

from kdbench.errors import MatrixError, did_you_mean
from kdbench.matrix.identity import canonical_json
from kdbench.matrix.load import LoadedMatrix
from kdbench.matrix.recipe import Recipe
from kdbench.matrix.spec import (
    ArchSpec,
    CellSpec,
    DatasetSpec,
    TeacherSpec,
    Tuning,
    content_key,
    variant_label,
)
from kdbench.matrix.studies import Study
from kdbench.matrix.tune import TRACKS, Tune, held_out_seed

#: Searches that a warning names.
NAMED = 3


@dataclass(frozen=True)
class HeldOut:
    """The pair and data set that ``one-pair`` searches on."""

    teacher: TeacherSpec | None
    student: ArchSpec
    assistant: ArchSpec | None
    label: str
    dataset: DatasetSpec


@dataclass(frozen=True)
class SearchSpec:
    """One search.

    Attributes:
        key: digest of all that the matrix says of it; names it in ``tuned.json``.
        trial: a trial on the first seed, with the hyper-parameters that the matrix gives.
        override: the space that the matrix gives; None: as the method declares it.
        cells: positions of the cells that take its result.
    """

    key: str
    variant: str
    trial: CellSpec
    tune: Tune
    override: Mapping[str, Mapping[str, Any]] | None
    cells: tuple[int, ...]

    def trials(self, params: Mapping[str, Any], number: int | None = None) -> list[CellSpec]:
        """Return the cells of a trial of `params`, one for each seed; `number` is for their label."""
        method = self.trial.method
        label = self.variant if number is None else f"{self.variant} #{number}"
        method = replace(method, params={**method.params, **params}, label=label)
        return [replace(self.trial, method=method, seed=seed) for seed in self.tune.seeds]

    @property
    def label(self) -> str:
        """Short text for people."""
        return f"{self.variant} | {self.trial.pair} | {self.trial.dataset.label}"


def choose_dataset(loaded: LoadedMatrix, datasets: Sequence[DatasetSpec], name: str | None) -> DatasetSpec:
    """Return the data set to search on: that of this name or label, or the first. Raises MatrixError."""
    if name is None:
        return datasets[0]
    for dataset in datasets:
        if name in (dataset.label, dataset.name):
            return dataset
    known = [d.label for d in datasets]
    raise MatrixError(
        f"{loaded.where('tune', 'dataset')}: tune.dataset: the matrix has no data set '{name}'"
        f"{did_you_mean(name, known)}; expected one of {', '.join(known)}"
    )


def searches(
    loaded: LoadedMatrix, tune: Tune, cells: Sequence[CellSpec], held_out: HeldOut | None
) -> list[SearchSpec]:
    """Return the searches for `cells`, in their order.

    Raises MatrixError where a ranked seed or pair is searched on, or the block names a method that is not there.
    """
    _check_held_out(loaded, tune, cells, held_out)
    overrides = _overrides(loaded, tune, cells)
    found: dict[str, SearchSpec] = {}
    for position, cell in enumerate(cells):
        variant = variant_label(cell.method)
        trial = _trial(loaded, tune, cell, held_out)
        override = overrides.get(variant, overrides.get(cell.method.name))
        key = _key(tune, trial, variant, override)
        seen = found.get(key)
        where = (*seen.cells, position) if seen else (position,)
        found[key] = SearchSpec(key, variant, seen.trial if seen else trial, tune, override, where)
    return list(found.values())


def tuned_cells(
    specs: Sequence[SearchSpec], cells: Sequence[CellSpec], found: Mapping[str, Study]
) -> tuple[list[CellSpec], list[str]]:
    """Return the cells of the track, in the order of `cells`, and warnings about unfinished searches."""
    placed: dict[int, CellSpec] = {}
    lacking: list[str] = []
    for spec in specs:
        study, budget = found.get(spec.key), spec.tune.trials
        if study is None or not study.complete(budget):
            lacking.append(f"{spec.label}: {len(study.trials) if study else 0} of {budget} trials")
            continue
        for position in spec.cells:
            placed[position] = _tuned(spec, cells[position], study)
    return [placed[position] for position in sorted(placed)], _warnings(specs, lacking)


def _warnings(specs: Sequence[SearchSpec], lacking: Sequence[str]) -> list[str]:
    if not lacking:
        return []
    track = TRACKS[specs[0].tune.scope]
    if len(lacking) == len(specs):
        what = f"none of the {len(specs)} searches is finished, so there is no track '{track}'"
    else:
        more = f" and {len(lacking) - NAMED} more" if len(lacking) > NAMED else ""
        what = f"the track '{track}' lacks {'; '.join(lacking[:NAMED])}{more}"
    return [f"tune: {what}; `kdbench tune` goes on with them"]


def _tuned(spec: SearchSpec, cell: CellSpec, study: Study) -> CellSpec:
    tune, best = spec.tune, study.best(spec.tune.trials)
    used = study.trials[: tune.trials]
    values = dict(best.params) if best else {}
    method = cell.method
    tuning = Tuning(
        track=TRACKS[tune.scope],
        budget=tune.trials,
        trials=len(used),
        failed=sum(t.value is None for t in used),
        dataset=spec.trial.dataset.label,
        pair=spec.trial.pair,
        shared=tune.scope == "one-pair",
        seeds=tune.seeds,
        epochs=spec.trial.recipe.epochs,
        select=tune.select,
        sampler=tune.sampler,
        sampler_seed=tune.sampler_seed,
        batch=tune.batch,
        space=study.space,
        params=values,
        value=best.value if best else None,
    )
    # the row is the method's on every pair, whatever was found there
    named = replace(method, params={**method.params, **values}, label=spec.variant)
    return replace(cell, method=named, tuning=tuning)


def _trial(loaded: LoadedMatrix, tune: Tune, cell: CellSpec, held_out: HeldOut | None) -> CellSpec:
    recipe = _shortened(loaded, cell.recipe, tune.epochs)
    place: dict[str, Any] = {}
    if held_out is not None:
        place = {name: getattr(held_out, name) for name in ("teacher", "student", "assistant", "dataset")}
        place["pair"] = held_out.label
    return replace(
        cell, role="trial", recipe=recipe, seed=tune.seeds[0], evaluators=(), throughput=None, **place
    )


def _shortened(loaded: LoadedMatrix, recipe: Recipe, epochs: int | float | None) -> Recipe:
    wanted = max(1, round(epochs * recipe.epochs)) if isinstance(epochs, float) else epochs
    if wanted is None or wanted == recipe.epochs:
        return recipe
    raw = recipe.model_dump(exclude_unset=True) | {"epochs": wanted}
    try:
        short = Recipe.model_validate(raw)
    except ValidationError as e:
        where = loaded.where("tune", "epochs")
        raise MatrixError(f"{where}: tune.epochs: {wanted}: {e.errors()[0]['msg']}") from e
    return short.named(f"{recipe.name}, {wanted} epoch{'s' if wanted > 1 else ''}")


def _key(tune: Tune, trial: CellSpec, variant: str, override: Mapping[str, Any] | None) -> str:
    rules = [list(tune.seeds), tune.scope, tune.select, tune.sampler, tune.sampler_seed, tune.batch]
    facts = [content_key(trial).decode(), variant, override, rules]
    return sha256(canonical_json(facts)).hexdigest()[:16]


def _overrides(
    loaded: LoadedMatrix, tune: Tune, cells: Sequence[CellSpec]
) -> dict[str, dict[str, dict[str, Any]]]:
    known = {name for cell in cells for name in (cell.method.name, variant_label(cell.method))}
    for name in tune.search:
        if name not in known:
            where = loaded.where("tune", "search", name)
            raise MatrixError(
                f"{where}: tune.search.{name}: the matrix has no such method{did_you_mean(name, known)}"
            )
    return {
        name: {key: item.plain() for key, item in sorted(space.items())}
        for name, space in tune.search.items()
    }


def _check_held_out(
    loaded: LoadedMatrix, tune: Tune, cells: Sequence[CellSpec], held_out: HeldOut | None
) -> None:
    ranked = tuple(sorted({cell.seed for cell in cells}))
    for seed in tune.seeds:
        if seed in ranked:
            raise MatrixError(f"{loaded.where('tune', 'seeds')}: tune.seeds: {held_out_seed(seed, ranked)}")
    if held_out is None:
        return
    same = _networks(held_out.teacher, held_out.student)
    for cell in cells:
        if _networks(cell.teacher, cell.student) == same:
            raise MatrixError(
                f"{loaded.where('tune', 'pair')}: tune.pair: the matrix ranks on the pair '{cell.pair}'; "
                "the search needs another one"
            )


def _networks(teacher: TeacherSpec | None, student: ArchSpec) -> bytes:
    named = None if teacher is None else [teacher.name, teacher.args]
    return canonical_json([named, [student.name, student.args]])
