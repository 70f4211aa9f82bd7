"""The conformance suite: what every method must do right, found out in seconds on the CPU."""

from __future__ import annotations

import copy
import os
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.engine.context import CellRun
from kdbench.engine.evaluation import deployables
from kdbench.engine.loop import Diverged, Interrupted
from kdbench.engine.phases import own_parameters
from kdbench.errors import KdbenchError
from kdbench.protocol.method import Method
from kdbench.protocol.types import NotApplicable
from kdbench.registry import Registry
from kdbench.testing.bench import Bench


@dataclass(frozen=True)
class Check:
    """One verdict: `seen` says what was observed, `fix` how to mend it."""

    name: str
    passed: bool
    seen: str = ""
    fix: str = ""


@dataclass
class Report:
    """All verdicts on one method."""

    method: str
    checks: list[Check] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return all(c.passed for c in self.checks)

    def failures(self) -> list[str]:
        """Return one line per check that failed."""
        return [f"{c.name}: {c.seen}. {c.fix}" for c in self.checks if not c.passed]


class _Failed(Exception):
    """What a check saw."""


def check_method(
    method: str | type[Method],
    *,
    params: Mapping[str, Any] | None = None,
    teacher: str = "timm:test_resnet",
    student: str = "timm:test_resnet",
    registry: Registry | None = None,
) -> Report:
    """Run every check on a method.

    Args:
        method: a registered name, or a subclass of ``Method``.
        params: hyper-parameters (default: the method's own).
        teacher, student: architectures to try it on.

    Returns:
        A report; ``report.passed`` is true when every check passed.

    Raises:
        KdbenchError: for an unknown name, bad hyper-parameters, or a pair that the method refuses.
    """
    registry = registry or Registry.load()
    cls = registry.get("methods", method).load() if isinstance(method, str) else method
    bench = Bench(registry, cls, params or {}, teacher=teacher, student=student)
    report = Report(method if isinstance(method, str) else cls.__name__)
    try:
        bench.method(bench.run()).to("cpu")
    except NotApplicable as e:
        raise KdbenchError(f"method '{report.method}' does not apply to {teacher} -> {student}: {e}") from e
    except Exception as e:
        seen = f"setup() {_raised(e)}"
        report.checks.append(Check("setup", False, seen, "setup() must work before any data is seen"))
        return report
    crashed = False
    for name, check, fix in CHECKS:
        # when nothing trains the other checks would only say the same; this one may know why
        if crashed and check is not _every_parameter_learns:
            continue
        try:
            seen = check(bench)
            report.checks.append(Check(name, True, seen or ""))
        except _Failed as e:
            report.checks.append(Check(name, False, str(e), fix))
        except Exception as e:
            first = check is _finite and not isinstance(e, Diverged)
            report.checks.append(Check(name, False, _raised(e), "Mend the error." if first else fix))
            crashed = crashed or first
    if isinstance(method, str):
        report.checks.append(_entry_agrees(registry, method, bench))
    return report


def _raised(e: Exception) -> str:
    """Return what was raised, and the line of code outside kdbench and torch that raised it."""
    frames = traceback.extract_tb(e.__traceback__)
    own = [
        f
        for f in frames
        if "site-packages" not in f.filename and f"{os.sep}kdbench{os.sep}" not in f.filename
    ]
    where = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    return f"raised {type(e).__name__}: {e}"[:300] + where


def _train(bench: Bench, **options: Any) -> tuple[CellRun, Method, Any]:
    run = bench.run(**options)
    method = bench.method(run)
    with tempfile.TemporaryDirectory() as folder:
        at = bench.loop(run, method, Path(folder)).train()
    return run, method, at


def _finite(bench: Bench) -> str:
    _, _, at = _train(bench)
    names = sorted({k for row in at.rows for k in row["train"]})
    if "loss" not in names:
        raise _Failed("a step returned no loss")
    return ", ".join(f"{k} {at.rows[-1]['train'][k]:.4g}" for k in names if k in at.rows[-1]["train"])


def _bf16(bench: Bench) -> str:
    _train(bench, precision="bf16")
    return "finite under bfloat16 autocast"


def _odd_batches(bench: Bench) -> str:
    small = max(2, bench.needs.min_batch)
    _train(bench, sizes=(small + 3, small))
    return f"batches of {small + 3} and {small}"


def _teacher_untouched(bench: Bench) -> str:
    run = bench.run()
    method = bench.method(run)
    nets = [t.net for t in run.teachers]
    before = [copy.deepcopy(net.state_dict()) for net in nets]
    with tempfile.TemporaryDirectory() as folder:
        bench.loop(run, method, Path(folder)).train()
    for net, old in zip(nets, before, strict=True):
        moved = [k for k, v in net.state_dict().items() if not torch.equal(v, old[k])]
        if moved and not bench.needs.route:
            raise _Failed(f"'{moved[0]}' of the teacher changed")
        marked = [k for k, p in net.named_parameters() if p.requires_grad or p.grad is not None]
        if marked:
            raise _Failed(f"'{marked[0]}' of the teacher has, or asks for, a gradient")
    return f"{len(nets)} teacher(s), parameters and buffers equal bit for bit"


def _every_parameter_learns(bench: Bench) -> str:
    run = bench.run()
    method = bench.method(run)
    seen: set[int] = set()
    reached: set[int] = set()
    original = run.optimize

    def spy(loss: Tensor, *names: str, **kw: Any) -> None:
        original(loss, *names, **kw)
        for driven in [run.optimizers[n] for n in (names or run.optimizers)]:
            seen.update(id(p) for p in driven.params)
            reached.update(
                id(p) for p in driven.params if p.grad is not None and bool(p.grad.abs().sum() > 0)
            )

    run.optimize = spy  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        bench.loop(run, method, Path(folder)).train()
    if not seen:
        raise _Failed("run.optimize() was never called")
    named = dict(method.named_parameters())
    own = {id(p) for p in own_parameters(method, run)}
    for name, p in named.items():
        if id(p) in own and id(p) not in seen:
            raise _Failed(f"'{name}' is in no phase's optimizer")
        if id(p) in own and id(p) not in reached:
            raise _Failed(f"'{name}' never received a gradient")
    student = [p for p in run.student.net.parameters() if id(p) in reached]
    if not student:
        raise _Failed("no parameter of the student received a gradient")
    return f"{len(own)} own parameters, {len(student)} of the student"


def _hidden_parameters(bench: Bench) -> str:
    method = bench.method(bench.run())
    known = {id(p) for p in method.parameters()} | {id(b) for b in method.buffers()}
    for name, value in vars(method).items():
        items = value if isinstance(value, (list, tuple)) else [value]
        for item in items:
            if isinstance(item, nn.Parameter) and id(item) not in known:
                raise _Failed(f"self.{name} holds a parameter that the module does not register")
            if isinstance(item, nn.Module) and item is not method and not isinstance(value, nn.Module):
                raise _Failed(f"self.{name} holds a module in a plain {type(value).__name__}")
    return "all registered"


def _no_hooks(bench: Bench) -> str:
    run = bench.run()
    method = bench.method(run)
    nets = [h.net for h in run.handles()]
    with tempfile.TemporaryDirectory() as folder:
        bench.loop(run, method, Path(folder)).train()
    run.close()
    for net in nets:
        for path, module in net.named_modules():
            if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
                raise _Failed(f"a hook is left on '{path or 'the network'}'")
    return "none left"


def _resumes(bench: Bench) -> str:
    straight, whole, _ = _train(bench)
    with tempfile.TemporaryDirectory() as folder:
        steps = 0

        def stop() -> bool:
            nonlocal steps
            steps += 1
            return steps == 3

        run = bench.run()
        try:
            bench.loop(run, bench.method(run), Path(folder), should_stop=stop).train()
            return "too few steps to cut"
        except Interrupted:
            pass
        run = bench.run()
        method = bench.method(run)
        bench.loop(run, method, Path(folder)).train()
    pairs = [(h.net.state_dict(), straight.students[n].net.state_dict()) for n, h in run.students.items()]
    pairs.append((method.state_dict(), whole.state_dict()))
    for mine, theirs in pairs:
        for key, value in mine.items():
            if not torch.equal(value, theirs[key]):
                raise _Failed(f"'{key}' differs after a cut and a resume")
    return "cut after 3 steps, resumed: equal bit for bit"


def _deploys_clean(bench: Bench) -> str:
    run, method, _ = _train(bench)
    own = {id(p) for p in own_parameters(method, run)}
    nets = deployables(method, run)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    for name, net in nets.items():
        inside = any(id(p) in own for p in net.parameters())
        if inside and not method.deploys_extra:
            raise _Failed(f"deployable '{name}' contains modules of the method")
        net.eval()
        with torch.no_grad():
            logits = net(x)
        if tuple(logits.shape) != (2, run.data.num_classes):
            raise _Failed(f"deployable '{name}' gives {tuple(logits.shape)} for 2 images")
        if not bool(torch.isfinite(logits).all()):
            raise _Failed(f"deployable '{name}' gives values that are not finite")
    return ", ".join(nets)


def _rng_left_alone(bench: Bench) -> str:
    """setup() runs under a seed of its own; what it must not do is reach into another's."""
    import random

    random.seed(5)
    before = random.getstate()
    run = bench.run()
    method = bench.method(run)
    seeds: list[int] = []
    original = torch.manual_seed
    torch.manual_seed = lambda seed: (seeds.append(seed), original(seed))[1]  # type: ignore[assignment]
    try:
        with tempfile.TemporaryDirectory() as folder:
            loop = bench.loop(run, method, Path(folder))
            seeds.clear()
            loop.train()
    finally:
        torch.manual_seed = original
    if seeds:
        raise _Failed(f"training calls torch.manual_seed({seeds[0]})")
    random.setstate(before)
    return "never reseeded"


def _entry_agrees(registry: Registry, name: str, bench: Bench) -> Check:
    entry = registry.get("methods", name).entry
    same = getattr(entry, "needs", None) == bench.cls.needs
    seen = "entry and class agree" if same else "MethodEntry.needs differs from the class's needs"
    return Check("needs", same, seen, "" if same else "Give the entry the class's needs.")


CHECKS: list[tuple[str, Callable[[Bench], str], str]] = [
    ("finite losses", _finite, "Return finite scalar losses from every step of every phase."),
    ("teacher untouched", _teacher_untouched, "Forward teachers through run.teach(), never change them."),
    (
        "parameters learn",
        _every_parameter_learns,
        "Make modules in setup(), list them in the phase's optimizers, and use them in the loss.",
    ),
    ("registered state", _hidden_parameters, "Use nn.ModuleList / register_buffer for lists of modules."),
    ("no hooks left", _no_hooks, "Ask for features by taps, or use handle.aux_hook()."),
    ("resume", _resumes, "Keep all state in parameters and buffers, draw from run.rng or torch's generator."),
    ("deploy", _deploys_clean, "Deploy the student alone, or declare deploys_extra = True."),
    ("odd batches", _odd_batches, "Work for any batch size, or declare Needs(min_batch=...)."),
    ("autocast", _bf16, "Compute losses in float32: `with run.fp32()` and `.float()` on features."),
    ("global RNG", _rng_left_alone, "Never call torch.manual_seed(); draw from run.rng."),
]
