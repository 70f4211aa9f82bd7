"""Steps as graphs, on a machine without a GPU: when one stands for steps, when not, and what is said.

`Recorded` plays the device: a capture runs the step's Python and leaves nothing computed; a replay computes it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import Net, make_run
from torch import Tensor

from kdbench.engine import step_graph
from kdbench.engine.build import prepare_method
from kdbench.engine.evaluation import evaluate_all
from kdbench.engine.loop import Loop
from kdbench.engine.probe import check_compile
from kdbench.engine.seeds import seed_everything
from kdbench.engine.step_graph import PROBED, StepGraph
from kdbench_methods.at import AT
from kdbench_methods.ctkd import CTKD
from kdbench_methods.kd import KD


class Quiet(Net):
    """Without dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = torch.nn.Identity()


class Recorded:
    """Captures for a run on the CPU."""

    def __init__(self, run: Any, method: Any, seconds: Mapping[str, float] | None = None) -> None:
        self.run, self.method = run, method
        self.captures = self.replays = 0

    def warm(self, fn: Any) -> Any:
        return fn()

    def capture(self, fn: Any) -> Any:
        self.captures += 1
        nets = [self.run.student.net, self.method]
        kept = [copy.deepcopy(n.state_dict()) for n in nets]
        states = {k: copy.deepcopy(d.optimizer.state_dict()) for k, d in self.run.optimizers.items()}
        try:
            parts = {k: v.detach().clone() for k, v in fn().items()}
        finally:
            for net, state in zip(nets, kept, strict=True):
                net.load_state_dict(state)
            for name, state in states.items():
                self.run.optimizers[name].load(state)

        def replay() -> None:
            self.replays += 1
            for name, value in fn().items():
                parts[name].copy_(value.detach())

        return replay, parts

    def wait(self) -> None:
        """Nothing runs on its own."""


def trained(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cls: type = KD, mode: str = "graph", **more: Any
) -> tuple[dict[str, Tensor], Any, Recorded, Any]:
    folder.mkdir(exist_ok=True)
    recipe = {"schedule": {"name": "constant"}, "epochs": 2, "sizes": (6,) * 8 + (5,), **more}
    run = make_run(folder, net=Quiet, compile=mode, **recipe)
    method = prepare_method(cls, cls.Params(), run)
    device = Recorded(run, method)
    monkeypatch.setattr(step_graph, "backend_of", lambda _: device)
    seed_everything(1, deterministic=False)
    at = Loop(run, method, folder, evaluate=lambda: evaluate_all(method, run)).train()
    return {**run.student.net.state_dict(), **method.state_dict()}, run, device, at


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.mark.parametrize("cls", [KD, AT, CTKD])
def test_a_captured_cell_trains_to_the_same_weights(tmp_path: Path, monkeypatch: Any, cls: type) -> None:
    plain, _, _, rows = trained(tmp_path / "plain", monkeypatch, cls, "none")
    other, run, device, at = trained(tmp_path / "graph", monkeypatch, cls)
    assert equal(plain, other)
    assert run.compiled == "graph"
    assert run.notes() == []
    # three steps of the first epoch go before, and the smaller last batch of each goes alone
    assert device.replays == (8 - step_graph.WARM_UP) + 8
    assert device.captures == 2
    for mine, theirs in zip(at.rows, rows.rows, strict=True):
        assert mine["train"].keys() == theirs["train"].keys()  # what a method logs is there, too
        assert mine["train"]["loss"] == theirs["train"]["loss"]


def test_a_rate_that_changes_is_captured_anew(tmp_path: Path, monkeypatch: Any) -> None:
    schedule = {"schedule": {"name": "multistep", "milestones": [1]}}
    plain, *_ = trained(tmp_path / "plain", monkeypatch, mode="none", **schedule)
    other, run, device, _ = trained(tmp_path / "graph", monkeypatch, **schedule)
    assert equal(plain, other)
    assert device.captures == 2
    assert run.notes() == []


def test_a_rate_that_moves_every_step_is_left_alone(tmp_path: Path, monkeypatch: Any) -> None:
    schedule = {"schedule": {"name": "cosine", "per": "step"}}
    plain, *_ = trained(tmp_path / "plain", monkeypatch, mode="none", **schedule)
    other, run, _, _ = trained(tmp_path / "graph", monkeypatch, **schedule)
    assert equal(plain, other)
    assert run.notes() == ["steps were not captured as a graph: the learning rate changes too often"]
    assert run.compiled == "none"


class Counting(KD):
    """Keeps count in Python."""

    steps = 0

    def loss(self, S: Any, T: Any, batch: Any, run: Any) -> Any:
        self.steps = self.steps + 1
        return {k: v * (1 + 0.1 * self.steps) for k, v in super().loss(S, T, batch, run).items()}


class Ramped(KD):
    """Its weight moves within an epoch."""

    def loss(self, S: Any, T: Any, batch: Any, run: Any) -> Any:
        return {k: v * (1 + run.frac) for k, v in super().loss(S, T, batch, run).items()}


class Failing(KD):
    """Fails under capture only, as code does that waits for the device."""

    def loss(self, S: Any, T: Any, batch: Any, run: Any) -> Any:
        if type(run).__name__ == "_Still":
            raise RuntimeError("operation not permitted when stream is capturing")
        return super().loss(S, T, batch, run)


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (Counting, "the method keeps count in Python"),
        (Ramped, "the step reads run.frac"),
        (Failing, "RuntimeError: operation not permitted when stream is capturing"),
    ],
)
def test_what_a_graph_cannot_stand_for_is_trained_as_ever(
    tmp_path: Path, monkeypatch: Any, cls: type, reason: str
) -> None:
    plain, *_ = trained(tmp_path / "plain", monkeypatch, cls, "none")
    other, run, device, _ = trained(tmp_path / "graph", monkeypatch, cls)
    assert equal(plain, other)
    assert run.compiled == "none"
    assert [reason in note for note in run.notes()] == [True]
    assert device.replays == 0


class Clocked(Recorded):
    """Time goes by in replays and steps as a test says."""

    def __init__(self, *args: Any, eager: float, graph: float) -> None:
        super().__init__(*args)
        self.cost, self.now = {"eager": eager, "graph": graph}, 0.0

    def warm(self, fn: Any) -> Any:
        self.now += self.cost["eager"]
        return fn()

    def capture(self, fn: Any) -> Any:
        replay, parts = super().capture(fn)

        def slow() -> None:
            self.now += self.cost["graph"]
            replay()

        return slow, parts


@pytest.mark.parametrize(("graph", "kept"), [(0.010, True), (0.0199, False), (0.03, False)])
def test_auto_keeps_the_graph_only_where_it_is_faster(
    tmp_path: Path, monkeypatch: Any, graph: float, kept: bool
) -> None:
    run = make_run(tmp_path, net=Quiet, compile="auto", sizes=(6,) * 40, schedule={"name": "constant"})
    method = prepare_method(KD, KD.Params(), run)
    device = Clocked(run, method, eager=0.02, graph=graph)
    monkeypatch.setattr(step_graph, "backend_of", lambda _: device)
    monkeypatch.setattr(StepGraph, "_now", lambda self: device.now)
    Loop(run, method, tmp_path, evaluate=lambda: evaluate_all(method, run)).train()
    assert run.compiled == ("graph" if kept else "none")
    assert any("does not pay" in note for note in run.notes()) != kept
    assert device.replays == PROBED if not kept else device.replays > PROBED


def test_a_graph_needs_a_gpu() -> None:
    assert step_graph.backend_of(torch.device("cpu")) is None
    assert "needs a CUDA device" in (check_compile("cpu", "graph") or "")
    assert check_compile("cpu", "auto") is None
    assert check_compile("cuda", "graph") is None
