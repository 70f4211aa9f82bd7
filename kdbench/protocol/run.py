"""What a method sees of the engine: handles and the run. Structural types, for readers and type checkers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from kdbench.protocol.types import DataInfo, Out, Tap

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from kdbench.protocol.task import Task


class Handle(Protocol):
    """A network of the run: the student, a teacher or a further student. ``handle(x) -> Out``.

    Attributes:
        name: ``"student"``, ``"teacher0"``, or the name given to ``run.new_student``.
        net: the module itself, ``x -> logits``. It takes batches as they come: that of a teacher whose weights
            expect another mean and std than the data set's converts its input (when it is called as a whole,
            not when its parts are).
        classifier: the module that makes the logits of the pooled feature (of a network with several heads the
            first), or None where the architecture names none. It belongs to `net`: copy it, or freeze it, but
            never put a teacher's into an optimizer.
        num_features: width of the pooled feature, 0 where there is none.
        stages: ``feature_info`` indices of the resolution stages, without the stem; for isotropic models four
            evenly spaced blocks.
    """

    name: str
    net: nn.Module
    classifier: nn.Module | None
    num_features: int
    stages: tuple[int, ...]

    def __call__(self, x: Tensor, taps: Sequence[Tap] | None = None) -> Out:
        """Forward (B, 3, H, W); `taps` limits the features to these (default: all that were wanted)."""
        ...

    def want(self, *taps: Tap) -> None:
        """Ask for further features; in ``setup`` only. Raises NotApplicable when one cannot be resolved."""
        ...

    def shape(self, tap: Tap) -> tuple[int, ...]:
        """Shape of a feature for a batch of 2."""
        ...

    def has_activation(self, tap: Tap) -> bool:
        """Whether a ``pre`` value of the tapped stage exists (an activation follows it)."""
        ...

    def bn_before(self, tap: Tap) -> nn.Module | None:
        """The BatchNorm that feeds the stage-end activation (main branch), or None."""
        ...

    def batchnorms(self) -> list[tuple[str, nn.Module]]:
        """All BatchNorm layers with their paths, in order of registration."""
        ...

    def blocks(self) -> list[tuple[str, nn.Module]]:
        """Residual blocks (modules with a ``drop_path`` slot) with their paths."""
        ...

    def aux_hook(self, module: nn.Module, fn: Callable[..., Any], *, pre: bool = False) -> None:
        """Install a forward (pre-)hook that is removed at the end of the run."""
        ...

    def calibrate(self, fn: Callable[[Out], None], n_batches: int) -> None:
        """Call `fn` with the outputs of `n_batches` training batches, without gradient."""
        ...

    def from_trunk(self, feat: Tensor) -> Out:
        """Only for a student made with ``share="all_but_last"``: forward its own last stage and head."""
        ...


class Run(Protocol):
    """The context of one cell."""

    student: Handle
    teachers: Sequence[Handle]
    route: Sequence[Callable[[], Mapping[str, Tensor]]]
    data: DataInfo
    task: Task
    device: torch.device
    rng: torch.Generator
    workdir: Path
    probing: bool
    epoch: int
    phase_epochs: int
    steps_per_epoch: int
    global_step: int

    @property
    def teacher(self) -> Handle:
        """The first teacher."""
        ...

    @property
    def frac(self) -> float:
        """Progress in the phase, 0 at its first step, below 1 at its last."""
        ...

    def new_student(
        self, name: str, *, share: Literal["none", "all_but_last"] = "none", seed: int = 0
    ) -> Handle:
        """Make a further student (same architecture, other weights); in ``setup`` only.

        With ``share="all_but_last"`` it owns only the last stage and the head and reads the student's feature
        ``handle.trunk_tap``; raises NotApplicable where the architecture cannot be split.
        """
        ...

    def new_assistant(self, name: str = "assistant", *, seed: int = 0) -> Handle:
        """Make a network of the pair's assistant architecture with new weights, to be trained; in ``setup`` only.

        Raises NotApplicable where the pair has no assistant; with ``Needs(assistants=1)`` it always has one.
        """
        ...

    def teach(
        self,
        handle: Handle,
        x: Tensor,
        *,
        grad: bool = False,
        bn: Literal["eval", "batch"] | None = None,
        taps: Sequence[Tap] | None = None,
        head: bool | None = None,
    ) -> Out:
        """Forward a teacher; x: (B, 3, H, W), normalised as the data set's.

        Without a gradient and with running statistics it is a copy of the teacher that runs, in which BatchNorm
        is folded into the convolutions: equal up to rounding. A method that writes into a teacher does so by
        ``load_state_dict`` or under ``torch.no_grad()``: what is written through ``.data`` is seen an epoch later.

        Args:
            grad: lets a gradient flow to `x`. Parameters of teachers never get one.
            bn: whether BatchNorm uses running or batch statistics; None: as the phase says. The running ones
                never change.
            taps: limits the features to these; None: all that were wanted.
            head: false stops the forward at the last tap, so that neither logits nor pooled features are there;
                None: as ``Needs.reads`` says.
        """
        ...

    def optimize(self, loss: Tensor, *names: str, retain_graph: bool = False) -> None:
        """zero_grad, backward, clip and step of the named optimizers (default: all of the phase)."""
        ...

    def amp(self) -> AbstractContextManager[Any]:
        """Autocast as the recipe says."""
        ...

    def fp32(self) -> AbstractContextManager[Any]:
        """Autocast off, for losses."""
        ...

    def labels(self) -> Tensor | None:
        """Return the labels of all training images by ``batch.index``, (N,) int64 on the device.

        N is the number of images that are trained on: after the data set's limit and without the held-out
        validation images, so it may be less than ``data.n_train``. None where the data has no labels. While
        probing no labels are read: one zero, (1,).

        Raises:
            RuntimeError: the method's ``needs`` say that it uses no labels, or no data.
        """
        ...

    def log(self, values: Mapping[str, Any]) -> None:
        """Add scalars (tensors stay on the device) to the epoch's means."""
        ...

    def split(self, name: str) -> Iterable[Any]:
        """Evaluation batches of ``val`` or ``test``; for methods that choose by validation (never ``test``)."""
        ...
