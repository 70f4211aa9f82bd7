"""Learning rates and optimizers: closed forms, phases, weight-decay groups, errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from kdbench.engine.optim import Driven, build_optimizers, trainable
from kdbench.errors import KdbenchError
from kdbench.matrix.recipe import Recipe
from kdbench.protocol.types import Opt


def recipe(schedule: dict[str, Any], *, epochs: int = 10, **changes: Any) -> Recipe:
    optimizer = changes.pop("optimizer", {"name": "momentum", "lr": 0.4})
    return Recipe.model_validate({"epochs": epochs, "optimizer": optimizer, "schedule": schedule, **changes})


def drive(schedule: dict[str, Any], *, epochs: int = 10, phase: int | None = None, steps: int = 4) -> Driven:
    opt = Opt((nn.Linear(2, 2),))
    spec = recipe(schedule, epochs=epochs)
    return build_optimizers({"main": opt}, spec, epochs=phase or epochs, steps_per_epoch=steps)["main"]


def per_epoch(driven: Driven, epochs: int, steps: int = 4) -> list[float]:
    rates = []
    for epoch in range(epochs):
        driven.set_epoch(epoch)
        for step in range(steps):
            driven.set_update(epoch * steps + step)
        rates.append(driven.lr)
    return rates


def per_step(driven: Driven, epochs: int, steps: int = 4) -> list[float]:
    rates = []
    for epoch in range(epochs):
        driven.set_epoch(epoch)
        for step in range(steps):
            driven.set_update(epoch * steps + step)
            rates.append(driven.lr)
    return rates


def torchs(cls: Any, ticks: int, **kw: Any) -> list[float]:
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.4)
    schedule = cls(optimizer, **kw)
    rates = []
    for _ in range(ticks):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


MULTISTEP = {"name": "multistep", "milestones": [4, 8], "gamma": 0.1}


def test_multistep_equals_torchs() -> None:
    expected = torchs(torch.optim.lr_scheduler.MultiStepLR, 10, milestones=[4, 8], gamma=0.1)
    assert per_epoch(drive(MULTISTEP), 10) == pytest.approx(expected, rel=1e-12)


def test_multistep_per_step_equals_torchs() -> None:
    expected = torchs(torch.optim.lr_scheduler.MultiStepLR, 40, milestones=[16, 32], gamma=0.1)
    assert per_step(drive({**MULTISTEP, "per": "step"}), 10) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("epochs", "at"), [(10, (5, 8)), (240, (120, 180)), (3, (2, 2))])
def test_fractions_are_shares_of_the_training(epochs: int, at: tuple[int, int]) -> None:
    second = {10: 0.8, 240: 0.75, 3: 0.7}[epochs]
    driven = drive({"name": "multistep", "milestones": [0.5, second], "gamma": 0.1}, epochs=epochs)
    rates = per_epoch(driven, epochs)
    expected = [0.4 * 0.1 ** sum(e >= m for m in at) for e in range(epochs)]
    assert rates == pytest.approx(expected)


def test_milestones_scale_with_the_phase() -> None:
    """A phase of half the epochs passes through the whole schedule, twice as fast."""
    for milestones in ([4, 8], [0.4, 0.8]):
        driven = drive({"name": "multistep", "milestones": milestones, "gamma": 0.1}, phase=5)
        assert per_epoch(driven, 5) == pytest.approx([0.4, 0.4, 0.04, 0.04, 0.004])


def test_step_equals_torchs() -> None:
    expected = torchs(torch.optim.lr_scheduler.StepLR, 10, step_size=3, gamma=0.5)
    driven = drive({"name": "step", "every_epochs": 3, "gamma": 0.5})
    assert per_epoch(driven, 10) == pytest.approx(expected)


def test_step_scales_with_the_phase() -> None:
    driven = drive({"name": "step", "every_epochs": 4, "gamma": 0.5}, phase=5)
    assert per_epoch(driven, 5) == pytest.approx([0.4, 0.4, 0.2, 0.2, 0.1])


def test_step_per_step_decays_at_the_same_places() -> None:
    driven = drive({"name": "step", "every_epochs": 3, "gamma": 0.5, "per": "step"})
    expected = [0.4 * 0.5 ** (u // 12) for u in range(40)]
    assert per_step(driven, 10) == pytest.approx(expected)


def test_cosine_equals_torchs() -> None:
    expected = torchs(torch.optim.lr_scheduler.CosineAnnealingLR, 10, T_max=10, eta_min=0.01)
    assert per_epoch(drive({"name": "cosine", "min_lr": 0.01}), 10) == pytest.approx(expected)


def test_cosine_per_step() -> None:
    expected = [0.2 * (1 + math.cos(math.pi * u / 40)) for u in range(40)]
    assert per_step(drive({"name": "cosine", "per": "step"}), 10) == pytest.approx(expected)


def test_linear_falls_evenly() -> None:
    assert per_epoch(drive({"name": "linear"}), 10) == pytest.approx([0.4 * (1 - e / 10) for e in range(10)])


def test_constant_stays_and_needs_no_schedule() -> None:
    driven = drive({"name": "constant"})
    assert driven.schedule is None
    assert per_epoch(driven, 10) == [0.4] * 10


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "multistep", "step"])
def test_warm_up_rises_linearly_then_the_schedule_holds(name: str) -> None:
    extra: dict[str, Any] = {"multistep": {"milestones": [6]}, "step": {"every_epochs": 6}}.get(name, {})
    schedule = {"name": name, "warmup_epochs": 2, "warmup_lr": 0.1, **extra}
    rates = per_epoch(drive(schedule), 10)
    assert rates[:2] == pytest.approx([0.1, 0.25])
    plain = {k: v for k, v in schedule.items() if not k.startswith("warmup")}
    assert rates[2:] == pytest.approx(per_epoch(drive(plain), 10)[2:])


def test_warm_up_per_step() -> None:
    schedule = {"name": "cosine", "per": "step", "warmup_epochs": 1, "warmup_lr": 0.0}
    rates = per_step(drive(schedule), 10)
    assert rates[:4] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert rates[4] == pytest.approx(0.2 * (1 + math.cos(math.pi * 4 / 40)))


def test_constant_schedule_of_an_optimizer_ignores_the_recipes() -> None:
    opts = {"g": Opt((nn.Linear(2, 2),), kind="adam", kw={"lr": 1e-3}, schedule="constant")}
    driven = build_optimizers(opts, recipe(MULTISTEP), epochs=10, steps_per_epoch=4)["g"]
    assert isinstance(driven.optimizer, torch.optim.Adam)
    assert per_epoch(driven, 10) == [1e-3] * 10


def test_an_own_rate_follows_the_recipes_shape() -> None:
    opts = {"g": Opt((nn.Linear(2, 2),), kw={"lr": 1.0})}
    driven = build_optimizers(opts, recipe(MULTISTEP), epochs=10, steps_per_epoch=4)["g"]
    assert per_epoch(driven, 10) == pytest.approx([1.0] * 4 + [0.1] * 4 + [0.01] * 2)


def groups_of(filtered: bool) -> dict[str, float]:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = {"name": "momentum", "lr": 0.1, "weight_decay": 5e-4, "momentum": 0.8}
    spec = recipe({"name": "constant"}, optimizer=optimizer, filter_bias_and_bn=filtered)
    made = build_optimizers({"main": Opt((net,))}, spec, epochs=1, steps_per_epoch=1)["main"].optimizer
    names = {id(p): n for n, p in net.named_parameters()}
    assert all(g["momentum"] == 0.8 and not g["nesterov"] for g in made.param_groups)
    return {names[id(p)]: g["weight_decay"] for g in made.param_groups for p in g["params"]}


def test_weight_decay_of_every_parameter() -> None:
    assert groups_of(False) == dict.fromkeys(("0.weight", "0.bias", "1.weight", "1.bias"), 5e-4)


def test_filter_spares_biases_and_norms() -> None:
    assert groups_of(True) == {"0.weight": 5e-4, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0}


def test_own_kind_does_not_inherit_the_recipes_arguments() -> None:
    optimizer = {"name": "momentum", "lr": 0.1, "weight_decay": 5e-4, "momentum": 0.8}
    spec = recipe({"name": "constant"}, optimizer=optimizer)
    opts = {"g": Opt((nn.Linear(2, 2),), kind="adam")}
    made = build_optimizers(opts, spec, epochs=1, steps_per_epoch=1)["g"].optimizer
    assert made.param_groups[0]["weight_decay"] == 0.0
    assert made.param_groups[0]["lr"] == 0.1


def test_betas_and_eps_reach_the_optimizer() -> None:
    optimizer = {"name": "adamw", "lr": 0.1, "betas": [0.5, 0.9], "eps": 1e-6}
    spec = recipe({"name": "constant"}, optimizer=optimizer)
    made = build_optimizers({"m": Opt((nn.Linear(2, 2),))}, spec, epochs=1, steps_per_epoch=1)["m"].optimizer
    assert made.param_groups[0]["betas"] == (0.5, 0.9)
    assert made.param_groups[0]["eps"] == 1e-6


def test_unknown_optimizer() -> None:
    spec = recipe({"name": "constant"}, optimizer={"name": "adamm", "lr": 0.1})
    with pytest.raises(KdbenchError, match="optimizer 'adamm'"):
        build_optimizers({"main": Opt((nn.Linear(2, 2),))}, spec, epochs=1, steps_per_epoch=1)


def test_unknown_argument_of_an_optimizer() -> None:
    spec = recipe({"name": "constant"})
    opts = {"g": Opt((nn.Linear(2, 2),), kind="adam", kw={"speed": 3})}
    with pytest.raises(KdbenchError, match=r"optimizer 'adam'.*speed"):
        build_optimizers(opts, spec, epochs=1, steps_per_epoch=1)


def test_optimizer_without_parameters() -> None:
    with pytest.raises(ValueError, match="optimizer 'main' has no parameters"):
        build_optimizers(
            {"main": Opt((nn.ReLU(),))}, recipe({"name": "constant"}), epochs=1, steps_per_epoch=1
        )


def test_trainable_takes_each_parameter_once_and_nothing_else() -> None:
    net = nn.Linear(2, 2)
    assert [id(p) for p in trainable((net, net.weight, net))] == [id(net.weight), id(net.bias)]
    with pytest.raises(TypeError, match="modules and parameters, not Tensor"):
        trainable((torch.zeros(2),))


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw"])
def test_fused_updates_are_right_whatever_the_strides(name: str) -> None:
    """torch's fused optimizers on the CPU read parameter, gradient and state as flat memory."""

    def make() -> nn.Conv2d:
        torch.manual_seed(0)
        return nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)

    spec = recipe({"name": "constant"}, optimizer={"name": name, "lr": 0.1, "weight_decay": 0.01})
    ours, theirs = make(), make()
    driven = build_optimizers({"main": Opt((ours,))}, spec, epochs=1, steps_per_epoch=1)["main"]
    plain = Opt((theirs,), kw={"foreach": False})
    other = build_optimizers({"main": plain}, spec, epochs=1, steps_per_epoch=1)["main"].optimizer
    assert driven.optimizer.param_groups[0]["fused"]
    assert not other.param_groups[0].get("fused")
    for step in range(4):
        for net in (ours, theirs):
            for p in net.parameters():
                g = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
                p.grad = g.contiguous()
        driven.align()
        driven.optimizer.step()
        other.step()
        # a checkpoint keeps tensors without their strides
        state = driven.optimizer.state_dict()
        for kept in state["state"].values():
            kept.update({k: v.contiguous() for k, v in kept.items() if isinstance(v, torch.Tensor)})
        driven.load(state)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)
