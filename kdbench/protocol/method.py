"""Base class of distillation methods (imports torch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from kdbench.hooks import Needs
from kdbench.protocol.run import Run
from kdbench.protocol.search import Search
from kdbench.protocol.types import Batch, Golden, Out, Phase, Tap


class MethodParams(BaseModel):
    """Hyper-parameters of a method; unknown keys are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Method(nn.Module):
    """A distillation method: an ``nn.Module``, so that connectors, generators and banks are saved and moved.

    Most methods override :meth:`loss` only. Everything with parameters or buffers is made in :meth:`setup`.

    Attributes:
        Params: pydantic model (or dataclass) of the hyper-parameters; ``self.hp`` is the cell's instance.
        needs: what a cell must give. Override :meth:`requires` when it depends on hyper-parameters.
        presets: named sets of hyper-parameter overrides, e.g. ``{"cifar100": {"beta": 8.0}}``.
        search: where `kdbench tune` searches, e.g. ``{"beta": Search(low=0.5, high=16, log=True)}``: the main
            weights and temperatures, and nothing that changes what the method costs.
        fidelity: what the code follows: ``"paper"``, ``"official-code"`` or ``"reconstruction"``; ``""`` for a
            method that has no paper. Say it: the default claims nothing.
        taps: features asked for: ``{"student": [Tap(...)], "teacher": [Tap(...)]}``; for more, call
            ``run.student.want(...)`` in :meth:`setup`.
        deploys_extra: whether deployables contain modules of the method (otherwise they must not).
    """

    class Params(MethodParams):
        """No hyper-parameters."""

    needs: ClassVar[Needs] = Needs()
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    search: ClassVar[Mapping[str, Search]] = {}
    fidelity: ClassVar[Literal["paper", "official-code", "reconstruction", "not stated", ""]] = "not stated"
    deploys_extra: ClassVar[bool] = False
    taps: Mapping[str, Sequence[Tap]] = {}

    def __init__(self, params: Any = None) -> None:
        super().__init__()
        self.hp: Any = params if params is not None else self.Params()

    @classmethod
    def requires(cls, params: Any) -> Needs:
        """Return the needs for these hyper-parameters."""
        return cls.needs

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        """Return values that the formula must give; the conformance suite checks them."""
        return ()

    def setup(self, run: Run) -> None:
        """Make modules, buffers and further students; shapes are known. May raise NotApplicable."""

    def phases(self, run: Run) -> Sequence[Phase]:
        """Return the stages of training."""
        return [Phase()]

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Run) -> Mapping[str, Tensor]:
        """Return named scalar losses; their sum is minimised."""
        raise NotImplementedError(f"{type(self).__name__} must override loss() or step()")

    def step(self, batch: Batch | None, run: Run) -> Mapping[str, Tensor]:
        """One training step: by default one forward each and one optimizer step on the sum of the losses."""
        if batch is None:
            raise NotImplementedError(
                f"{type(self).__name__} has phases without data and must override step()"
            )
        with run.amp():
            teachers = [run.teach(t, batch.x) for t in run.teachers]
            student = run.student(batch.x)
        with run.fp32():
            parts = self.loss(student, teachers, batch, run)
            total = sum(parts.values(), start=student.logits.new_zeros(()))
        run.optimize(total)
        return parts

    def on_phase_start(self, phase: Phase, run: Run) -> None:
        """Called when a phase starts, and again when a cut run resumes in it."""

    def on_epoch_start(self, run: Run) -> None:
        """Called when an epoch starts, and again when a cut run resumes in it."""

    def deploy(self, run: Run) -> Mapping[str, nn.Module]:
        """Return what is evaluated and timed, ``x -> logits``; the first is the primary one."""
        return {"student": run.student.net}
