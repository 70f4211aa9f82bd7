"""Searches of hyper-parameters: Optuna proposes, cells train, their validation metric is the answer.

Each search is a study of its own in ``tune.db``. It goes one trial (or `batch`) at a time, so what it proposes
depends on its own past and never on how many workers there are or where a run was cut: the sampler starts anew
from (seed, search, trial number) for every trial.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.errors import KdbenchError
from kdbench.matrix.identity import cell_id, derive_seed
from kdbench.matrix.searches import SearchSpec
from kdbench.matrix.studies import TUNED, Studies, Study, Trial, read_studies
from kdbench.results.store import atomic_write_json

if TYPE_CHECKING:
    import optuna

    from kdbench.launch.plan import PlannedCell

#: Name of the database in the folder of a run.
DATABASE = "tune.db"


@dataclass
class Search:
    """A search and its study.

    Attributes:
        space: hyper-parameter -> where it is searched, in a fixed order.
        start: values of the first trial, those of the method; None where the space does not hold them.
        digest: of all that its values depend on; a study goes on only where it is equal.
        reason: why its cells cannot be, or None.
        cells: those of a trial with the values as given, one for each seed.
    """

    spec: SearchSpec
    space: dict[str, dict[str, Any]]
    start: dict[str, Any] | None
    digest: str
    reason: str | None = None
    cells: tuple[PlannedCell, ...] = field(default=(), repr=False)
    study: optuna.Study | None = field(default=None, repr=False)

    @property
    def searchable(self) -> bool:
        """Whether there is anything to try."""
        return self.reason is None and bool(self.space)


def open_space(spec: SearchSpec, declared: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return where a search looks: as the matrix says, or as the method declares, less what the matrix has set."""
    given = declared if spec.override is None else spec.override
    fixed = () if spec.override is not None else spec.trial.method.params
    return {key: dict(given[key]) for key in sorted(given) if key not in fixed}


def holds(space: Mapping[str, Mapping[str, Any]], params: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the values of `params` in the space, or None where one of them is outside it."""
    out = {}
    for key, where in space.items():
        value = params.get(key)
        if "choices" in where:
            inside = any(value == c and type(value) is type(c) for c in where["choices"])
        else:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            inside = number and where["low"] <= value <= where["high"]
        if not inside:
            return None
        out[key] = value
    return out


def digest_of(spec: SearchSpec, space: Mapping[str, Any], cells: Iterable[str]) -> str:
    """Return the digest of a search: what the matrix says, its space, and the ids of its cells as given."""
    return cell_id({"key": spec.key, "space": dict(space), "cells": list(cells)})


class Book:
    """The studies of a run, in its database; and ``tuned.json``, made from them. One process writes both."""

    def __init__(self, folder: Path) -> None:
        try:
            import optuna
        except ImportError as e:
            raise KdbenchError(
                "searches need Optuna, which is not installed: pip install 'kdbench[tune]'"
            ) from e
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._folder = optuna, folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._storage = optuna.storages.RDBStorage(f"sqlite:///{(folder / DATABASE).resolve()}")
        except Exception as e:
            first = str(e).splitlines()[0]
            raise KdbenchError(f"{folder / DATABASE}: cannot be opened: {first}") from e

    def open(self, search: Search) -> None:
        """Take up the study of a search, or begin it."""
        search.study = self._optuna.create_study(
            storage=self._storage,
            study_name=f"{search.spec.trial.method.name} {search.digest}",
            direction="maximize",
            load_if_exists=True,
        )

    def taken(self, search: Search) -> int:
        """Return how many trials have ended, those that failed included."""
        return sum(t.state.is_finished() for t in self._trials(search))

    def propose(self, search: Search, budget: int) -> list[tuple[int, dict[str, Any]]]:
        """Return the trials to run next, as (number, values): those that were cut, or a batch of new ones.

        None where the budget is spent.
        """
        study = search.study
        assert study is not None
        states, trials = self._optuna.trial.TrialState, self._optuna.trial.Trial
        cut = [trials(study, t._trial_id) for t in self._trials(search) if t.state == states.RUNNING]
        if cut:
            return [self._fill(search, trial) for trial in cut]
        taken, batch = self.taken(search), search.spec.tune.batch
        if not taken and search.start is not None:
            study.enqueue_trial(search.start, skip_if_exists=True)
        count = max(0, min(batch - taken % batch, budget - taken))
        asked = [study.ask() for _ in range(count)]
        return [self._fill(search, trial) for trial in asked]

    def tell(self, search: Search, number: int, value: float | None, status: str, sign: int = 1) -> None:
        """Keep what came of a trial; None: it failed, with `status`. `sign` is -1 where lower is better."""
        study = search.study
        assert study is not None
        trial = self._optuna.trial.Trial(study, self._trials(search)[number]._trial_id)
        trial.set_user_attr("status", status)
        if value is None:
            study.tell(number, state=self._optuna.trial.TrialState.FAIL)
        else:
            trial.set_user_attr("value", value)
            trial.set_user_attr("sign", sign)
            study.tell(number, sign * value)

    def write(self, searches: Iterable[Search]) -> None:
        """Write ``tuned.json``, atomically; searches of other spaces or matrices that are in it stay."""
        try:
            found = read_studies(self._folder)
        except KdbenchError:
            found = {}
        found |= {search.spec.key: self._told(search) for search in searches}
        content = Studies(studies=dict(sorted(found.items())))
        atomic_write_json(self._folder / TUNED, content.model_dump(mode="json"))

    def _told(self, search: Search) -> Study:
        spec = search.spec
        ended = [t for t in self._trials(search) if t.state.is_finished()] if search.study else []
        signs = {t.user_attrs.get("sign", 1) for t in ended}
        trials = [
            Trial(
                number=t.number,
                status=t.user_attrs.get("status", "failed"),
                value=t.user_attrs.get("value"),
                params=dict(t.params),
            )
            for t in ended
        ]
        return Study(
            variant=spec.variant,
            method=spec.trial.method.name,
            pair=spec.trial.pair,
            dataset=spec.trial.dataset.label,
            study=search.digest,
            higher_is_better=-1 not in signs,
            reason=search.reason,
            space=search.space,
            trials=trials,
        )

    def _trials(self, search: Search) -> list[Any]:
        assert search.study is not None
        return search.study.get_trials(deepcopy=False)

    def _fill(self, search: Search, trial: Any) -> tuple[int, dict[str, Any]]:
        """Return a trial's values; those that are not in the database yet are drawn, each by a seed of its own."""
        tune, samplers = search.spec.tune, self._optuna.samplers
        kind = samplers.TPESampler if tune.sampler == "tpe" else samplers.RandomSampler
        values = {}
        for name, where in search.space.items():
            seed = derive_seed(tune.sampler_seed, search.spec.key, trial.number, name) % 2**32
            trial.study.sampler = kind(seed=seed)
            values[name] = _suggest(trial, name, where)
        return trial.number, values


def _suggest(trial: Any, name: str, where: Mapping[str, Any]) -> Any:
    if "choices" in where:
        return trial.suggest_categorical(name, where["choices"])
    low, high, log = where["low"], where["high"], where["log"]
    whole = isinstance(low, int) and isinstance(high, int)
    return (trial.suggest_int if whole else trial.suggest_float)(name, low, high, log=log)
