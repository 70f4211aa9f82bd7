"""timm's distillation tasks on kdbench's handles: what `timm-logit`, `timm-feature`, `timm-token` share.

timm's task objects are made and called as they are: their weights, temperature, projection and losses are
timm's. Around them four things are replaced, and nothing of timm is copied:

- networks: a :class:`Port` stands for each, so that forward passes go through the run's handles (autocast, no
  gradient to teachers) and pooled features exist for networks that are not timm's;
- criterion: the task's loss with the recipe's label smoothing;
- normalisation: both networks get the data set's, as everywhere in kdbench (timm would renormalise the
  teacher's input by its ``pretrained_cfg``, and compares the two on the host in every step);
- precision: the losses are computed in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from timm.task import DistillationTeacher
from torch import Tensor, nn

from kdbench.api import Batch, Handle, Method, MethodParams, Out, Run
from kdbench_methods._common import full, require_categorical


class Port(nn.Module):
    """A handle as timm's tasks see a model; it holds no parameters of its own and registers none."""

    def __init__(self, handle: Handle, run: Run, *, teaches: bool) -> None:
        super().__init__()
        self.num_classes, self.in_chans = run.data.num_classes, run.data.in_chans
        self.head_hidden_size = handle.num_features
        self.pretrained_cfg = {"mean": run.data.mean, "std": run.data.std}
        object.__setattr__(self, "link", (handle, run, teaches))

    def forward_features(self, x: Tensor) -> Out:
        """Return the network's whole output."""
        handle, run, teaches = self.link
        with run.amp():
            return run.teach(handle, x) if teaches else handle(x, ())

    def forward_head(self, out: Out, pre_logits: bool = False) -> Any:
        """Return logits (B, K), or what enters the classifier (B, D)."""
        value = out.pooled if pre_logits else out.logits
        return tuple(full(v) for v in value) if isinstance(value, tuple) else full(value)

    def forward(self, x: Tensor) -> Any:
        return self.forward_head(self.forward_features(x))


class TokenPort(Port):
    """A student with a distillation head."""

    def set_distilled_training(self, enable: bool = True) -> None:
        """Make the network return the logits of both heads in train mode."""
        self.link[0].net.set_distilled_training(enable)


class Guide(DistillationTeacher):
    """timm's teacher, which takes the images as they are."""

    def normalize_input(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return input


class TimmParams(MethodParams):
    """timm's weighting: independent weights, complementary ones, or both 1."""

    task_loss_weight: float | None = Field(None, ge=0, description="weight of the task's loss; none: 1")
    distill_loss_weight: float | None = Field(
        None, ge=0, description="weight of distillation; none: 1 - task_loss_weight where given, else 1"
    )


class TimmTask(Method):
    """Base of the three; a subclass makes the task object in :meth:`make`."""

    Params = TimmParams
    fidelity = "official-code"
    port: type[Port] = Port
    distillation_loss = "kd_loss"

    def make(self, **common: Any) -> nn.Module:
        """Return timm's task object."""
        raise NotImplementedError

    def setup(self, run: Run) -> None:
        require_categorical(run, "timm's distillation")
        self.timm_task = self.make(
            student_model=self.port(run.student, run, teaches=False),
            teacher_model=Guide(Port(run.teacher, run, teaches=True), device=run.device),
            criterion=self._criterion(run),
            task_loss_weight=self.hp.task_loss_weight,
            distill_loss_weight=self.hp.distill_loss_weight,
            device=run.device,
            verbose=False,
        )

    @staticmethod
    def _criterion(run: Run) -> Any:
        return lambda logits, y: run.task.loss(Out(logits), Batch(logits, y))

    def step(self, batch: Batch | None, run: Run) -> Mapping[str, Tensor]:
        """One call of timm's task and one optimizer step on its loss."""
        assert batch is not None
        with run.fp32():
            result = self.timm_task(batch.x, batch.y)
        run.optimize(result["loss"])
        return {
            "task": self.timm_task.task_loss_weight * result["task_loss"].detach(),
            "kd": self.timm_task.distill_loss_weight * result[self.distillation_loss].detach(),
        }
