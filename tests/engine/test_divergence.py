"""Divergence: the step and the term that did it, whatever the term, the phase and the cuts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdbench.engine.checkpoint import load_state
from kdbench.engine.contract import ContractError
from kdbench.engine.divergence import WINDOW, Bad, Diverged, Terms, check_weights, told
from kdbench.engine.progress import Interrupted
from kdbench.protocol.method import Method
from kdbench.protocol.types import Batch, NotApplicable, Opt, Phase

Start = Callable[..., Any]
CPU = torch.device("cpu")


class Spoilt(Method):
    """Two terms; `spoil` gives the value that is added to a term at a step (from 1 over the whole run)."""

    spoil: Mapping[tuple[str, int], float] = {}

    def loss(self, S: Any, T: Any, batch: Batch, run: Any) -> Mapping[str, Tensor]:
        parts = {"task": run.task.loss(S, batch), "kd": run.task.divergence(S, T[0], 2.0)}
        return {k: v + self.spoil.get((k, run.global_step + 1), 0.0) for k, v in parts.items()}

    def step(self, batch: Batch | None, run: Any) -> Mapping[str, Tensor]:
        # only finite sums are trained on, so that one term's fall does not pull the others down
        assert batch is not None
        S, T = run.student(batch.x), [run.teach(t, batch.x) for t in run.teachers]
        parts = self.loss(S, T, batch, run)
        run.optimize(sum(v.nan_to_num(0.0, 0.0, 0.0) for v in parts.values()))
        return parts


def spoilt(**spoil: float) -> type[Method]:
    """``spoilt(kd_4=nan)``: the term kd is nan at step 4."""
    places = {(k.rpartition("_")[0], int(k.rpartition("_")[2])): v for k, v in spoil.items()}
    return type("Spoilt", (Spoilt,), {"spoil": places})


def message(start: Start, method: type[Method], **kw: Any) -> str:
    with pytest.raises(Diverged) as info:
        start(method, **kw)[2].train()
    return str(info.value)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (
            {"kd_1": math.nan},
            "diverged at step 1 (epoch 1 of phase 'main'): term 'kd' was nan first; then 'loss'",
        ),
        (
            {"kd_5": math.inf},
            "diverged at step 5 (epoch 2 of phase 'main'): term 'kd' was inf first; then 'loss'",
        ),
        (
            {"task_6": -math.inf},
            "diverged at step 6 (epoch 2 of phase 'main'): term 'task' was -inf first; then 'loss'",
        ),
        (
            {"kd_2": math.nan, "task_3": math.nan},
            "diverged at step 2 (epoch 1 of phase 'main'): term 'kd' was nan first; then 'loss', 'task' at step 3",
        ),
        (
            {"kd_4": math.nan, "task_4": math.inf},
            "diverged at step 4 (epoch 2 of phase 'main'): term 'task' was inf first; then 'kd', 'loss'",
        ),
        # finite again in the same epoch, and bad only once: the first time counts
        (
            {"kd_4": math.nan, "kd_6": math.inf},
            "diverged at step 4 (epoch 2 of phase 'main'): term 'kd' was nan first; then 'loss'",
        ),
        # two finite terms whose sum is not
        (
            {"kd_4": 3e38, "task_4": 3e38},
            "diverged at step 4 (epoch 2 of phase 'main'): the sum of the terms was inf first",
        ),
        # each step is finite, the epoch's sum is not
        (
            {"kd_4": 3e38, "kd_5": 3e38},
            "diverged by step 6 (epoch 2 of phase 'main'): the sum of 'kd' over steps overflowed",
        ),
    ],
)
def test_step_and_term_are_named(start: Start, spoil: dict[str, float], expected: str) -> None:
    assert message(start, spoilt(**spoil)) == expected


def test_a_run_that_is_finite_is_left_alone(start: Start) -> None:
    _, _, loop = start(spoilt())
    assert loop.train().total_epochs == 2


def test_what_is_already_done_stays(start: Start) -> None:
    _, _, loop = start(spoilt(kd_5=math.nan), epochs=3)
    with pytest.raises(Diverged):
        loop.train()
    assert len(loop.at.rows) == 1


def test_a_loss_that_pulls_the_weights_down(start: Start) -> None:
    class Pulls(Spoilt):
        step = Method.step

        def loss(self, S: Any, T: Any, batch: Batch, run: Any) -> Mapping[str, Tensor]:
            parts = super().loss(S, T, batch, run)
            return {**parts, "kd": parts["kd"] * math.nan} if run.global_step == 1 else parts

    expected = (
        "diverged at step 2 (epoch 1 of phase 'main'): term 'kd' was nan first; then 'loss', 'task' at step 3"
    )
    assert message(start, Pulls) == expected


def test_a_logged_value_counts_and_comes_before_the_terms_of_its_step(start: Start) -> None:
    class Logs(Spoilt):
        spoil = {("kd", 4): math.nan}

        def step(self, batch: Batch | None, run: Any) -> Mapping[str, Tensor]:
            run.log({"scale": math.inf if run.global_step == 3 else 1.0})
            return super().step(batch, run)

    told = "at step 4 (epoch 2 of phase 'main'): logged value 'scale' was inf first; then 'kd', 'loss'"
    assert told in message(start, Logs)


class TwoPhases(Spoilt):
    spoil = {("kd", 5): math.nan}

    def phases(self, run: Any) -> list[Phase]:
        return [Phase("warm", 1), Phase("train", 1)]


def test_steps_count_over_all_phases(start: Start) -> None:
    assert message(start, TwoPhases).startswith("diverged at step 5 (epoch 1 of phase 'train'): term 'kd'")


def test_a_term_that_comes_at_some_steps_only(start: Start) -> None:
    class Alternates(Spoilt):
        def step(self, batch: Batch | None, run: Any) -> Mapping[str, Tensor]:
            parts = dict(super().step(batch, run))
            if run.global_step % 2:
                parts["rare"] = torch.tensor(math.nan if run.global_step == 3 else 0.0)
            return parts

    expected = "diverged at step 4 (epoch 2 of phase 'main'): term 'rare' was nan first; then 'loss'"
    assert message(start, Alternates) == expected


def test_a_term_that_is_no_scalar_is_named(start: Start) -> None:
    class Wide(Spoilt):
        def step(self, batch: Batch | None, run: Any) -> Mapping[str, Tensor]:
            return {"kd": torch.zeros(3)}

    with pytest.raises(ContractError, match=r"'kd' has shape \(3,\): take its mean"):
        start(Wide)[2].train()


@pytest.mark.parametrize("cut", [2, 3, 4, 5])
def test_a_cut_forgets_nothing(start: Start, tmp_path: Path, cut: int) -> None:
    """The nan of step 2 or 5 is told whether the run was cut before it, right after it or later."""
    where = tmp_path / "cut"
    method = spoilt(kd_5=math.nan) if cut > 3 else spoilt(kd_2=math.nan)
    count = iter(range(1, 100))
    _, _, loop = start(method, where, {"should_stop": lambda: next(count) == cut})
    with pytest.raises(Interrupted):
        loop.train()
    step = 5 if cut > 3 else 2
    kept = load_state(where / "checkpoint.safetensors").get("bad")
    assert [b[:2] for b in kept] == ([["loss/kd", step], ["loss", step]] if cut >= step else [])
    # what the cut run had seen is known from its state alone: this one spoils nothing before the cut
    later = spoilt(**({f"kd_{step}": math.nan} if cut < step else {}))
    with pytest.raises(Diverged, match=rf"at step {step} \(.*term 'kd' was nan first; then 'loss'$"):
        start(later, where)[2].train()


def test_a_checkpoint_of_an_older_version_resumes(tmp_path: Path) -> None:
    terms = Terms(CPU)
    terms.restore({"means": {"loss": torch.tensor(2.0)}, "counts": {"loss": 2}})
    assert terms.means() == {"loss": 1.0}
    assert terms.bad() == []


class Explodes(Method):
    """Finite terms; at step `at` the update makes a weight of `network` infinite."""

    at, network = 6, "student"

    def setup(self, run: Any) -> None:
        self.connector = nn.Linear(3, 3)
        self.unused = nn.Parameter(torch.full((2,), math.inf))
        self.register_buffer("mask", torch.full((2,), -math.inf))

    def phases(self, run: Any) -> list[Phase]:
        return [Phase(optimizers={"main": Opt((run.student.net, self.connector))})]

    def step(self, batch: Batch | None, run: Any) -> Mapping[str, Tensor]:
        assert batch is not None
        loss = run.task.loss(run.student(batch.x), batch) + self.connector.weight.square().mean()
        run.optimize(loss)
        if run.global_step + 1 == self.at:
            target = {"student": run.student.net.fc.bias, "method": self.connector.weight}
            target["statistics"] = run.student.net.bn2.running_var
            with torch.no_grad():
                target[self.network][-1:] = math.inf
        return {"task": loss.nan_to_num(0.0)}


@pytest.mark.parametrize(
    ("network", "named"),
    [
        ("student", "'fc.bias' of 'student' is inf"),
        ("method", "'connector.weight' of the method is inf"),
        ("statistics", "'bn2.running_var' of 'student' is inf"),
    ],
)
def test_the_last_update_may_not_ruin_the_weights(start: Start, network: str, named: str) -> None:
    method = type("Explodes", (Explodes,), {"network": network})
    expected = f"diverged by step 6 (epoch 2 of phase 'main'): every term was finite, but {named}"
    assert message(start, method) == expected


def test_untrained_values_may_be_infinite(start: Start) -> None:
    """Masks in buffers, and parameters that no optimizer has, are the method's business."""
    method = type("Explodes", (Explodes,), {"at": 0})
    assert start(method)[2].train().total_epochs == 2


def test_weights_ruined_in_one_phase_do_not_reach_the_next(start: Start) -> None:
    begun: list[str] = []

    class Chain(Explodes):
        at = 3

        def phases(self, run: Any) -> list[Phase]:
            both = {"main": Opt((run.student.net, self.connector))}
            return [Phase("a", 1, both), Phase("b", 1, both)]

        def on_phase_start(self, phase: Phase, run: Any) -> None:
            begun.append(phase.name)

    assert "by step 3 (epoch 1 of phase 'a')" in message(start, Chain)
    assert begun == ["a"]


def test_weights_that_overflow_only_in_the_evaluation(start: Start) -> None:
    class Huge(Explodes):
        at = 0

        def step(self, batch: Batch | None, run: Any) -> Mapping[str, Tensor]:
            parts = super().step(batch, run)
            if run.global_step == 5:
                with torch.no_grad():
                    run.student.net.fc.weight.fill_(3e38)
                    run.student.net.bn2.bias.fill_(10.0)
            return parts

    assert "by step 6 (the last): every term and weight was finite, but val/nll of 'student' is " in message(
        start, Huge
    )


class Refuses(Spoilt):
    """Step 3 calls something that raises."""

    error: Exception = RuntimeError("linalg.eigh: the input has a nan")

    def step(self, batch: Batch | None, run: Any) -> Mapping[str, Tensor]:
        if run.global_step == 2:
            raise self.error
        return super().step(batch, run)


def test_an_operation_that_refuses_a_nan_is_not_blamed(start: Start) -> None:
    method = type("Refuses", (Refuses,), {"spoil": {("kd", 2): math.nan}})
    with pytest.raises(Diverged, match=r"at step 2 \(epoch 1 of phase 'main'\): term 'kd'") as info:
        start(method)[2].train()
    assert info.value.__cause__ is Refuses.error


def test_an_operation_that_refuses_a_ruined_weight_is_not_blamed(start: Start) -> None:
    class Both(Explodes):
        at = 2

        def step(self, batch: Batch | None, run: Any) -> Mapping[str, Tensor]:
            if run.global_step == 2:
                raise Refuses.error
            return super().step(batch, run)

    assert "by step 2 (epoch 1 of phase 'main'): every term was finite, but 'fc.bias'" in message(start, Both)


@pytest.mark.parametrize("error", [Refuses.error, MemoryError("no"), NotApplicable("no")])
def test_other_errors_stay_what_they_are(start: Start, error: Exception) -> None:
    spoil = {} if isinstance(error, RuntimeError) else {("kd", 2): math.nan}
    method = type("Refuses", (Refuses,), {"error": error, "spoil": spoil})
    with pytest.raises(type(error)) as info:
        start(method)[2].train()
    assert info.value is error


def test_windows_do_not_shift_the_step() -> None:
    """More rows than wait at once; every row's step is found again, also on both sides of a window's end."""
    for first in (1, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW, 2 * WINDOW + 7):
        terms = Terms(CPU)
        for step in range(1, 2 * WINDOW + 20):
            value = math.nan if step == first else math.inf if step == first + 3 else 0.5
            terms.add({"a": torch.tensor(1.0), "b": torch.tensor(value)}, step + 100)
        assert terms.bad() == [Bad("b", first + 100, "nan")]
        assert terms.bad() == [Bad("b", first + 100, "nan")]


def test_what_is_kept_is_a_copy() -> None:
    """A method may return a buffer, and write into it at the next step."""
    terms, buffer = Terms(CPU), torch.tensor(1.0)
    terms.add({"a": buffer}, 1)
    buffer.fill_(math.nan)
    terms.add({"b": torch.tensor(1.0)}, 2)
    assert terms.bad() == []
    assert terms.means() == {"a": 1.0, "b": 1.0}


def test_means_add_up_in_the_order_of_the_steps() -> None:
    values = torch.rand(700)
    terms, expected = Terms(CPU), torch.zeros(())
    for step, v in enumerate(values, 1):
        terms.add({"a": v[None], "n": 2}, step)
        expected += v
    assert terms.means() == {"a": float(expected) / 700, "n": 2.0}


def test_long_lists_are_cut() -> None:
    bad = [Bad(f"loss/t{k}", 3, "nan") for k in range(12)]
    assert told(bad, "epoch 1").endswith(
        "term 't0' was nan first; then 't1', 't2', 't3', 't4', 't5', 't6', 't7', 't8', 3 more"
    )


def test_no_weights_no_verdict() -> None:
    check_weights({"the method": nn.Identity()}, [], 1, "epoch 1")
    empty = nn.ParameterList([torch.empty(0)])
    check_weights({"the method": empty}, list(empty.parameters()), 1, "epoch 1")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_bad_element_among_many_is_found(value: float) -> None:
    net = nn.Linear(40, 50).requires_grad_(True)
    with torch.no_grad():
        net.bias.fill_(-3e38)[0] = 3e38
    check_weights({"net": net}, list(net.parameters()), 1, "epoch 1")
    with torch.no_grad():
        net.weight[17, 3] = value
    with pytest.raises(Diverged, match=f"'weight' of net is {value}$"):
        check_weights({"net": net}, list(net.parameters()), 1, "epoch 1")
