"""One invocation of ``kdbench run-matrix``: from the plan to the records, the sinks and the board."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from kdbench.errors import KdbenchError
from kdbench.hooks import Job
from kdbench.launch.aside import set_aside
from kdbench.launch.chosen import OPEN, open_cells, still_open
from kdbench.launch.elsewhere import check_processes, known_options, place_of, shares_at
from kdbench.launch.forecast import Forecast
from kdbench.launch.gangs import Wish, arrange, compiled, told
from kdbench.launch.hearing import Hearing
from kdbench.launch.history import forecast_of
from kdbench.launch.holding import hold_run
from kdbench.launch.mirror import Mirrors, prepare
from kdbench.launch.notes import annotate, matrix_facts, note_not_applicable, write_matrix
from kdbench.launch.outlook import Outlook
from kdbench.launch.packing import MOST
from kdbench.launch.packing import Wish as Slots
from kdbench.launch.plan import Plan, PlannedCell
from kdbench.launch.progress import Progress, clock_text
from kdbench.launch.resolve import Resolver
from kdbench.launch.server import warm_up
from kdbench.launch.shares import Shares, share_out
from kdbench.launch.signals import asked_to_stop
from kdbench.launch.system import SystemSampler, has_gpu_driver
from kdbench.launch.teacher_plan import describe
from kdbench.launch.views import Files
from kdbench.measure.cores import cores
from kdbench.registry import Registry
from kdbench.results.lease import Lease, LeaseLost
from kdbench.results.store import atomic_write_bytes, remove_unfinished


@dataclass
class Options:
    """How a matrix is run."""

    launcher: str = "local"
    workers: int | None = None
    device: str = "auto"
    sinks: tuple[str, ...] = ("mlflow",)
    tracking_uri: str | None = None
    rerun: str | None = None
    disable: tuple[str, ...] = ()
    only_teachers: bool = False
    #: threads of each worker on the CPU; None: one
    threads: int | None = None
    #: cells at a time on each GPU; None: as the matrix says
    slots_per_gpu: Slots | None = None
    #: ``auto``, ``off`` or the most cells of a gang; None: as the matrix says
    gang: Wish | None = None
    #: processes that train each cell together
    processes: int = 1
    #: whether to sample how busy the machine is, where psutil is installed
    system_metrics: bool = True
    #: what goes on with the run, for people
    command: str = ""


class Session:
    """Runs the open cells of a plan."""

    def __init__(self, registry: Registry, plan: Plan, options: Options, progress: Progress) -> None:
        self._registry, self._plan, self._options, self._progress = registry, plan, options, progress
        self._cells = {c.id: c for c in plan.cells}
        self._mirrors = Mirrors(registry, options.sinks, progress.note, f"kdbench sync {plan.run.path}")
        self._stops = 0
        self._lease: Lease | None = None
        self._shares = Shares(1, None, 0)
        self._outlook = Outlook(Forecast({}))
        self._answer: tuple[str, int] | None = None
        self._gpus = 0
        self._noted: set[str] = set()
        self._launcher = registry.get("launchers", options.launcher).load()
        check_processes(self._launcher, options.launcher, options.processes)
        self._told_launcher = known_options(registry, plan, options.launcher)
        self._place = place_of(self._launcher, self._told_launcher, options.device)

    def idle(self) -> bool:
        """Return whether there is nothing to run and nothing to hear of."""
        return not self.open_cells() and not (self._place is not None and self._place.news)

    def open_cells(self) -> list[PlannedCell]:
        """Return the cells that this invocation runs."""
        return open_cells(self._plan.cells, self._options.rerun, only_teachers=self._options.only_teachers)

    def run(self) -> bool:
        """Run the open cells. Returns whether the run was interrupted."""
        folder = self._plan.run.path
        cells = self.open_cells()
        wanted = {c.id for c in cells}
        done = sum(c.status == "done" for c in self._plan.cells if c.id not in wanted)
        again = sum(c.status == "done" for c in cells)
        finished = f"{again} of them done before" if again else f"{done} finished before"
        planned = f"{self._plan.matrix.matrix.name}: {len(cells)} cell(s) to run, {finished}"
        if sys.stderr.isatty():  # elsewhere bad input is told in one line and no other
            self._tell([planned])
        # both take seconds and need nothing of each other, nor of the next lines; planning may have begun them
        if self._place is None:
            warm_up()
        prepare(self._registry, self._options.sinks)
        device, gpus = self._devices(cells)
        self._ready(cells, device, gpus)
        self._tell(self._doubts(cells))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lease = hold_run(folder)
        except OSError as e:
            raise KdbenchError(f"{folder}: cannot write the run folder ({e.strerror})") from e
        try:
            for there in (folder, folder / "board"):
                remove_unfinished(there)
            cells = still_open(self._plan, cells, self._registry)
            # before the sinks open, which takes seconds too
            self._tell([planned, *self.sharing()])
            write_matrix(self._plan, self._options.command)
            chosen = {c.id for c in cells}
            jobs = [self._prepare(c, device, chosen) for c in cells]
            self._arrange(jobs, gpus, self._launcher)  # for the time that it will take
            self._mirrors.open(matrix_facts(self._plan), self._options.tracking_uri)
            self._tell(note_not_applicable(self._plan, self._mirrors))
            hear = Hearing(
                self._registry, self._cells, self._progress, self._mirrors, self._outlook, self._lost
            )
            hear.fire("kdbench_matrix_started", plan=matrix_facts(self._plan))
            if self._outlook.forecast.knows:
                self._tell([self._expected()])
            self._progress.start(len(cells), done, self._outlook.left)
            self._lease = lease
            with asked_to_stop(self._stop), self._watched():
                self._launch(jobs, gpus, hear)
            self._asked()
            annotate(self._plan, self._mirrors)
            ended = {self._cells[c.id].status for c in cells} - {"not_applicable"}
            self._mirrors.close("killed" if self._stops else "finished" if ended <= {"done"} else "failed")
            hear.fire("kdbench_matrix_finished", summary=dict(self._plan.counts()))
        except BaseException:
            self._mirrors.close("failed")
            raise
        finally:
            self._progress.stop()
            lease.close()
        return self._stops > 0

    def device(self) -> str:
        """Return where the cells run: ``cpu`` or ``cuda``. Raises KdbenchError where that cannot be used."""
        return self._devices(self._plan.cells)[0]

    def _devices(self, cells: Sequence[PlannedCell]) -> tuple[str, int]:
        if self._answer is not None:
            return self._answer
        if self._place is not None:
            return self._place.device, 0
        files = [pattern.file for pattern in {c.pattern for c in cells}]
        question = {
            "ask": "device",
            "device": self._options.device,
            "precisions": sorted({p for file in files for p in file.precisions}),
            "compiles": sorted({file.recipe.compile for file in files}),
        }
        answer = Resolver(self._registry, self._options.disable).ask([question])[0]
        if answer["error"]:
            raise KdbenchError(answer["error"])
        gpus = answer["gpus"] if answer["device"] == "cuda" else 0
        self._answer = answer["device"], gpus
        return self._answer

    def _prepare(self, cell: PlannedCell, device: str, chosen: set[str]) -> Job:
        job = self._job(cell, device, chosen)
        cell.folder.mkdir(parents=True, exist_ok=True)
        if cell.status not in OPEN or (cell.folder / "result.json").exists():
            self._tell(set_aside(cell, keep_done=cell.status in OPEN and not cell.damaged))
        # what is lost with the machine's power is written again by the next plan
        text = cell.file.model_dump_json(indent=2)
        atomic_write_bytes(cell.folder / "cell.json", text.encode(), durable=False)
        return job

    def _job(self, cell: PlannedCell, device: str, chosen: set[str]) -> Job:
        file = cell.pattern.file
        file.device = device
        file.threads, file.loaders = self._shares.threads, self._shares.loaders
        return Job(
            cell_id=cell.id,
            folder=cell.folder,
            label=cell.label,
            after=tuple(a for a in cell.after if a in chosen or self._cells[a].status != "done"),
            timeout_s=cell.pattern.spec.timeout_s,
            method=cell.pattern.file.method,
            cost=self._outlook.forecast.cost(cell.id),
        )

    def _launch(self, jobs: Sequence[Job], gpus: int, hear: Hearing) -> None:
        total = len(jobs)
        jobs = self._arrange(jobs, gpus, self._launcher)
        self._tell(self._told(jobs, total))
        workers = max(1, min(self._shares.workers, len(jobs)))
        options = {**self._told_launcher, "workers": workers, "gpus": gpus, "cost": self._outlook.cost}
        options["processes"] = self._options.processes
        if gpus:
            options["slots_per_gpu"] = self._slots_per_gpu
        self._launcher(options).run(jobs, hear, self._asked)

    def _asked(self) -> int:
        """Return how often the user, or the loss of the run folder, asked to stop."""
        if not self._stops and self._lease is not None and self._lease.lost:
            self._stops = 1
            self._progress.note("stopping: another kdbench took over the run folder")
        return self._stops

    def _lost(self) -> bool:
        """Return whether what becomes of the cells is for another process to tell."""
        try:
            if self._lease is not None:
                self._lease.check()
        except LeaseLost:
            return True
        return False

    @property
    def _slots_per_gpu(self) -> Slots:
        if self._options.processes > 1:
            return 1
        asked = self._options.slots_per_gpu
        return self._plan.matrix.matrix.slots_per_gpu if asked is None else asked

    @property
    def _wish(self) -> Wish:
        if self._options.processes > 1:
            return "off"
        return self._plan.matrix.matrix.gang if self._options.gang is None else self._options.gang

    def _ready(self, cells: Sequence[PlannedCell], device: str, gpus: int) -> None:
        """Share the machine out among the workers, and look at what is known of the cells."""
        self._gpus = gpus
        if self._place is not None:
            asked = self._options
            self._shares = shares_at(self._place, len(cells), asked.workers, asked.threads)
            self._outlook = Outlook(forecast_of(self._plan, device))
            return
        slots = self._slots_per_gpu
        self._shares = share_out(
            cores(),
            len(cells),
            workers=self._options.workers,
            threads=self._options.threads,
            gpus=gpus,
            slots_per_gpu=MOST if slots == "auto" else slots,
            processes=self._options.processes,
        )
        self._outlook = Outlook(forecast_of(self._plan, device))

    def _arrange(self, jobs: Sequence[Job], gpus: int, launcher: type) -> list[Job]:
        """Put cells that can share into one job, as far as it is wanted and the launcher knows such jobs."""
        # of a bound that `auto` may not reach, only what is sure counts
        workers = gpus if gpus and self._slots_per_gpu == "auto" else self._shares.workers
        if not getattr(launcher, "gangs", False):
            if self._options.gang not in (None, "off"):
                self._tell([f"warning: the launcher '{self._options.launcher}' runs every cell alone"])
            arranged = list(jobs)
        else:
            arranged = arrange(jobs, Files(self._cells), self._wish, workers)
        self._outlook.plan(arranged, workers)
        return arranged

    def _told(self, jobs: Sequence[Job], total: int) -> list[str]:
        """Return what people should know of precision, of teachers and of who shares what."""
        ids = {c.cell_id for j in jobs for c in (j.gang or (j,))}
        chosen = [c for c in self._plan.cells if c.id in ids]
        lines = [*self._plan.notes]
        lines += describe(chosen, self._plan.cells, [[j.cell_id for j in job.gang] for job in jobs])
        alone = compiled(c.file if c.own else c.pattern.file for c in chosen) if self._wish != "off" else None
        return [*lines, *(line for line in (alone, told(jobs, total)) if line)]

    def _tell(self, lines: Sequence[str]) -> None:
        """Note what was not noted before."""
        for line in lines:
            if line not in self._noted:
                self._noted.add(line)
                self._progress.note(line)

    def sharing(self) -> list[str]:
        """Return lines on what the open cells would share; nothing is written."""
        cells = self.open_cells()
        lines = self._told(self._preview(), len(cells))
        return lines + self._doubts(cells)

    def _doubts(self, cells: Sequence[PlannedCell]) -> list[str]:
        """Return warnings of what was asked for and does not go well with the machine."""
        found = [self._shares.warning] if self._shares.warning else []
        if self._options.slots_per_gpu is not None and not self._gpus:
            found.append("--slots-per-gpu changes nothing: cells run on the CPU, where --workers counts")
        graphs = sum(c.file.recipe.compile == "graph" for c in cells)
        if graphs and not self._gpus:
            found.append(f"{graphs} cell(s) have recipe.compile: graph, which needs a GPU, and here is none")
        return [f"warning: {text}" for text in found]

    def expected(self) -> str:
        """Return a line on how long the open cells will take."""
        self._preview()
        return self._expected()

    def _expected(self) -> str:
        seconds = self._outlook.left()
        if seconds is None:
            return "expected time: unknown before the first cells"
        if self._place is not None and self._options.workers is None:
            return f"expected time: {clock_text(seconds)} if all run at once"
        return f"expected time: {clock_text(seconds)} with {self._shares.workers} worker(s)"

    def _preview(self) -> list[Job]:
        """Return the jobs that would be launched; nothing is written."""
        cells = self.open_cells()
        device, gpus = "cpu", 0
        if self._place is not None or (self._options.device != "cpu" and has_gpu_driver()):
            with suppress(KdbenchError):  # a plan may be made for another machine than this one
                device, gpus = self._devices(cells)
        self._ready(cells, device, gpus)
        chosen = {c.id for c in cells}
        jobs = [self._job(c, device, chosen) for c in cells]
        return self._arrange(jobs, gpus, self._launcher)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Sample the machine meanwhile, for the sinks."""
        if not self._options.system_metrics or self._place is not None:
            yield
            return
        sampler = SystemSampler(self._plan.run.path)
        sampler.start()
        try:
            yield
        finally:
            sampler.close()
        self._mirrors.observe(sampler.samples)

    def _stop(self) -> None:
        """Note that the user wants to leave, and say what that means."""
        self._stops += 1
        if self._place is not None and self._place.leaving:
            text = self._place.leaving
        elif self._stops == 1:
            text = "stopping: running cells save their state (once more to kill them)"
        else:
            text = "killing the workers"
        self._progress.note(text)
