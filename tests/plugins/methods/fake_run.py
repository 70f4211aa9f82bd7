"""A small run for unit tests of methods: three-stage networks, handles by hand, and a plain training loop."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.api import Batch, DataInfo, NotApplicable, Opt, Out, Tap
from kdbench.protocol.types import NO_HEAD

CLASSES, SIZE = 4, 16


class TinyNet(nn.Module):
    """Stem and three stages that end in BatchNorm (optional) and ReLU, then a linear head."""

    def __init__(
        self, widths: tuple[int, ...] = (4, 6, 8), *, bn: bool = True, strides: Any = (2, 2, 2)
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        blocks, c_in = [], widths[0]
        for width, stride in zip(widths, strides, strict=True):
            norm = nn.BatchNorm2d(width) if bn else nn.Identity()
            blocks.append(nn.Sequential(nn.Conv2d(c_in, width, 3, stride, 1), norm))
            c_in = width
        self.stages = nn.ModuleList(blocks)
        self.head = nn.Linear(c_in, CLASSES)

    def run_stages(self, x: Tensor, first: int = 0) -> tuple[Tensor, dict[tuple[int, str], Tensor]]:
        feats: dict[tuple[int, str], Tensor] = {} if first else {(0, "post"): x}
        for i, stage in enumerate(self.stages[first:], first + 1):
            pre = stage(x)
            x = pre.relu()
            feats[i, "pre"], feats[i, "post"] = pre, x
        return self.head(x.mean((2, 3))), feats

    def forward(self, x: Tensor) -> Tensor:
        return self.run_stages(self.stem(x))[0]


class FakeHandle:
    """A handle on a TinyNet."""

    def __init__(self, name: str, net: TinyNet) -> None:
        self.name, self.net = name, net
        self.stages: tuple[int, ...] = tuple(range(1, len(net.stages) + 1))
        self.num_features = net.head.in_features
        self.wanted: list[Tap] = []
        self.batches: list[Tensor] = []

    def __call__(self, x: Tensor, taps: Any = None) -> Out:
        logits, feats = self.net.run_stages(self.net.stem(x))
        return self._out(logits, feats, self.wanted if taps is None else taps)

    def _out(self, logits: Tensor, feats: dict[tuple[int, str], Tensor], taps: Any) -> Out:
        return Out(logits, {t: feats[self._key(t)] for t in taps if self._key(t) in feats})

    def _key(self, tap: Tap) -> tuple[int, str]:
        at = tap.at if tap.at >= 0 else len(self.net.stages) + 1 + tap.at
        return at, tap.when

    def want(self, *taps: Tap) -> None:
        self.wanted += [t for t in taps if t not in self.wanted]

    def shape(self, tap: Tap) -> tuple[int, ...]:
        with torch.no_grad():
            training = self.net.training
            out = self.__class__.__call__(self.eval(), torch.zeros(2, 3, SIZE, SIZE), [tap])
            self.net.train(training)
        return tuple(out.feats[tap].shape)

    def eval(self) -> FakeHandle:
        self.net.eval()
        return self

    def bn_before(self, tap: Tap) -> nn.Module | None:
        norm = self.net.stages[self._key(tap)[0] - 1][1]
        return norm if isinstance(norm, nn.BatchNorm2d) else None

    def calibrate(self, fn: Any, n_batches: int) -> None:
        with torch.no_grad():
            for x in self.batches[:n_batches]:
                fn(self(x))


class FakeBranch(FakeHandle):
    """A further student on the trunk of another."""

    def __init__(self, name: str, net: TinyNet, student: FakeHandle) -> None:
        super().__init__(name, net)
        net.stem = student.net.stem
        for i in range(len(net.stages) - 1):
            net.stages[i] = student.net.stages[i]
        self.trunk_tap = Tap(len(net.stages) - 1, fmt="raw")

    def from_trunk(self, feat: Tensor) -> Out:
        logits, feats = self.net.run_stages(feat, len(self.net.stages) - 1)
        return self._out(logits, feats, self.wanted)


class FakeTask:
    """Classification."""

    kind = "categorical"

    def loss(self, out: Out, batch: Batch) -> Tensor:
        return F.cross_entropy(out.logits.float(), batch.y)

    def divergence(self, student: Out, teacher: Out, temperature: float = 1.0) -> Tensor:
        log_s = (student.logits / temperature).log_softmax(1)
        p_t = (teacher.logits / temperature).softmax(1)
        return temperature**2 * (p_t * (p_t.log() - log_s)).sum(1).mean()


class FakeRun:
    """A run on the CPU without an engine."""

    def __init__(
        self, student: TinyNet, *teachers: TinyNet, can_share: bool = True, amp: bool = False
    ) -> None:
        self.student = FakeHandle("student", student)
        self.teachers = [
            FakeHandle(f"teacher{i}", t.eval().requires_grad_(False)) for i, t in enumerate(teachers)
        ]
        self.students = {"student": self.student}
        self.route: list[Any] = []
        stats = (0.5, 0.5, 0.5)
        self.data = DataInfo("fake", CLASSES, tuple("abcd"), SIZE, stats, stats, 32, 8, "r1")
        self.task: Any = FakeTask()
        self.device, self.rng = torch.device("cpu"), torch.Generator().manual_seed(0)
        self.probing = False
        self.epoch, self.phase_epochs, self.steps_per_epoch, self.frac = 0, 1, 1, 0.0
        self.teacher_bn = "eval"
        self.logged: list[dict[str, Any]] = []
        self.stepped: list[tuple[str, ...]] = []
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self._can_share, self._amp = can_share, amp

    @property
    def teacher(self) -> FakeHandle:
        return self.teachers[0]

    def new_student(self, name: str, *, share: str = "none", seed: int = 0) -> FakeHandle:
        if share != "none" and not self._can_share:
            raise NotApplicable("the architecture cannot be split")
        with torch.random.fork_rng():
            torch.manual_seed(1000 + seed)
            net = TinyNet(tuple(s[0].out_channels for s in self.student.net.stages))
        handle = FakeHandle(name, net) if share == "none" else FakeBranch(name, net, self.student)
        self.students[name] = handle
        return handle

    def new_assistant(self, name: str = "assistant", *, seed: int = 0) -> FakeHandle:
        """A network that is neither the student's nor the teacher's size."""
        with torch.random.fork_rng():
            torch.manual_seed(2000 + seed)
            self.students[name] = FakeHandle(name, TinyNet((5, 7, 9)))
        return self.students[name]

    def teach(
        self,
        handle: FakeHandle,
        x: Tensor,
        *,
        grad: bool = False,
        bn: str | None = None,
        head: bool | None = None,
    ) -> Out:
        out = self._teach(handle, x, grad, bn)
        return Out(NO_HEAD, out.feats) if head is False else out

    def _teach(self, handle: FakeHandle, x: Tensor, grad: bool, bn: str | None) -> Out:
        with nullcontext() if grad else torch.no_grad():
            if (bn or self.teacher_bn) == "eval":
                return handle(x)
            norms = [m for m in handle.net.modules() if isinstance(m, nn.BatchNorm2d)]
            for m in norms:
                m.training, m.track_running_stats = True, False
            out = handle(x)
            for m in norms:
                m.training, m.track_running_stats = False, True
            return out

    def optimize(self, loss: Tensor, *names: str, retain_graph: bool = False) -> None:
        chosen = names or tuple(self.optimizers)
        self.stepped.append(chosen)
        for name in chosen:
            self.optimizers[name].zero_grad()
        loss.backward()
        for name in chosen:
            self.optimizers[name].step()

    def amp(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16) if self._amp else nullcontext()

    def fp32(self) -> Any:
        return torch.autocast("cpu", enabled=False)

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)


def batch(n: int = 8, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, SIZE, SIZE, generator=generator)
    return Batch(x, torch.randint(CLASSES, (n,), generator=generator))


def net(seed: int, **kw: Any) -> TinyNet:
    """A TinyNet with weights of its own and BatchNorm statistics that are not the initial ones."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = TinyNet(**kw)
        for m in made.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_(0, 0.1)
                m.bias.data.normal_(0, 0.1)
    return made


def start(method: Any, run: FakeRun) -> list[Any]:
    """Set up and return the phases."""
    for handle in run.teachers:
        handle.want(*method.taps.get("teacher", ()))
    run.student.want(*method.taps.get("student", ()))
    torch.manual_seed(0)
    method.setup(run)
    return list(method.phases(run))


def train_phase(
    method: Any, phase: Any, run: FakeRun, *, steps: int = 2, lr: float = 0.01
) -> list[dict[str, float]]:
    """Train one phase for `steps` steps; return the losses of each."""
    own = [p for p in method.parameters() if p.requires_grad]
    named = phase.optimizers or {"main": Opt((run.student.net, *own))}
    run.optimizers = {}
    for name, opt in named.items():
        params: dict[int, nn.Parameter] = {}
        for item in opt.params:
            for p in item.parameters() if isinstance(item, nn.Module) else [item]:
                params[id(p)] = p
        kw = {k: v for k, v in opt.kw.items() if k in ("lr", "weight_decay")}
        kind = torch.optim.Adam if opt.kind == "adam" else torch.optim.SGD
        run.optimizers[name] = kind(params.values(), **{"lr": lr, **kw})
    run.teacher_bn = phase.teacher_bn
    method.on_phase_start(phase, run)
    for handle in run.students.values():
        handle.net.train()
    method.train()
    method.on_epoch_start(run)
    out = []
    for i in range(steps):
        given = None if isinstance(phase.source, int) else batch(8 - i, seed=i)
        parts = (phase.step or method.step)(given, run)
        out.append({k: float(v.detach()) for k, v in parts.items()})
    return out


def copy_state(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def same_state(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def pair_of_logits(dtype: torch.dtype = torch.float64) -> SimpleNamespace:
    """The logits of the golden values."""
    return SimpleNamespace(
        s=torch.tensor([[1, 2, 0], [0, 1, 3]], dtype=dtype),
        t=torch.tensor([[2, 1, 0], [1, 0, 4]], dtype=dtype),
        y=torch.tensor([0, 2]),
    )
