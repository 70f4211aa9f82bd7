"""Running one cell again from its record, with its teachers, in a run folder of its own."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdbench.engine.cellspec import Arch, CellFile
from kdbench.errors import KdbenchError, RecordError
from kdbench.hooks import Job
from kdbench.launch.failure import write_failure
from kdbench.launch.rebuild import Here, rebuild
from kdbench.launch.resolve import Resolver
from kdbench.matrix.identity import PROTOCOL
from kdbench.matrix.route import route_epochs
from kdbench.registry import Registry
from kdbench.results.artifacts import MODEL
from kdbench.results.schema import Record
from kdbench.results.store import RESULT, RunFolder, atomic_write_json, read_record


@dataclass(frozen=True)
class Place:
    """Where records stand beside each other: ``records/<cell id>.json`` of a board, or a run folder's cells."""

    folder: Path
    run: bool

    def record(self, cell_id: str) -> Path:
        """Return the path of a cell's record; it may not exist."""
        return self.folder / cell_id / RESULT if self.run else self.folder / f"{cell_id}.json"

    def records(self) -> list[Record]:
        """Return all records that can be read."""
        found = []
        for path in sorted(self.folder.glob(f"*/{RESULT}" if self.run else "*.json")):
            try:
                found.append(read_record(path))
            except RecordError:
                continue  # a broken neighbour is not what is asked about
        return found


@dataclass(frozen=True)
class Again:
    """Outcome: the new record, and what happened to each teacher."""

    record: Record
    folder: Path
    teachers: tuple[str, ...]


def place_of(path: Path) -> Place:
    """Return where a record stands."""
    run = path.name == RESULT
    return Place(path.parent.parent if run else path.parent, run)


def evaluators_beside(path: Path) -> list[str]:
    """Return the evaluators that the ``cell.json`` beside a record names; none without one."""
    cell = _cell_beside(path)
    return [] if cell is None else list(cell.evaluators)


def data_beside(path: Path) -> dict[str, Any]:
    """Return the data set's arguments that the ``cell.json`` beside a record has; none without one."""
    cell = _cell_beside(path)
    return {} if cell is None else dict(cell.dataset.args)


def _cell_beside(path: Path) -> CellFile | None:
    try:
        return CellFile.model_validate_json((path.parent / "cell.json").read_bytes())
    except (OSError, ValueError):
        return None


def choose_device(registry: Registry, record: Record, wanted: str, disable: tuple[str, ...]) -> str:
    """Return the device to run on: the record's kind where it is there, unless another is wanted."""
    device = wanted
    if wanted == "auto" and record.environment.get("device") == "cpu":
        device = "cpu"
    precision = str(record.identity.get("recipe", {}).get("precision", "fp32"))
    question = {"ask": "device", "device": device, "precisions": [precision], "compiles": []}
    answer = Resolver(registry, disable).ask([question])[0]
    if answer["error"]:
        raise KdbenchError(answer["error"])
    return str(answer["device"])


class Reproduction:
    """One cell with the teachers that it needs, ready to run."""

    def __init__(self, registry: Registry, record: Record, place: Place, here: Here) -> None:
        """Rebuild the cells. Raises KdbenchError for what cannot be run again."""
        self._registry, self._place, self._here = registry, place, here
        self._files: dict[str, CellFile] = {}
        self._records: dict[str, Record] = {}
        self._after: dict[str, tuple[str, ...]] = {}
        self.target = record.cell_id
        self._add(record, here, route=0)

    def _add(self, record: Record, here: Here, route: int) -> None:
        if record.cell_id in self._files:
            return
        file, reads = rebuild(record, self._registry, here)
        for source in file.teachers:
            if source.source != "cell":
                continue
            path = self._place.record(source.ref)
            if not path.is_file():
                raise KdbenchError(
                    f"cell {record.cell_id[:12]}: its teacher is cell {source.ref[:12]}, and there is no record "
                    f"of it ({path}): a record names its teacher cell, and only that cell's own says what it is"
                )
            teacher = read_record(path)
            if teacher.cell_id != source.ref:
                raise KdbenchError(f"{path}: cell_id is not that of the teacher")
            self._add(teacher, replace(here, evaluators=()), reads)
            student = self._files[source.ref].student
            source.architecture = Arch(name=student.name, args=student.args)
        if route:
            file.keep_epochs = route_epochs(file.recipe.epochs, route)
        self._files[record.cell_id], self._records[record.cell_id] = file, record
        self._after[record.cell_id] = tuple(t.ref for t in file.teachers if t.source == "cell")

    def cells(self) -> list[str]:
        """Return labels of the cells, teachers first."""
        return [_label(file) for file in self._files.values()]

    def run(self, folder: Path, told: Callable[[str], None]) -> Again:
        """Run what has to be run in the new run folder `folder`; `told` hears of progress in lines.

        A teacher whose weights lie beside its record, and are those that it names, is not trained again. Raises
        KdbenchError when the folder exists or a teacher does not finish, OSError.
        """
        if folder.exists():
            raise KdbenchError(f"{folder}: exists already; a cell is run again in a fresh folder")
        run = RunFolder(folder)
        run.write_matrix(
            {"name": folder.name, "title": f"reproduction of {self.target[:12]}", "protocol": PROTOCOL}
        )
        jobs, used = [], set()
        for cell_id, file in self._files.items():
            where = run.cell(cell_id)
            where.mkdir(parents=True)
            atomic_write_json(where / "cell.json", file.model_dump(mode="json"))
            if cell_id != self.target and self._take_weights(cell_id, where):
                used.add(cell_id)
                continue
            after = tuple(ref for ref in self._after[cell_id] if ref not in used)
            jobs.append(Job(cell_id=cell_id, folder=where, label=_label(file), after=after))
        self._launch(jobs, told)
        teachers = tuple(self._of_teacher(c, run, c in used) for c in self._files if c != self.target)
        return Again(read_record(run.cell(self.target) / RESULT), folder, teachers)

    def _take_weights(self, cell_id: str, where: Path) -> bool:
        """Copy a finished teacher with its weights, where the method needs no more than these."""
        source, record = self._place.record(cell_id), self._records[cell_id]
        weights = source.parent / MODEL
        if not self._place.run or self._files[cell_id].keep_epochs or not weights.is_file():
            return False
        with weights.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != record.weights_sha256:
                return False
        shutil.copyfile(weights, where / MODEL)
        shutil.copyfile(source, where / RESULT)
        return True

    def _launch(self, jobs: list[Job], told: Callable[[str], None]) -> None:
        folders = {job.cell_id: job for job in jobs}

        def report(event: Mapping[str, Any]) -> None:
            job = folders[event["cell_id"]]
            if event["event"] == "started":
                told(f"running {job.label}")
            elif event["event"] == "died":
                write_failure(job.folder, event["status"], event["message"])

        gpus = int(self._here.device.startswith("cuda"))
        launcher = self._registry.get("launchers", "local").load()
        launcher({"workers": 1, "gpus": gpus}).run(jobs, report, lambda: 0)

    def _of_teacher(self, cell_id: str, run: RunFolder, used: bool) -> str:
        name = _label(self._files[cell_id])
        if used:
            return f"{name}: the weights beside its record"
        old, new = self._records[cell_id], read_record(run.cell(cell_id) / RESULT)
        if new.status != "done":
            return f"{name}: trained again, ended as {new.status}"
        equal = old.weights_sha256 is not None and old.weights_sha256 == new.weights_sha256
        return f"{name}: trained again, {'bit-equal' if equal else 'with other weights'}"


def _label(file: CellFile) -> str:
    names = file.labels
    role = " (teacher)" if names.role == "teacher" else ""
    return f"{names.variant} | {names.pair} | {names.dataset} | seed {names.seed}{role}"
