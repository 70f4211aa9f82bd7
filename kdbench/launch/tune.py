"""One invocation of ``kdbench tune``: from the searches of a matrix to ``tuned.json``."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kdbench.errors import KdbenchError, MatrixError, did_you_mean
from kdbench.launch.holding import hold_run
from kdbench.launch.plan import PlannedCell, Planner
from kdbench.launch.progress import Progress
from kdbench.launch.resolve import Resolver
from kdbench.launch.search import Book, Search, digest_of, holds, open_space
from kdbench.launch.session import Options, Session
from kdbench.matrix import LoadedMatrix, expand
from kdbench.matrix.searches import SearchSpec
from kdbench.matrix.tune import Tune
from kdbench.registry import Registry
from kdbench.results.lease import Lease
from kdbench.results.store import RunFolder, read_record

#: Folder of the trials, within that of the run; it has cells as a run has.
TRIALS = "tune"


class Tuner:
    """Runs the searches of a matrix; trials are cells like others, in a folder of their own.

    Teachers are those of the run: a search trains one only where the run has not, and the run then finds it.
    """

    def __init__(
        self,
        registry: Registry,
        loaded: LoadedMatrix,
        run: RunFolder,
        options: Options,
        progress: Callable[[], Progress],
        methods: Sequence[str] = (),
    ) -> None:
        if loaded.matrix.tune is None:
            raise MatrixError(
                f"{loaded.where()}: the matrix has no 'tune' block; it needs one with at least trials and seeds"
            )
        self._registry, self._loaded, self._run = registry, loaded, run
        self._options = replace(options, sinks=("none",))
        self._progress = progress
        self._tune: Tune = loaded.matrix.tune
        self._planner = Planner(
            registry, loaded, RunFolder(run.path / TRIALS), options.disable, options.device
        )
        self.warnings: list[str] = []
        self.searches = self._plan(_chosen(expand(loaded).searches, methods))

    def run(self, budget: int) -> bool:
        """Bring every search to `budget` trials. Returns whether it was interrupted.

        Raises KdbenchError where a teacher cannot be had, or another process works on the run.
        """
        book = Book(self._run.path)
        lease = hold_run(self._run.path)
        try:
            for search in self.searches:
                if search.searchable:
                    book.open(search)
            book.write(self.searches)
            if self._teachers():
                return True
            while trials := self._next(book, budget):
                if self._round(book, trials, lease):
                    return True
        finally:
            lease.close()
        return False

    def _plan(self, specs: Sequence[SearchSpec]) -> list[Search]:
        trials = [spec.trials({}) for spec in specs]
        plan, asked = self._planner.plan_cells([cell for cells in trials for cell in cells])
        self.warnings += plan.warnings
        self._teacher_cells = [c for c in plan.cells if c.spec.role == "teacher"]
        planned, out = iter(asked), []
        for spec, cells in zip(specs, trials, strict=True):
            own = [next(planned) for _ in cells]
            out.append(self._search(spec, own))
        self._check_bounds(out)
        return out

    def _search(self, spec: SearchSpec, cells: Sequence[PlannedCell]) -> Search:
        first = cells[0]
        self._check_validation(spec, first)
        params = first.file.params
        for key in spec.override or ():
            if key not in params:
                where, known = self._loaded.where("tune", "search"), ", ".join(params) or "none"
                raise MatrixError(
                    f"{where}: tune.search: method '{spec.trial.method.name}' has no hyper-parameter "
                    f"'{key}'{did_you_mean(key, params)}; it has {known}"
                )
        space = open_space(spec, self._planner.space(spec.trial))
        digest = digest_of(spec, space, [c.id for c in cells])
        reason = first.reason if first.status == "not_applicable" else None
        return Search(spec, space, holds(space, params), digest, reason, tuple(cells))

    def _check_validation(self, spec: SearchSpec, cell: PlannedCell) -> None:
        assert cell.teaching is not None
        if not cell.teaching.info.n_val and not spec.trial.recipe.val_fraction:
            raise MatrixError(
                f"{self._loaded.where('tune')}: tune: a trial is judged on the validation split, and there is "
                f"none: '{spec.trial.dataset.label}' has none and recipe.val_fraction is 0"
            )

    def _check_bounds(self, searches: Sequence[Search]) -> None:
        """Ask the methods whether they take the ends of their spaces, so that no search breaks off for that."""
        questions, whose = [], []
        for search in searches:
            for end in ("low", "high") if search.searchable else ():
                method = search.spec.trial.method
                params = {**method.params, **_end(search.space, end)}
                questions.append(
                    {"ask": "method", "name": method.name, "preset": method.preset, "params": params}
                )
                whose.append(search)
        answers = Resolver(self._registry, self._options.disable).ask(questions) if questions else []
        for search, answer in zip(whose, answers, strict=True):
            if answer.get("error"):
                where = self._loaded.where("tune")
                raise MatrixError(f"{where}: the space of '{search.spec.variant}': {answer['error']}")

    def _teachers(self) -> bool:
        """Train the teachers that are missing, in the run's own folders. Returns whether it was interrupted."""
        if not self._teacher_cells:
            return False
        for cell in self._teacher_cells:
            home = self._run.cell(cell.id)
            home.mkdir(parents=True, exist_ok=True)
            cell.folder.parent.mkdir(parents=True, exist_ok=True)
            if not cell.folder.exists():
                cell.folder.symlink_to(os.path.relpath(home, cell.folder.parent), target_is_directory=True)
        trials = [cell for search in self.searches for cell in search.spec.trials({})]
        plan, _ = self._planner.plan_cells(trials)
        session = Session(
            self._registry, plan, replace(self._options, only_teachers=True, rerun="failed"), self._progress()
        )
        if session.open_cells() and session.run():
            return True
        for cell in plan.cells:
            if cell.spec.role == "teacher" and cell.status != "done":
                raise KdbenchError(
                    f"{cell.label}: {cell.status}: {cell.reason}; no search without its teacher"
                )
        return False

    def _next(self, book: Book, budget: int) -> list[tuple[Search, int, dict[str, Any]]]:
        return [
            (search, number, values)
            for search in self.searches
            if search.searchable
            for number, values in book.propose(search, budget)
        ]

    def _round(self, book: Book, trials: Sequence[tuple[Search, int, dict[str, Any]]], lease: Lease) -> bool:
        """Run trials, at most a batch of each search, and keep what came of them."""
        cells = [search.spec.trials(values, number) for search, number, values in trials]
        like = [cell for search, _, _ in trials for cell in search.cells]
        plan, asked = self._planner.plan_cells([cell for own in cells for cell in own], like=like)
        session = Session(self._registry, plan, self._options, self._progress())
        interrupted = bool(session.open_cells()) and session.run()
        lease.check()  # who took over asks and tells the studies by now
        planned = iter(asked)
        for (search, number, _), own in zip(trials, cells, strict=True):
            self._keep(book, search, number, [next(planned) for _ in own])
        book.write(self.searches)
        return interrupted

    def _keep(self, book: Book, search: Search, number: int, cells: Sequence[PlannedCell]) -> None:
        statuses = [cell.status for cell in cells]
        if any(status in ("to run", "interrupted") for status in statuses):
            return
        bad = next((status for status in statuses if status != "done"), None)
        if bad is not None:
            book.tell(search, number, None, bad)
            return
        found = [read_record(cell.folder / "result.json").validation for cell in cells]
        values = [getattr(v, self._tune.select) for v in found if v is not None]
        signs = {1 if v.higher_is_better else -1 for v in found if v is not None}
        book.tell(search, number, statistics.fmean(values), "done", sign=signs.pop())


def _chosen(specs: Sequence[SearchSpec], methods: Sequence[str]) -> list[SearchSpec]:
    known = {name for spec in specs for name in (spec.variant, spec.trial.method.name)}
    for name in methods:
        if name not in known:
            listed = ", ".join(sorted(known))
            raise KdbenchError(
                f"--method {name}: the matrix has no such method{did_you_mean(name, known)}; it has {listed}"
            )
    wanted = set(methods)
    return [s for s in specs if not wanted or wanted & {s.variant, s.trial.method.name}]


def _end(space: Mapping[str, Mapping[str, Any]], end: str) -> dict[str, Any]:
    last = {"low": 0, "high": -1}[end]
    return {key: where["choices"][last] if "choices" in where else where[end] for key, where in space.items()}
