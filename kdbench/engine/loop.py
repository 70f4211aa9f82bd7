"""The training loop: phases, epochs, steps; checkpoints and exact resume. It knows no method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from kdbench.engine.checkpoint import load_state, save_state
from kdbench.engine.clock import Clock, wait
from kdbench.engine.context import CellRun
from kdbench.engine.contract import check_parts, loss_checked
from kdbench.engine.divergence import Diverged, check_metrics, check_terms, check_weights
from kdbench.engine.optim import build_optimizers
from kdbench.engine.phases import checked, epochs_of, optimizers_of
from kdbench.engine.progress import Interrupted, Progress
from kdbench.engine.seeds import rng_state, set_rng_state
from kdbench.engine.step_graph import step_graph
from kdbench.engine.together.group import Group
from kdbench.errors import KdbenchError
from kdbench.protocol.method import Method
from kdbench.protocol.types import Batch, NotApplicable, Phase

#: What comes after the last batch of an epoch; None is a batch of phases without data.
_END: Any = object()

Evaluate = Callable[[], Mapping[str, Mapping[str, float]]]


class Loop:
    """Trains one cell.

    Args:
        evaluate: returns metrics per deployable; called after the epochs that the recipe names.
        on_epoch: gets each epoch's row (for curves and live progress).
        should_stop: polled after every step; true ends the run with :class:`Interrupted`.
        gate: called before each epoch; may wait (for another process that measures alone).
        wanted: polled after every step; true stops the clock and calls `gate` before the next one.
        note: told of a checkpoint that was put aside.
        group: the processes that train the cell; None where this one does alone.
        keep: called with (number of epochs done over the run) after each epoch; saves route checkpoints.
        kept: called with the same before a cell goes on from there; whether it left all that is to be kept.
        clock: gives the time in seconds.
    """

    def __init__(
        self,
        run: CellRun,
        method: Method,
        folder: Path,
        *,
        evaluate: Evaluate,
        on_epoch: Callable[[dict[str, Any]], None] = lambda row: None,
        should_stop: Callable[[], bool] = lambda: False,
        gate: Callable[[], None] = lambda: None,
        wanted: Callable[[], bool] = lambda: False,
        note: Callable[[str], None] = lambda text: None,
        keep: Callable[[int], None] = lambda epochs: None,
        kept: Callable[[int], bool] = lambda epochs: True,
        clock: Clock | None = None,
        group: Group | None = None,
    ) -> None:
        self._group = group
        self.run, self.method, self.path = run, method, folder / "checkpoint.safetensors"
        self._evaluate, self._on_epoch, self._should_stop = evaluate, on_epoch, should_stop
        self._gate, self._wanted, self._note, self._keep, self._kept = gate, wanted, note, keep, kept
        self._clock = clock or Clock()
        self.phases = checked(method.phases(run))
        self.epochs = epochs_of(self.phases, run.recipe.epochs)
        self.at = Progress()

    @property
    def ending(self) -> bool:
        """Whether the epoch that is being finished is the last one."""
        return self.at.total_epochs == sum(self.epochs)

    def train(self) -> Progress:
        """Train to the end, from the checkpoint if there is one. Returns the final progress."""
        for _ in self.steps():
            pass
        return self.at

    def steps(self) -> Iterator[None]:
        """Train as :meth:`train` does, and stop before each batch is taken, so that others can have a turn."""
        if self._group is None:
            yield from self._steps_here()
            return
        with self._group.dividing():
            yield from self._steps_here()
            self._group.any(False)  # nobody leaves while another still listens to it

    def _steps_here(self) -> Iterator[None]:
        resumed = self._load()
        if resumed is not None and self.at.phase == len(self.phases):
            # cut after the last epoch and before the record: only what was trained has to come back
            self._restore_nets(resumed)
            self._restore_rng(resumed)
        with loss_checked(self.method):
            for number in range(self.at.phase, len(self.phases)):
                yield from self._train_phase(number, resumed)
                resumed = None

    def _train_phase(self, number: int, resumed: dict[str, Any] | None) -> Iterator[None]:
        run, at, phase = self.run, self.at, self.phases[number]
        at.phase = number
        run.phase_epochs, run.teacher_bn = self.epochs[number], phase.teacher_bn
        run.steps_per_epoch = self._steps(phase)
        run.epoch, run.step_in_epoch, run.global_step = at.epoch, at.step, at.global_step
        if resumed is not None:
            self._restore_nets(resumed)
            if resumed["optimizers"] is None:  # cut between two phases: nothing of this one has happened yet
                self._restore_rng(resumed)
                resumed = None
        self.method.on_phase_start(phase, run)
        run.optimizers = build_optimizers(
            optimizers_of(phase, self.method, run),
            run.recipe,
            epochs=run.phase_epochs,
            steps_per_epoch=run.steps_per_epoch,
        )
        if run.divider is None:
            run.use_graph(step_graph(run, self.method, phase.step or self.method.step))
        else:
            run.divider.look_again()
            run.divider.watch(p for h in run.students.values() for p in h.net.parameters())
        for epoch in range(at.epoch, run.phase_epochs):
            run.epoch, run.step_in_epoch = epoch, at.step
            self._set_modes()
            for driven in run.optimizers.values():
                driven.set_epoch(epoch)
            if at.step == 0:
                run.terms.reset()
                at.epoch_s, at.epoch_images, at.epoch_timed = 0.0, 0, 0
            if resumed is None:
                self.method.on_epoch_start(run)
            else:
                self._resume_epoch(resumed)
                resumed = None
            self._gate()
            yield from self._train_epoch(phase)
            self._finish_epoch(phase)
        run.use_graph(None)
        run.optimizers = {}

    def _resume_epoch(self, state: dict[str, Any]) -> None:
        """Put the state of a cut phase back; the hook runs where it ran in the undisturbed order."""
        in_epoch = self.at.step > 0
        if in_epoch:
            self.run.step_in_epoch = 0  # the hook reads run.frac as it was at the start of the epoch
            self.method.on_epoch_start(self.run)
            self.run.step_in_epoch = self.at.step
        self._restore(state)
        if not in_epoch:
            self.method.on_epoch_start(self.run)

    def _train_epoch(self, phase: Phase) -> Iterator[None]:
        run, at = self.run, self.at
        step_fn = phase.step or self.method.step
        run.taught = run.answered = 0
        began, images = self._clock(), 0
        batches = iter(self._batches(phase))
        while True:
            yield
            batch = next(batches, _END)
            if batch is _END:
                break
            run.batch = batch
            run.begin_step()
            step_began = self._clock()
            for driven in run.optimizers.values():
                driven.set_update(run.epoch * run.steps_per_epoch + at.step)
            parts = self._step(step_fn, batch, phase)
            total = sum((p.detach() for p in parts.values()), start=torch.zeros((), device=run.device))
            run.log({**{f"loss/{k}": v for k, v in parts.items()}, "loss": total})
            at.step += 1
            at.global_step += 1
            run.step_in_epoch, run.global_step = at.step, at.global_step
            if not run.end_step(lambda since=step_began: self._clock() - since):  # type: ignore[misc]
                images += len(batch.x) if batch is not None else 0
                at.epoch_timed += 1
            if self._agreed(self._should_stop()):
                self._count(began, images)
                self._save()
                raise Interrupted
            if self._wanted():
                self._count(began, images)
                self._gate()
                began, images = self._clock(), 0
        self._count(began, images)

    def _agreed(self, flag: bool) -> bool:
        return flag if self._group is None else self._group.any(flag)

    def _step(self, step_fn: Any, batch: Batch | None, phase: Phase) -> Mapping[str, torch.Tensor]:
        try:
            graph = self.run.graph
            parts: Mapping[str, torch.Tensor] = graph(batch) if graph else step_fn(batch, self.run)
            check_parts(parts, step_fn)
            return parts
        except (NotApplicable, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as e:
            self._blame(e, phase)
            raise

    def _blame(self, error: Exception, phase: Phase) -> None:
        """Raise Diverged if something was not finite before `error`: what refuses a nan is not at fault for it."""
        try:
            check_terms(self.run.terms, self.at.global_step, self._where(phase))
            self._check_weights(phase)
        except Diverged as e:
            raise e from error
        except Exception:  # after an error on the device nothing can be read from it
            return

    def _where(self, phase: Phase) -> str:
        return f"epoch {self.run.epoch + 1} of phase '{phase.name}'"

    def _check_weights(self, phase: Phase) -> None:
        nets = {f"'{name}'": h.net for name, h in self.run.students.items()} | {"the method": self.method}
        trained = [p for driven in self.run.optimizers.values() for p in driven.params]
        check_weights(nets, trained, self.at.global_step, self._where(phase))

    def _count(self, began: float, images: int) -> None:
        wait(self.run.device)
        compiling = self.run.take_compile_s()
        seconds = self._clock() - began - compiling
        self.at.compile_s += compiling
        self.at.shared_s += self._clock.take()
        self.at.train_s += seconds
        self.at.epoch_s += seconds
        self.at.images += images
        self.at.epoch_images += images
        self.at.taught += self.run.taught
        self.at.answered += self.run.answered
        # an epoch in which others measured is counted in several parts
        self.run.taught = self.run.answered = 0

    def _finish_epoch(self, phase: Phase) -> None:
        run, at = self.run, self.at
        if at.step == 0:
            raise KdbenchError(
                "the training set gives no batch: fewer images than recipe.batch_size with drop_last"
            )
        if self._group is not None:
            # equal but for rounding on devices whose kernels do not always add in one order
            self._group.same_([b for net in self._nets() for b in net.buffers()])
        began = self._clock()
        means = check_terms(run.terms, at.global_step, self._where(phase))
        self._check_weights(phase)
        at.log_s += self._clock() - began
        at.total_epochs += 1
        row: dict[str, Any] = {
            "epoch": at.total_epochs,
            "phase": phase.name,
            "steps": at.step,
            "train": means,
            "lr": {name: driven.lr for name, driven in run.optimizers.items()},
            "train_s": at.epoch_s,
            "step_ms": 1e3 * at.epoch_s / max(1, at.epoch_timed),
        }
        if at.epoch_images and at.epoch_s > 0:
            row["images_per_s"] = at.epoch_images / at.epoch_s
        last = self.ending
        due = at.total_epochs % run.recipe.eval_every == 0
        if last or (due and phase.evaluate):
            began = self._clock()
            row["eval"] = {name: dict(m) for name, m in self._evaluate().items()}
            row["eval_s"] = self._clock() - began
            at.eval_s += row["eval_s"]
            if last:
                check_metrics(row["eval"], at.global_step)
        began = self._clock()
        at.rows.append(row)
        self._keep(at.total_epochs)
        at.epoch, at.step = run.epoch + 1, 0
        if at.epoch == run.phase_epochs:
            at.phase, at.epoch = at.phase + 1, 0
        self._save()
        self._on_epoch(row)
        at.log_s += self._clock() - began

    def _set_modes(self) -> None:
        for handle in self.run.students.values():
            handle.net.train()
        self.method.train()
        for handle in self.run.teachers:
            handle.net.eval()
            handle.frozen.forget()

    def _steps(self, phase: Phase) -> int:
        if isinstance(phase.source, bool):
            raise ValueError(f"phase '{phase.name}': source must be a name, a number of ticks or a callable")
        if isinstance(phase.source, int):
            return phase.source
        if isinstance(phase.source, str):
            streams = self.run.task_data.streams
            if phase.source not in streams:
                raise ValueError(
                    f"phase '{phase.name}': no stream '{phase.source}'; there are {sorted(streams)}"
                )
            return len(streams[phase.source])
        return 1

    def _batches(self, phase: Phase) -> Iterable[Batch | None]:
        start = self.at.step
        if isinstance(phase.source, int):
            return [None] * (phase.source - start)
        if isinstance(phase.source, str):
            return self.run.task_data.streams[phase.source].epoch(self._data_epoch(), start)
        made = iter(phase.source(self.run))
        for _ in range(start):
            next(made)
        return made

    def _data_epoch(self) -> int:
        """Epochs done over the whole run, so that a second phase sees new views."""
        return self.at.total_epochs

    def _nets(self) -> list[torch.nn.Module]:
        return [*(h.net for h in self.run.students.values()), self.method]

    def _save(self) -> None:
        if self._group is not None and not self._group.lead:
            return
        run, at = self.run, self.at
        in_phase = at.step > 0 or at.epoch > 0
        state = {
            "version": 1,
            "progress": dict(vars(at)),
            "students": {name: h.net.state_dict() for name, h in run.students.items()},
            "method": self.method.state_dict(),
            "optimizers": {n: d.optimizer.state_dict() for n, d in run.optimizers.items()}
            if in_phase
            else None,
            "scaler": run.precision.scaler.state_dict(),
            **(run.terms.state() if at.step else {"means": {}, "counts": {}}),
            "rng": rng_state(),
            "run_rng": run.rng.get_state(),
        }
        save_state(self.path, state)

    def _load(self) -> dict[str, Any] | None:
        group = self._group
        if group is None:
            return self._read()
        state = self._read() if group.lead else None
        # the others only once it is known to be whole: who leads may have put it aside
        if group.any(state is not None) and not group.lead:
            state = self._read()
        return state

    def _read(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        try:
            state = load_state(self.path)
        except KdbenchError as e:
            # a damaged checkpoint costs the epochs it held, never the cell
            aside = self.path.rename(self.path.with_suffix(".damaged"))
            self._note(f"{e}; it is put aside as {aside.name}, and the cell begins anew")
            return None
        if not self._kept(state["progress"]["total_epochs"]):
            self._note("epochs that were not kept are wanted by now, so the cell begins anew")
            return None
        for key, value in state["progress"].items():
            setattr(self.at, key, value)
        self.at.attempts += 1
        return dict(state)

    def _restore_nets(self, state: dict[str, Any]) -> None:
        for name, handle in self.run.students.items():
            handle.net.load_state_dict(state["students"][name])
        self.method.load_state_dict(state["method"])

    def _restore(self, state: dict[str, Any]) -> None:
        run = self.run
        self._restore_nets(state)
        for name, saved in state["optimizers"].items():
            run.optimizers[name].load(saved)
        if run.precision.scaler.is_enabled():
            run.precision.scaler.load_state_dict(state["scaler"])
        run.terms.restore(state)
        for driven in run.optimizers.values():
            driven.set_epoch(run.epoch)
        self._restore_rng(state)

    def _restore_rng(self, state: dict[str, Any]) -> None:
        set_rng_state(state["rng"])
        self.run.rng.set_state(state["run_rng"])
