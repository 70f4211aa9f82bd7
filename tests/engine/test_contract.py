"""What a method hands to the engine in a real run: errors name the function, the term and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from kdbench.engine.contract import ContractError
from kdbench.engine.handle import NetHandle
from kdbench.engine.progress import Interrupted
from kdbench.protocol.method import Method
from kdbench.protocol.types import Out, Phase, Tap

Start = Callable[..., Any]


def returning(make: Callable[[Out], Any]) -> type[Method]:
    class Made(Method):
        def loss(self, S: Any, T: Any, batch: Any, run: Any) -> Any:
            return make(S)

    return Made


@pytest.mark.parametrize(
    ("make", "seen"),
    [
        (lambda S: S.logits.mean(), r"it returned a tensor of shape \(\) \("),
        (lambda S: None, r"it returned None \("),
        (lambda S: [S.logits.mean()], r"it returned a list \("),
        (lambda S: {"task": S.logits.mean(), "cosine": 0.5}, r"'cosine' is a float \("),
        (
            lambda S: {"task": S.logits.mean(), "cosine": S.logits.mean(1)},
            r"'cosine' has shape \(6,\): take its",
        ),
    ],
)
def test_what_loss_returns_is_looked_at_before_it_is_summed(start: Start, make: Any, seen: str) -> None:
    run, method, loop = start(returning(make))
    with pytest.raises(ContractError, match=r"^loss\(\) must return \{name: scalar tensor\}; " + seen) as e:
        loop.train()
    assert f"{__file__}:" in str(e.value)
    assert "\n" not in str(e.value)
    assert run.global_step == 0
    assert "loss" not in vars(method)


def test_what_a_step_returns_is_looked_at(start: Start) -> None:
    class PerImage(Method):
        def phases(self, run: Any) -> list[Phase]:
            return [Phase(step=self.match_step)]

        def match_step(self, batch: Any, run: Any) -> Any:
            loss = run.student(batch.x).logits.square().mean(1)
            run.optimize(loss.mean())
            return {"match": loss}

    with pytest.raises(ContractError, match=r"^match_step\(\) must return .*'match' has shape \(6,\)"):
        start(PerImage)[2].train()


@pytest.mark.parametrize(
    ("make", "seen", "fix"),
    [
        (lambda z: z.mean(1), r"takes a scalar tensor, it got shape \(6,\): take the mean", "mean"),
        (lambda z: 0.5, "takes a scalar tensor, it got a float", "scalar tensor"),
        (lambda z: z.mean().detach(), "the loss does not require grad", "Do not detach"),
    ],
)
def test_what_is_minimised_is_a_scalar_with_a_gradient(start: Start, make: Any, seen: str, fix: str) -> None:
    class Own(Method):
        def step(self, batch: Any, run: Any) -> Any:
            run.optimize(make(run.student(batch.x).logits))
            return {}

    with pytest.raises(ContractError, match=r"^run\.optimize\(\).*" + seen) as e:
        start(Own)[2].train()
    assert fix in e.value.fix


def test_a_method_is_left_as_it_was(start: Start, tmp_path: Path) -> None:
    class Plain(Method):
        def loss(self, S: Any, T: Any, batch: Any, run: Any) -> Any:
            return {"task": run.task.loss(S, batch)}

    _, method, loop = start(Plain)
    loop.train()
    assert "loss" not in vars(method)
    _, method, loop = start(Plain, tmp_path / "cut", {"should_stop": lambda: True})
    own = method.loss
    method.loss = lambda *args: own(*args)
    mine = method.loss
    with pytest.raises(Interrupted):
        loop.train()
    assert method.loss is mine


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("student", "run.student.want"),
        ("teacher0", "run.teacher.want"),
        ("teacher1", "run.teachers[1].want"),
        ("peer", "handle 'peer'.want"),
    ],
)
def test_a_feature_that_was_not_asked_for(name: str, call: str) -> None:
    net: Any = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4 * 64, 2))
    net.feature_info = [{"num_chs": 4, "reduction": 1, "module": "0"}]
    handle = NetHandle(name, net, image_size=8, in_chans=3, device=torch.device("cpu"))
    handle.want(Tap(0))
    feats = handle(torch.zeros(1, 3, 8, 8)).feats
    assert set(feats) == {Tap(0)}
    assert feats.get(Tap(4)) is None
    with pytest.raises(KeyError) as e:
        feats[Tap(4)]
    assert str(e.value) == f"{Tap(4)} was not asked for: call {call}(tap) in setup(); asked for: {Tap(0)}"
    assert Out(SimpleNamespace()).feats == {}  # type: ignore[arg-type]
