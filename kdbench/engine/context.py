"""The run: what a method sees of one cell. Implements :class:`kdbench.protocol.run.Run`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from kdbench.engine.batchnorm import batch_statistics
from kdbench.engine.branch import branch
from kdbench.engine.compiled import MODES, Compiler
from kdbench.engine.contract import check_total
from kdbench.engine.divergence import Terms
from kdbench.engine.handle import Captured, NetHandle
from kdbench.engine.optim import Driven
from kdbench.engine.precision import Precision
from kdbench.engine.seeds import seeded
from kdbench.engine.step_graph import StepGraph
from kdbench.engine.taps import Site
from kdbench.hooks import Needs
from kdbench.matrix.identity import derive_seed
from kdbench.matrix.recipe import Recipe
from kdbench.protocol.task import Task
from kdbench.protocol.types import Batch, NotApplicable, Out, Tap, TaskData

if TYPE_CHECKING:
    from kdbench.engine.together.divide import Divider


class CellRun:
    """State and services of one cell's training."""

    def __init__(
        self,
        *,
        student: NetHandle,
        teachers: Sequence[NetHandle],
        build_student: Callable[[], nn.Module],
        build_assistant: Callable[[], nn.Module] | None = None,
        task: Task,
        task_data: TaskData,
        recipe: Recipe,
        device: torch.device,
        seed: int,
        workdir: Path,
        route: Sequence[Callable[[], Mapping[str, Tensor]]] = (),
        probing: bool = False,
    ) -> None:
        self.student, self.teachers, self.route = student, list(teachers), list(route)
        self.students: dict[str, NetHandle] = {"student": student}
        self.task, self.task_data, self.data = task, task_data, task_data.info
        self.recipe, self.device, self.seed = recipe, device, seed
        self.workdir, self.probing = workdir, probing
        self.rng = torch.Generator(device=device)
        self.rng.manual_seed(derive_seed(seed, "run"))
        self.epoch = self.global_step = self.step_in_epoch = 0
        self.phase_epochs = recipe.epochs
        self.steps_per_epoch = 1
        self.optimizers: dict[str, Driven] = {}
        self.teacher_bn: Literal["eval", "batch"] = "eval"
        self.precision = Precision("fp32" if probing else recipe.precision, device)
        mode = recipe.compile
        #: takes the steps of the phase; None: they are taken one by one
        self.graph: StepGraph | None = None
        self._graph_notes: list[str] = []
        self._captured = False
        self.compiler = Compiler(mode, device) if mode in MODES and not probing else None
        self.terms = Terms(device)
        self._build_student, self._build_assistant = build_student, build_assistant
        self._labels: Tensor | None = None
        #: answers for the teachers, or None where it does not know; see :mod:`kdbench.engine.forwards` and
        #: :mod:`kdbench.engine.teacher_cache`
        self.lookup: Callable[[NetHandle, Tensor, tuple[Site, ...], bool], Captured | None] | None = None
        #: the same for BatchNorm by the batch, where others may have seen the batch
        self.batch_lookup: Callable[[NetHandle, Tensor, tuple[Site, ...], bool], Captured | None] | None = (
            None
        )
        #: divides the work among the processes of the cell; None where there is one
        self.divider: Divider | None = None
        #: the batch of the step
        self.batch: Batch | None = None
        #: calls of `teach` in this epoch, and those that a table answered
        self.taught = self.answered = 0
        #: what the method declared; None until it is made
        self.needs: Needs | None = None
        for handle in self.teachers:
            handle.net.requires_grad_(False)
            handle.net.eval()
        for handle in self.handles():
            handle._batches = self._peek

    @property
    def teacher(self) -> NetHandle:
        if not self.teachers:
            raise RuntimeError("this cell has no teacher; declare needs = Needs(teachers=1)")
        return self.teachers[0]

    @property
    def frac(self) -> float:
        return (self.epoch + self.step_in_epoch / max(1, self.steps_per_epoch)) / max(1, self.phase_epochs)

    def begin_step(self) -> None:
        """Tell what keeps tensors from step to step that the last one is over."""
        if self.compiler is not None:
            self.compiler.step()

    def end_step(self, seconds: Callable[[], float]) -> bool:
        """Return whether something was compiled in the step; its `seconds` are then those of compiling."""
        return self.compiler is not None and self.compiler.end(seconds)

    def notes(self) -> list[str]:
        """Return what a reader of the record should know."""
        divided = [] if self.divider is None else self.divider.notes
        return [*([] if self.compiler is None else self.compiler.notes), *self._graph_notes, *divided]

    def take_compile_s(self) -> float:
        """Return the seconds of compiling and capturing since the last call."""
        seconds = 0.0 if self.compiler is None else self.compiler.take()
        if self.graph is not None:
            seconds += self.graph.compile_s
            self.graph.compile_s = 0.0
        return seconds

    @property
    def compiled(self) -> str:
        """What the recipe's ``compile`` came to: ``graph`` and ``auto`` may end in steps one by one."""
        mode = self.recipe.compile if self.divider is None else "none"
        return ("graph" if self._captured else "none") if mode in ("graph", "auto") else mode

    def use_graph(self, graph: StepGraph | None) -> None:
        """Let a phase take its steps by this graph; what the last one says is kept for the record."""
        if self.graph is not None and self.graph.reason is not None:
            note = f"steps were not captured as a graph: {self.graph.reason}"
            self._graph_notes = list(dict.fromkeys([*self._graph_notes, note]))
        self._captured = self._captured or (self.graph is not None and self.graph.captured)
        self.graph = graph

    def divide(self, divider: Divider) -> None:
        """Divide passes and gradients among processes; those of students yet to be made, too."""
        self.divider = divider
        if self.recipe.compile != "none":
            # what is compiled or captured stands for one process's step
            divider.notes.append(f"recipe.compile: {self.recipe.compile} has no effect on several processes")
            self.compiler = None
        for handle in self.handles():
            handle.divider = divider

    def handles(self) -> list[NetHandle]:
        """All handles: teachers, then students."""
        return [*self.teachers, *self.students.values()]

    def lock(self) -> None:
        """End of setup: no further students or taps."""
        for handle in self.handles():
            handle.locked, handle.compiler = True, self.compiler
        for handle in self.teachers:
            handle.frozen.mark()
            handle.only_frozen, handle.frozen.always = True, self.compiler is not None

    def new_student(
        self, name: str, *, share: Literal["none", "all_but_last"] = "none", seed: int = 0
    ) -> NetHandle:
        net = self._new_net("new_student", name, self._build_student, seed)
        if share == "all_but_last":
            return self._join(branch(name, net, self.student, **self._where()))
        return self._join(NetHandle(name, net, **self._where()))

    @property
    def has_assistant(self) -> bool:
        """Whether the pair names an assistant."""
        return self._build_assistant is not None

    def new_assistant(self, name: str = "assistant", *, seed: int = 0) -> NetHandle:
        if self._build_assistant is None:
            raise NotApplicable("needs a pair with an assistant")
        net = self._new_net("new_assistant", name, self._build_assistant, seed)
        return self._join(NetHandle(name, net, **self._where()))

    def _new_net(self, caller: str, name: str, build: Callable[[], nn.Module], seed: int) -> nn.Module:
        if self.student.locked:
            raise RuntimeError(f"{caller}() belongs in setup(), so that a cut run can be resumed")
        if name in self.students:
            raise ValueError(f"a student named '{name}' exists already")
        with seeded(derive_seed(self.seed, "init", name, seed)):
            return build()

    def _where(self) -> dict[str, Any]:
        return {
            "image_size": self.data.image_size,
            "in_chans": self.data.in_chans,
            "device": self.device,
        }

    def _join(self, handle: NetHandle) -> NetHandle:
        handle._batches = self._peek
        handle.divider = self.divider
        self.students[handle.name] = handle
        return handle

    def teach(
        self,
        handle: NetHandle,
        x: Tensor,
        *,
        grad: bool = False,
        bn: Literal["eval", "batch"] | None = None,
        taps: Sequence[Tap] | None = None,
        head: bool | None = None,
    ) -> Out:
        self.taught += 1
        by_batch = (bn or self.teacher_bn) == "batch"
        if head is None:
            head = self.needs is None or self.needs.reads != "taps"
        sites = handle.sites(taps)
        if by_batch and not grad and self.batch_lookup is not None:
            with torch.no_grad():
                got = self.batch_lookup(handle, x, tuple(sites.values()), head)
            if got is not None:
                return handle.assemble(got, sites)
        if grad or by_batch:
            mode = batch_statistics(handle.net) if by_batch else nullcontext()
            with mode, nullcontext() if grad else torch.no_grad():
                return handle.assemble(handle.capture(x, sites.values(), head=head), sites)
        with torch.no_grad():
            got = None if self.lookup is None else self.lookup(handle, x, tuple(sites.values()), head)
            if got is None:
                frozen = any(teacher is handle for teacher in self.teachers)
                got = handle.capture(x, sites.values(), frozen=frozen, head=head)
        return handle.assemble(got, sites)

    def optimize(self, loss: Tensor, *names: str, retain_graph: bool = False) -> None:
        unknown = [n for n in names if n not in self.optimizers]
        if unknown:
            raise ValueError(
                f"no optimizer named '{unknown[0]}' in this phase; there are {sorted(self.optimizers)}"
            )
        check_total(loss)
        chosen = [self.optimizers[n] for n in (names or self.optimizers)]
        for driven in chosen:
            driven.optimizer.zero_grad(set_to_none=True)
        if self.divider is None:
            self.precision.backward(loss, retain_graph=retain_graph)
        else:
            with self.divider.optimizing(p for driven in chosen for p in driven.params):
                self.precision.backward(loss, retain_graph=retain_graph)
        self.precision.step(chosen, self.recipe.clip_grad)

    def amp(self) -> AbstractContextManager[Any]:
        return self.precision.autocast()

    def fp32(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, enabled=False)

    def labels(self) -> Tensor | None:
        needs = self.needs
        if needs is not None and (not needs.labels or needs.data == "none"):
            declared = "labels=False" if not needs.labels else 'data="none"'
            raise RuntimeError(
                f"run.labels(): the method declares Needs({declared}); leave that out to use training labels"
            )
        if self.probing:
            return torch.zeros(1, dtype=torch.int64, device=self.device)
        if self._labels is None and self.task_data.labels is not None:
            self._labels = self.task_data.labels.to(self.device)
        return self._labels

    def log(self, values: Mapping[str, Any]) -> None:
        self.terms.add(values, self.global_step + 1)

    def split(self, name: str) -> Iterable[Batch]:
        if name == "test":
            raise ValueError("a method never sees the test split; use 'val'")
        return self.task_data.splits[name]

    def _peek(self, n_batches: int) -> Iterator[Batch]:
        """First batches of epoch 0, the same whenever it is called."""
        for i, batch in enumerate(self.task_data.streams["train"].epoch(0)):
            if i >= n_batches:
                return
            yield batch

    def close(self) -> None:
        """Remove every hook that the method left with a handle."""
        for handle in self.handles():
            handle.close()
