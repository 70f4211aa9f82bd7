"""One cell from its ``cell.json`` to its record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from kdbench.engine.build import make_run, make_task, setup_method
from kdbench.engine.build_dataset import make_dataset, validated
from kdbench.engine.cellspec import CellFile
from kdbench.engine.checkpoint import weights_bytes
from kdbench.engine.context import CellRun
from kdbench.engine.cost import cost_of, teacher_share
from kdbench.engine.evaluation import best_epoch, deployables, evaluate_all, run_evaluators
from kdbench.engine.loop import Loop
from kdbench.engine.progress import Interrupted, Progress
from kdbench.engine.seeds import seed_everything
from kdbench.engine.sharing import Alone
from kdbench.engine.teacher_cache import TeacherCache
from kdbench.engine.teachers import doubts, load_cell_weights, load_checkpoint, route_loaders
from kdbench.errors import KdbenchError
from kdbench.matrix.identity import derive_seed
from kdbench.matrix.route import route_epochs
from kdbench.measure.environment import Environment, capture
from kdbench.measure.operations import macs, parameters
from kdbench.measure.throughput import measure
from kdbench.protocol.method import Method
from kdbench.registry import Registry, code_digest
from kdbench.results.artifacts import MODEL, route_path
from kdbench.results.confusion import MAX_CLASSES, write_confusion
from kdbench.results.schema import Cost, Deployable, Plugin, Record, TeacherRef
from kdbench.results.store import atomic_write_bytes, put_record_aside, read_record_dict, write_record


class Hooks:
    """What a worker may plug into a cell: progress, stopping, and the turn to measure alone."""

    def enter(self) -> None:
        """The cell's turn begins, where several take turns in one process."""

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch is done."""

    def should_stop(self) -> bool:
        """Polled after every step."""
        return False

    def note(self, text: str) -> None:
        """Something happened that people should know of."""

    def fence(self) -> None:
        """Before anything is kept: raises where another process has taken the cell over."""

    def wanted(self) -> bool:
        """Polled after every step: whether another process waits for this one to pause, so that it can measure."""
        return False

    def gate(self) -> None:
        """Before an epoch, and when it is wanted: wait while another process measures."""

    def alone(self) -> Any:
        """Return a context in which no other process of the run trains."""
        return nullcontext()


def read_cell(folder: Path) -> CellFile:
    """Read ``cell.json``. Raises KdbenchError naming the file."""
    path = folder / "cell.json"
    try:
        return CellFile.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as e:
        raise KdbenchError(f"{path}: not a usable cell ({str(e).splitlines()[0]})") from e


class CellTrainer:
    """Trains, evaluates and measures one cell; :meth:`run` leaves its record in the folder."""

    def __init__(
        self, folder: Path, registry: Registry, hooks: Hooks | None = None, sharing: Alone | None = None
    ) -> None:
        self.folder, self.registry, self.hooks = folder, registry, hooks or Hooks()
        self.sharing = sharing or Alone()
        self.cell = read_cell(folder)
        self.device = torch.device(self.cell.device)
        self.warnings: list[str] = []
        self.teacher_refs: list[TeacherRef] = []
        #: None until the cell is set up
        self.loop: Loop | None = None
        self._fill_s = 0.0
        self._confusion: torch.Tensor | None = None
        self._started = now()

    def run(self) -> Record | None:
        """Run the cell to its record. Raises what the cell's code raises; the caller turns it into a status.

        Of several processes of a cell one has the record, the others return None.
        """
        turns = self.turns()
        while True:
            try:
                next(turns)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]

    def turns(self) -> Generator[None, None, Record | None]:
        """Run the cell as :meth:`run` does, and stop before each step, so that others can have a turn."""
        self.hooks.gate()
        clock = self.sharing.clock
        began = clock()
        cell = self.cell
        seed_everything(derive_seed(cell.seed, "train"), deterministic=cell.recipe.deterministic)
        run, method = self._setup()
        try:
            loop = self.loop = Loop(
                run,
                method,
                self.folder,
                evaluate=lambda: self._evaluate(method, run),
                on_epoch=self._on_epoch,
                should_stop=self.hooks.should_stop,
                gate=self.hooks.gate,
                wanted=self.hooks.wanted,
                note=self.hooks.note,
                keep=lambda epochs: self._keep_files(run, epochs),
                kept=lambda epochs: all(
                    route_path(self.folder, e).exists() for e in cell.keep_epochs if e <= epochs
                ),
                clock=clock,
                group=self.sharing.group,
            )
            # networks are made under seeds of their own, so training starts from the same state whatever
            # a method did in setup
            seed_everything(derive_seed(cell.seed, "train"), deterministic=cell.recipe.deterministic)
            loop.at.setup_s, loop.at.fill_s = clock() - began - self._fill_s, self._fill_s
            yield from loop.steps()
            at = loop.at
            if not self._lead:
                return None
            self._write_curves(at)
            record = self._record(run, method, at)
        finally:
            run.close()
            self.sharing.close()
        return record

    def _setup(self) -> tuple[CellRun, Method]:
        cell = self.cell
        dataset = make_dataset(self.registry, cell.dataset.name, cell.dataset.args)
        info = dataset.describe()
        if info.revision != cell.dataset.revision:
            raise KdbenchError(
                f"data set '{cell.dataset.label}' changed since the matrix was planned "
                f"(revision {info.revision}, expected {cell.dataset.revision})"
            )
        task = make_task(self.registry, cell.task)
        method_cls = self.registry.get("methods", cell.method).load()
        needs = method_cls.requires(validated(method_cls.Params, cell.params, f"method '{cell.method}'"))
        context = self.sharing.data(cell, dataset, info, self.device, needs.views)
        task_data = task.setup(context)
        route = []
        if cell.route and cell.teachers:
            teacher_cell = read_cell(self.folder.parent / cell.teachers[0].ref)
            wanted = route_epochs(teacher_cell.recipe.epochs, cell.route)
            route = route_loaders(self.folder.parent / cell.teachers[0].ref, wanted)
        run = make_run(
            self.registry,
            cell,
            info,
            task,
            task_data,
            self.device,
            self.sharing.workdir(self.folder),
            route=route,
            load_teacher=self._load_teacher,
        )
        self._describe_teachers(run)
        self.sharing.join(run)
        every = context.every_view() if cell.teacher_cache else None
        cache = TeacherCache(cell, run, every)
        method = setup_method(self.registry, cell, run)
        try:
            cache.start(needs.reads, self._may_stop)
        finally:
            self._fill_s = cache.fill_s
        self.warnings += cache.notes
        return run, method

    def _may_stop(self) -> None:
        if self.hooks.should_stop():
            raise Interrupted

    def _load_teacher(self, k: int, net: torch.nn.Module) -> None:
        source = self.cell.teachers[k]
        name = source.architecture.name
        if source.source == "cell":
            record = load_cell_weights(net, self.folder.parent / source.ref)
            top1 = record["deployables"][record["primary"]]["last"].get("top1")
            ref = TeacherRef(
                source="cell", ref=source.ref, architecture=name, sha256=record["weights_sha256"], top1=top1
            )
        elif source.source == "checkpoint":
            digest = load_checkpoint(net, Path(source.ref), source.sha256)
            ref = TeacherRef(source="checkpoint", ref=Path(source.ref).name, architecture=name, sha256=digest)
        else:
            ref = TeacherRef(source="pretrained", ref=source.ref, architecture=name)
        self.teacher_refs.append(ref)

    def _describe_teachers(self, run: CellRun) -> None:
        for ref, source, handle in zip(self.teacher_refs, self.cell.teachers, run.teachers, strict=True):
            expected = handle.normalisation
            if expected is not None:
                ref.normalization = {"mean": list(expected.mean), "std": list(expected.std)}
            self.warnings += doubts(handle.name, source, handle.net, run.data)

    @property
    def _lead(self) -> bool:
        return self.sharing.group is None or self.sharing.group.lead

    def _on_epoch(self, row: dict[str, Any]) -> None:
        if not self._lead:
            return
        assert self.loop is not None
        self._write_curves(self.loop.at, durable=False)  # the checkpoint has them too
        self.hooks.epoch(row)

    def _write_curves(self, at: Progress, *, durable: bool = True) -> None:
        """Write the curves from the state: lines that are added would not ask whether the cell is still ours."""
        text = "".join(json.dumps(row) + "\n" for row in at.rows)
        atomic_write_bytes(self.folder / "curves.jsonl", text.encode(), durable=durable)

    def _evaluate(self, method: Method, run: CellRun) -> dict[str, dict[str, float]]:
        def keep(counts: torch.Tensor) -> None:
            self._confusion = counts

        assert self.loop is not None
        wanted = self.loop.ending and run.data.num_classes <= MAX_CLASSES
        return evaluate_all(method, run, test=not self.cell.trial, by_class=keep if wanted else None)

    def _keep_files(self, run: CellRun, epochs: int) -> None:
        """Keep what belongs to the epoch that is over, before the checkpoint says that it is."""
        if not self._lead:
            return
        self.hooks.fence()  # before the checkpoint too, which is written next
        if self._confusion is not None:
            write_confusion(self.folder, run.data.class_names, self._confusion.tolist())
            self._confusion = None
        if epochs in self.cell.keep_epochs:
            path = route_path(self.folder, epochs)
            path.parent.mkdir(exist_ok=True)
            atomic_write_bytes(path, weights_bytes(run.student.net))

    def _record(self, run: CellRun, method: Method, at: Progress) -> Record:
        cell, task = self.cell, run.task
        nets = deployables(method, run)
        primary = next(iter(nets))
        metric = next(m for m in task.metrics() if m.primary)
        timing = task.throughput(run.task_data, self.device)
        self._check_teachers(run)
        last_row = next(r for r in reversed(at.rows) if "eval" in r)
        quality = {}
        for name, net in nets.items():
            last = {
                k.removeprefix("test/"): v for k, v in last_row["eval"][name].items() if k.startswith("test/")
            }
            extra, warned = run_evaluators(self.registry, cell.evaluators, net, run)
            self.warnings += warned
            better = bool(metric.higher_is_better)
            quality[name] = Deployable(
                last={**last, **extra},
                best_val=best_epoch(at.rows, name, "val", metric.name, better),
                best_test=best_epoch(at.rows, name, "test", metric.name, better),
                params=parameters(net),
                macs=macs(net, timing.make_inputs(1)),
            )
        weights = weights_bytes(nets[primary])
        digest = hashlib.sha256(weights).hexdigest()
        speeds: dict[str, Any] = {}
        share = None
        with self.hooks.alone():
            if cell.throughput is not None:
                speeds, warned = measure(
                    nets,
                    timing.make_inputs,
                    batch_sizes=cell.throughput.batch_sizes,
                    rounds=cell.throughput.rounds,
                    device=self.device,
                    autocast=run.amp,
                )
                self.warnings += warned
            share = teacher_share(run, self.cell, at, self._processes)
        self.warnings += run.notes()
        record = Record(
            cell_id=cell.cell_id,
            status="done",
            protocol=cell.protocol,
            labels=cell.labels,
            identity=cell.identity,
            primary=primary,
            deployables=quality,
            throughput=speeds,
            cost=self._cost(run, method, at, share),
            teachers=self.teacher_refs,
            floors=dict(task.floors(run.task_data)),
            tuning=cell.tuning,
            environment=self._environment(run),
            plugins=provenance(self.registry, cell),
            warnings=self.warnings,
            weights_sha256=digest,
            started_at=self._started,
            finished_at=now(),
        )
        self._keep(record, weights)
        (self.folder / "checkpoint.safetensors").unlink(missing_ok=True)
        return record

    def _environment(self, run: CellRun) -> Environment:
        recipe = self.cell.recipe
        return capture(
            self.device,
            precision=recipe.precision,
            deterministic=recipe.deterministic,
            compiled=run.compiled,
            processes=self._processes,
        )

    def _keep(self, record: Record, weights: bytes) -> None:
        """Write weights, then the record that vouches for them.

        A cell that was done already and ran again only for its route or lost weights keeps its record, unless
        the weights came out different (another device): then old record and new weights would contradict.
        """
        path, model = self.folder / "result.json", self.folder / MODEL
        self.hooks.fence()
        before = read_record_dict(path) if path.exists() else None
        if before is not None and before["status"] == "done":
            if before["weights_sha256"] == record.weights_sha256:
                atomic_write_bytes(model, weights)
                return
            put_record_aside(self.folder)
        atomic_write_bytes(model, weights)
        write_record(self.folder, record)

    def _check_teachers(self, run: CellRun) -> None:
        """Complete the reference of teachers whose accuracy is on no record yet."""
        for ref, handle in zip(self.teacher_refs, run.teachers, strict=True):
            if ref.top1 is None:
                with run.amp():
                    metrics = run.task.evaluate(handle.net, run.task_data.splits["test"], run.task_data)
                ref.top1 = metrics.get("top1")

    @property
    def _processes(self) -> int:
        return 1 if self.sharing.group is None else self.sharing.group.size

    def _cost(self, run: CellRun, method: Method, at: Progress, share: float | None) -> Cost:
        return cost_of(
            run, self.cell, at, method, share=share, sharing=self.sharing, processes=self._processes
        )


def provenance(registry: Registry, cell: CellFile) -> dict[str, Plugin]:
    """Return the plug-ins that made a cell: distribution, version, git hash, digest of their code."""
    parts = {"task": ("tasks", cell.task), "method": ("methods", cell.method)}
    parts |= {"student": ("architectures", cell.student.name), "dataset": ("datasets", cell.dataset.name)}
    if cell.teachers:
        parts["teacher"] = ("architectures", cell.teachers[0].architecture.name)
    if cell.assistant:
        parts["assistant"] = ("architectures", cell.assistant.name)
    out = {}
    for part, (kind, name) in parts.items():
        found = registry.get(kind, name)
        plugin = found.plugin
        out[part] = Plugin(
            distribution=plugin.distribution,
            version=plugin.version,
            git=plugin.git,
            code=code_digest(found.entry.target),
        )
    return out


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
