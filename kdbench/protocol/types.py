"""Plain types that methods, tasks and the engine exchange. No torch at import."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdbench.protocol.run import Run


class NotApplicable(Exception):
    """Raised in ``Method.setup`` (or by a handle) when the cell cannot be: the message is the reason shown."""


@dataclass(frozen=True)
class Tap:
    """A feature that a method asks for; hashable, the key of ``Out.feats``.

    Attributes:
        at: index into the model's ``feature_info`` (0 is the stem where there is one, -1 the last stage), or a
            module path such as ``"layer2.0.conv1"``.
        when: ``"post"``, the stage's output; ``"pre"``, the value that enters the activation which ends the
            stage (for pre-activation nets: the next norm's output before its activation; where a stage has no
            such activation: its output).
        fmt: ``"nchw"`` (B, C, H, W; tokens lose their prefix and are folded), ``"tokens"`` (B, N, C) or
            ``"raw"`` (as the module gives it).
    """

    at: int | str = -1
    when: Literal["post", "pre"] = "post"
    fmt: Literal["nchw", "tokens", "raw"] = "nchw"


class NotAsked(KeyError):
    """A feature is read that nobody asked for."""

    def __str__(self) -> str:  # KeyError shows the repr of its argument
        return str(self.args[0])


class Feats(dict[Tap, "Tensor"]):
    """Features by tap; `owner` is how a method reaches the handle, for the error of a missing one."""

    owner = "the handle"

    def __missing__(self, tap: Any) -> Tensor:
        asked = ", ".join(map(repr, self)) or "nothing"
        raise NotAsked(
            f"{tap!r} was not asked for: call {self.owner}.want(tap) in setup(); asked for: {asked}"
        )


class _NoHead:
    """Stands for logits that were not computed; using it says why."""

    def _refuse(self) -> Any:
        raise NotAsked(
            "the teacher's logits were not computed: the method declares reads='taps'; "
            "leave that out to use them"
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        NO_HEAD._refuse()

    def _operator(self, *other: Any) -> Any:
        self._refuse()

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _operator
    __getitem__ = __neg__ = __matmul__ = __rmatmul__ = _operator


NO_HEAD: Any = _NoHead()


@dataclass
class Out:
    """Result of one forward pass of a handle.

    Attributes:
        logits: (B, K). With ``Needs(reads="taps")`` those of a teacher are not there; use raises
            :class:`NotAsked`.
        feats: requested taps; each has its gradient path unless the pass was without gradient. A handle gives
            :class:`Feats`, which raises :class:`NotAsked` for another tap.
        pooled: (B, D), the input of the classifier, or None where the model has no such tensor.
    """

    logits: Tensor
    feats: dict[Tap, Tensor] = field(default_factory=dict)
    pooled: Tensor | None = None


@dataclass
class Batch:
    """One training batch on the device.

    Attributes:
        x: (B, 3, H, W), normalised.
        y: (B,) int64, or None for unlabelled data.
        index: (B,) int64, number of each sample in the training split (stable over epochs and methods).
        views: further views of the same images, in the order of ``Needs.views``.
        extra: streams of other tasks.
        origin: of which images and views this is made; the engine's own, of no account to methods.
    """

    x: Tensor
    y: Tensor | None = None
    index: Tensor | None = None
    views: tuple[Tensor, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    origin: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Opt:
    """A named optimizer of a phase.

    Attributes:
        params: modules or parameters.
        kind: ``"recipe"`` (the recipe's optimizer) or a name of timm's optimizer factory, e.g. ``"adam"``.
        kw: overrides, e.g. ``{"lr": 1e-3}``. The recipe's values hold for ``kind="recipe"`` otherwise.
        schedule: ``"recipe"`` (the recipe's schedule, stretched over the phase) or ``"constant"``.
    """

    params: Sequence[Any]
    kind: str = "recipe"
    kw: Mapping[str, Any] = field(default_factory=dict)
    schedule: Literal["recipe", "constant"] = "recipe"


@dataclass(frozen=True)
class Phase:
    """One stage of training.

    Attributes:
        name: unique in the method.
        budget: share of the recipe's epochs (float) or a number of epochs (int).
        optimizers: named optimizers; None means ``{"main": student + the method's own modules}``.
        step: replaces ``Method.step`` in this phase: ``step(batch, run) -> {name: scalar tensor}``.
        source: ``"train"``, ``"train_unlabelled"``, a number of ticks per epoch without data (``batch`` is
            None), or ``callable(run) -> iterable of Batch``, called once per epoch.
        teacher_bn: ``"eval"`` or ``"batch"`` (BatchNorm layers of teachers use batch statistics; their
            running statistics never change).
        evaluate: whether validation and test accuracy are measured during the phase.
    """

    name: str = "main"
    budget: float | int = 1.0
    optimizers: Mapping[str, Opt] | None = None
    step: Callable[[Batch | None, Run], Mapping[str, Tensor]] | None = None
    source: str | int | Callable[[Run], Iterable[Batch]] = "train"
    teacher_bn: Literal["eval", "batch"] = "eval"
    evaluate: bool = True


@dataclass(frozen=True)
class Golden:
    """A value that a method's own code must give for inputs small enough to work out by hand.

    Attributes:
        name: what is computed, on which inputs.
        value: computes it with the method's code: a float or a tensor.
        expected: the value worked out beforehand; nested sequences for a tensor.
        source: where `expected` comes from: an equation, or how it was worked out.
        rtol: largest relative difference.
    """

    name: str
    value: Callable[[], Any]
    expected: Any
    source: str
    rtol: float = 1e-5


@dataclass(frozen=True)
class Metric:
    """A metric that a task declares. ``higher_is_better=None`` marks a descriptive one."""

    name: str
    higher_is_better: bool | None
    primary: bool = False
    unit: str = ""


@dataclass(frozen=True)
class Budget:
    """Training budget in the task's unit."""

    unit: Literal["epochs", "steps", "samples", "env_steps"]
    amount: int


@dataclass(frozen=True)
class Throughput:
    """How a deployable of the task is timed: `make_inputs(batch_size)` gives the arguments of one call."""

    unit: str
    make_inputs: Callable[[int], tuple[Tensor, ...]]


@dataclass(frozen=True)
class DataInfo:
    """What a data set is, without its pixels.

    Attributes:
        name: label in tables.
        num_classes: K.
        class_names: in label order.
        image_size: side of the square input in pixels.
        mean, std: per channel, of pixels scaled to [0, 1].
        n_train, n_val, n_test: images per split; n_val = 0 when the harness must hold one out.
        revision: changes whenever content or splits change; enters the cell id.
        flip: whether a horizontal flip keeps the class.
    """

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    n_train: int
    n_test: int
    revision: str
    n_val: int = 0
    flip: bool = True
    in_chans: int = 3

    @property
    def bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Lowest and highest normalised value per channel: ``(0 - mean) / std`` and ``(1 - mean) / std``."""
        low = tuple((0 - m) / s for m, s in zip(self.mean, self.std, strict=True))
        high = tuple((1 - m) / s for m, s in zip(self.mean, self.std, strict=True))
        return low, high


class Stream(Protocol):
    """Training batches: a pure function of (data set, seed, epoch), so any step can be replayed."""

    def __len__(self) -> int:
        """Steps per epoch."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of one epoch (counted from 0), from step `start` on."""
        ...


@dataclass
class TaskData:
    """What a task sets up: training streams by name, evaluation splits (re-iterable), and facts.

    Attributes:
        labels: (N,) int64, the label of each sample of the ``train`` stream by its ``batch.index``, on any
            device; None where it has no labels.
    """

    streams: Mapping[str, Stream]
    splits: Mapping[str, Iterable[Batch]]
    info: DataInfo
    extra: Mapping[str, Any] = field(default_factory=dict)
    labels: Tensor | None = None


class TaskContext(Protocol):
    """What the engine offers a task in ``setup``."""

    info: DataInfo
    batch_size: int
    device: Any
    label_smoothing: float

    def image_streams(self) -> Mapping[str, Stream]:
        """``train`` and ``train_unlabelled`` streams of augmented images."""
        ...

    def image_split(self, name: str) -> Iterable[Batch]:
        """Evaluation batches of ``val`` or ``test``, in order, without augmentation."""
        ...

    def train_labels(self) -> Tensor:
        """(N,) int64 on the CPU, labels of the images of ``train`` by ``batch.index``."""
        ...


Build = Callable[..., "nn.Module"]
