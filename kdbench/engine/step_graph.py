"""A whole training step as one CUDA graph: ``recipe.compile: graph``, or ``auto`` where it is found to pay.

A graph repeats kernels and no Python, so it stands for a step only while Python would do the same: same shapes,
same epoch and learning rate, nothing read of where in the epoch the run is. What does that, draws from the run's
generator, waits for the device or keeps count in Python is not captured, and the record says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kdbench.protocol.types import Batch

#: Steps before a capture: allocations, the choice of kernels and the optimizers' first states happen in them.
WARM_UP = 3
#: Steps of each kind that ``auto`` times, and by how much the graph must be faster.
PROBED, GAIN = 10, 1.05
#: Captures of an epoch; a schedule that moves more often does not suit a graph.
CAPTURES = 3

Parts = Mapping[str, Tensor]


class NotCapturable(Exception):
    """A step that a graph cannot stand for; the text says why."""


class Backend(Protocol):
    """How steps become graphs. :class:`CudaGraphs` is the one; tests have another."""

    def warm(self, fn: Callable[[], Parts]) -> Parts:
        """Run `fn` where captures run too."""
        ...

    def capture(self, fn: Callable[[], Parts]) -> tuple[Callable[[], None], Parts]:
        """Record `fn`, which runs but computes nothing yet; returns how to replay it, and what it returned."""
        ...

    def wait(self) -> None:
        """Wait for the device."""
        ...


class CudaGraphs:
    """Graphs of a CUDA device, on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def warm(self, fn: Callable[[], Parts]) -> Parts:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            parts = fn()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return parts

    def capture(self, fn: Callable[[], Parts]) -> tuple[Callable[[], None], Parts]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            parts = fn()
        return graph.replay, parts

    def wait(self) -> None:
        torch.cuda.synchronize(self._device)


class _Still:
    """The run as a step sees it while it is captured: what changes from step to step is refused."""

    _MOVING = frozenset({"frac", "global_step", "step_in_epoch", "rng", "batch"})

    def __init__(self, run: Any, logged: list[Mapping[str, Any]]) -> None:
        object.__setattr__(self, "_run", run)
        object.__setattr__(self, "log", logged.append)

    def __getattr__(self, name: str) -> Any:
        if name in self._MOVING:
            raise NotCapturable(f"the step reads run.{name}")
        return getattr(self._run, name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise NotCapturable(f"the step writes run.{name}")


class StepGraph:
    """Runs the steps of one phase, as a graph where it can.

    Attributes:
        reason: why steps run one by one; None while they need not.
        compile_s: seconds that captures took.
    """

    def __init__(self, run: Any, method: nn.Module, step: Any, backend: Backend, *, probe: bool) -> None:
        self._run, self._method, self._step, self._backend = run, method, step, backend
        self._probe = probe
        self._key: tuple[Hashable, ...] | None = None
        self._inputs: Batch | None = None
        self._replay: Callable[[], None] | None = None
        self._parts: Parts = {}
        #: what the step logged when it was captured: its tensors are the graph's
        self._logged: list[Mapping[str, Any]] = []
        self._eager = 0
        self._captures = 0
        self._times: dict[str, list[float]] = {"eager": [], "graph": []}
        self.reason: str | None = self._impossible()
        self.compile_s = 0.0

    def __call__(self, batch: Batch | None) -> Parts:
        """Take a step. Its terms hold until the next one."""
        if self.reason is not None or batch is None:
            return self._step(batch, self._run)  # type: ignore[no-any-return]
        shapes = _shapes(batch)
        if self._inputs is not None and shapes != _shapes(self._inputs):
            return self._step(batch, self._run)  # type: ignore[no-any-return]
        # once an epoch in any case: hooks at its start may have changed what the graph has at hand
        rates = self._rates()
        if self._key != rates:
            self._captures = 0 if self._key is None or self._key[0] != rates[0] else self._captures
            self._key, self._replay = rates, None
        if self._replay is None:
            if self._eager < WARM_UP + (PROBED if self._probe else 0):
                return self._warm(batch)
            self._capture(batch)
            if self._replay is None:
                return self._step(batch, self._run)  # type: ignore[no-any-return]
        return self._again(batch)

    @property
    def captured(self) -> bool:
        """Whether steps are taken by a graph."""
        return self.reason is None and self._replay is not None

    def _impossible(self) -> str | None:
        run = self._run
        if run.precision.name == "fp16":
            return "the scaler of fp16 waits for the device in every step"
        if run.lookup is not None:
            return "teachers are read from a table or shared with other cells"
        for name, driven in run.optimizers.items():
            groups = driven.optimizer.param_groups
            if "capturable" in groups[0] and not groups[0]["capturable"]:
                return f"optimizer '{name}' counts its steps on the host"
        return None

    def _rates(self) -> tuple[Hashable, ...]:
        rates = tuple(
            tuple(v for v in group.values() if isinstance(v, (int, float)))
            for driven in self._run.optimizers.values()
            for group in driven.optimizer.param_groups
        )
        return self._run.epoch, rates

    def _warm(self, batch: Batch) -> Parts:
        timed = self._probe and self._eager >= WARM_UP
        began = self._now() if timed else 0.0
        parts = self._backend.warm(lambda: self._step(batch, self._run))
        if timed:
            self._times["eager"].append(self._now() - began)
        self._eager += 1
        return parts

    def _capture(self, batch: Batch) -> None:
        began, before = self._now(), _counts(self._method)
        self._captures += 1
        try:
            if self._captures > CAPTURES:
                raise NotCapturable("the learning rate changes too often")
            if self._inputs is None:
                self._inputs = replace(
                    batch,
                    **{k: _stack(batch, k, torch.clone) for k in ("x", "y", "index", "views")},
                    origin=None,
                )
            logged: list[Mapping[str, Any]] = []
            still: Any = _Still(self._run, logged)
            self._replay, self._parts = self._backend.capture(lambda: self._step(self._inputs, still))
            self._logged = list(logged)
            if _counts(self._method) != before:
                raise NotCapturable("the method keeps count in Python")
        except Exception as e:
            self._replay, self._inputs = None, None
            for module, values in before:
                vars(module).update(values)
            text = str(e) if isinstance(e, NotCapturable) else f"{type(e).__name__}: {e}"
            self.reason = " ".join(text.split())[:200]
        self.compile_s += self._now() - began

    def _again(self, batch: Batch) -> Parts:
        assert self._replay is not None
        assert self._inputs is not None
        timed = self._probe and len(self._times["graph"]) < PROBED
        began = self._now() if timed else 0.0
        for mine, given in zip(_tensors(self._inputs).values(), _tensors(batch).values(), strict=True):
            mine.copy_(given, non_blocking=True)
        self._replay()
        for values in self._logged:
            self._run.log(values)
        if timed:
            self._times["graph"].append(self._now() - began)
            if len(self._times["graph"]) == PROBED:
                self._judge()
        return self._parts

    def _judge(self) -> None:
        eager, graph = (sorted(self._times[k])[PROBED // 2] for k in ("eager", "graph"))
        if eager < GAIN * graph:
            self.reason = f"a graph does not pay ({1e3 * graph:.2f} ms a step, {1e3 * eager:.2f} ms without)"

    def _now(self) -> float:
        self._backend.wait()
        return time.perf_counter()


def _tensors(batch: Batch) -> dict[str, Tensor]:
    views = {f"view {i}": v for i, v in enumerate(batch.views)}
    named: dict[str, Any] = {"x": batch.x, "y": batch.y, "index": batch.index, **views}
    return {name: t for name, t in named.items() if t is not None}


def _shapes(batch: Batch) -> list[Hashable]:
    return [(name, tuple(t.shape), t.dtype) for name, t in _tensors(batch).items()]


def _stack(batch: Batch, name: str, fn: Callable[[Tensor], Tensor]) -> Any:
    value = getattr(batch, name)
    if isinstance(value, tuple):
        return tuple(fn(v) for v in value)
    return None if value is None else fn(value)


def _counts(method: nn.Module) -> list[tuple[nn.Module, dict[str, Any]]]:
    """Return what a method keeps in plain Python."""
    plain = (int, float, str, bool)
    return [(m, {k: v for k, v in vars(m).items() if isinstance(v, plain)}) for m in method.modules()]


def backend_of(device: torch.device) -> Backend | None:
    """Return what makes graphs of steps on a device, or None where nothing does."""
    return CudaGraphs(device) if device.type == "cuda" else None


def step_graph(run: Any, method: nn.Module, step: Any) -> StepGraph | None:
    """Return the graph for the steps of a phase, as the recipe says; None for steps one by one."""
    mode = run.recipe.compile
    backend = backend_of(run.device) if mode in ("graph", "auto") else None
    return None if backend is None else StepGraph(run, method, step, backend, probe=mode == "auto")
