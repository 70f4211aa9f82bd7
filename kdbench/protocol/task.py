"""Base class of tasks: data, heads, metrics and the unit of budget; never the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

from kdbench.protocol.types import Batch, Budget, Build, Metric, Out, TaskContext, TaskData, Throughput

if TYPE_CHECKING:
    from torch import Tensor, nn


class Task(ABC):
    """A task.

    Attributes:
        name: as registered.
        kind: of the output: categorical, binary, continuous, embedding, policy, sample, boxes.
        capabilities: what methods may require: ``"supervised"``, ``"distillable"``, ``"features"`` ...
        variants: settings of the task; empty when each data set is one.
    """

    name: ClassVar[str]
    kind: ClassVar[str] = "categorical"
    capabilities: ClassVar[frozenset[str]] = frozenset({"supervised", "distillable", "features"})
    variants: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def metrics(self, variant: str = "") -> Sequence[Metric]:
        """Declared metrics; exactly one primary, with a direction."""

    @abstractmethod
    def setup(self, ctx: TaskContext) -> TaskData:
        """Streams, splits and facts."""

    def build(self, role: str, build: Build, data: TaskData) -> nn.Module:
        """Make the network of a role (``student``, ``teacher``) with the task's head; `build` makes the body."""
        return build(
            num_classes=data.info.num_classes, in_chans=data.info.in_chans, image_size=data.info.image_size
        )

    @abstractmethod
    def loss(self, out: Out, batch: Batch) -> Tensor:
        """Supervised loss, a scalar."""

    @abstractmethod
    def divergence(self, student: Out, teacher: Out, temperature: float = 1.0) -> Tensor:
        """Default divergence of a logit method for this output kind, a scalar (gradient to the student)."""

    def paired(self, batch: Batch) -> tuple[Batch, Batch]:
        """Inputs of student and teacher for one step; the same unless the task observes by acting."""
        return batch, batch

    @abstractmethod
    def evaluate(self, net: nn.Module, split: Iterable[Batch], data: TaskData) -> dict[str, float]:
        """Every declared metric of `net` (in eval mode, no gradient) on a split."""

    def evaluate_classes(
        self, net: nn.Module, split: Iterable[Batch], data: TaskData
    ) -> tuple[dict[str, float], Tensor | None]:
        """What :meth:`evaluate` returns, and from the same pass how many images of each class got which answer.

        The counts are integers (K, K), a row for each true class, a column for each answer; None where the task
        has no classes, as by default.
        """
        return self.evaluate(net, split, data), None

    def budget(self, epochs: int) -> Budget:
        """The recipe's budget in the task's unit."""
        return Budget("epochs", epochs)

    @abstractmethod
    def throughput(self, data: TaskData, device: object) -> Throughput:
        """Unit and inputs for timing."""

    @abstractmethod
    def floors(self, data: TaskData) -> dict[str, float]:
        """Primary metric of trivial baselines, in the metric's unit."""
