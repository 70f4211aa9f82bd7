"""The loop: phases, sources, optimizers, divergence, hooks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdbench.engine.divergence import Diverged
from kdbench.engine.phases import checked, epochs_of, extra_parameters
from kdbench.engine.progress import Interrupted
from kdbench.errors import KdbenchError
from kdbench.hooks import Needs
from kdbench.protocol.method import Method
from kdbench.protocol.types import Batch, Opt, Phase

Start = Callable[..., Any]


class Plain(Method):
    """The task's loss."""

    def loss(self, S: Any, T: Any, batch: Batch, run: Any) -> Mapping[str, Tensor]:
        return {"task": run.task.loss(S, batch)}


def test_one_phase_takes_all_epochs() -> None:
    assert epochs_of([Phase()], 12) == [12]


def test_shares_and_numbers() -> None:
    assert epochs_of([Phase("a", 0.25), Phase("b", 0.75)], 240) == [60, 180]
    assert epochs_of([Phase("a", 1 / 3), Phase("b", 1 / 3), Phase("c", 1 / 3)], 10) == [3, 4, 3]
    assert epochs_of([Phase("a", 7), Phase("b", 1.0)], 10) == [7, 10]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(1, 300))
def test_shares_of_one_divide_the_epochs(weights: list[int], epochs: int) -> None:
    phases = [Phase(str(k), w / sum(weights)) for k, w in enumerate(weights)]
    out = epochs_of(phases, epochs)
    assert min(out) >= 1
    forced = sum(p.budget * epochs < 1 for p in phases)
    assert epochs <= sum(out) <= epochs + forced
    if not forced:
        assert all(abs(n - p.budget * epochs) <= 1 for n, p in zip(out, phases, strict=True))


@pytest.mark.parametrize("budget", [0, 0.0, -1, True])
def test_budget_must_be_positive(budget: Any) -> None:
    with pytest.raises(ValueError, match="phase 'a': budget must be a positive"):
        epochs_of([Phase("a", budget)], 3)


@pytest.mark.parametrize("phases", [[], [Phase("a"), Phase("a")]])
def test_phases_need_distinct_names(phases: list[Phase]) -> None:
    with pytest.raises(ValueError, match="distinct names"):
        checked(phases)


def test_rows_tell_each_epoch(start: Start) -> None:
    run, _, loop = start(Plain, epochs=3)
    at = loop.train()
    assert [row["epoch"] for row in at.rows] == [1, 2, 3]
    assert at.total_epochs == 3
    assert at.global_step == run.global_step == 9
    assert at.images == 3 * 17
    for row in at.rows:
        assert row["phase"] == "main"
        assert row["steps"] == 3
        assert row["train"]["loss"] == pytest.approx(row["train"]["loss/task"])
        assert set(row["eval"]["student"]) >= {"val/top1", "test/top1", "test/nll"}
        assert row["step_ms"] == pytest.approx(1e3 * row["train_s"] / 3)
        assert row["images_per_s"] == pytest.approx(17 / row["train_s"])
    lrs = [row["lr"]["main"] for row in at.rows]
    assert lrs == pytest.approx([0.025 * (1 + math.cos(math.pi * e / 3)) for e in range(3)])
    assert at.train_s == pytest.approx(sum(row["train_s"] for row in at.rows))
    json.dumps(at.rows, allow_nan=False)


def test_training_learns_and_leaves_the_teacher(start: Start) -> None:
    run, _, loop = start(Plain)
    student = {k: v.clone() for k, v in run.student.net.state_dict().items()}
    teacher = {k: v.clone() for k, v in run.teacher.net.state_dict().items()}
    loop.train()
    moved = [k for k, v in run.student.net.state_dict().items() if not torch.equal(v, student[k])]
    assert set(moved) == set(student)
    assert all(torch.equal(v, teacher[k]) for k, v in run.teacher.net.state_dict().items())


@pytest.mark.parametrize(("every", "expected"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])])
def test_evaluation_follows_the_recipe_and_ends_with_one(
    start: Start, every: int, expected: list[int]
) -> None:
    at = start(Plain, epochs=5, eval_every=every)[2].train()
    assert [row["epoch"] for row in at.rows if "eval" in row] == expected


def test_a_phase_may_be_left_unevaluated(start: Start) -> None:
    class Two(Plain):
        def phases(self, run: Any) -> list[Phase]:
            return [Phase("init", 0.5, evaluate=False), Phase("train", 0.5)]

    at = start(Two, epochs=4)[2].train()
    assert [(row["phase"], "eval" in row) for row in at.rows] == [
        ("init", False),
        ("init", False),
        ("train", True),
        ("train", True),
    ]


def test_every_phase_sees_new_data_and_its_own_schedule(start: Start) -> None:
    class Two(Plain):
        def phases(self, run: Any) -> list[Phase]:
            return [Phase("a", 0.5), Phase("b", 0.5)]

    run, _, loop = start(Two, epochs=4)
    at = loop.train()
    assert run.task_data.streams["train"].asked == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert [row["lr"]["main"] for row in at.rows] == pytest.approx([0.05, 0.025] * 2)


class TwoOptimizers(Method):
    """A connector with its own optimizer; alternating steps."""

    def setup(self, run: Any) -> None:
        self.gain = nn.Linear(3, 3)

    def phases(self, run: Any) -> list[Phase]:
        adam = Opt((self.gain,), "adam", {"lr": 0.01}, schedule="constant")
        return [Phase(optimizers={"s": Opt((run.student.net,)), "g": adam})]

    def step(self, batch: Batch | None, run: Any) -> Mapping[str, Tensor]:
        assert batch is not None
        frozen = self.gain.weight.detach().clone()
        loss = run.task.loss(run.student(batch.x), batch)
        run.optimize(loss, "s")
        assert torch.equal(self.gain.weight, frozen)
        student = run.student.net.fc.weight.detach().clone()
        other = self.gain(run.student(batch.x).logits.detach()).square().mean()
        run.optimize(other, "g")
        assert not torch.equal(self.gain.weight, frozen)
        assert torch.equal(run.student.net.fc.weight, student)
        return {"s": loss, "g": other}


def test_named_optimizers_step_alone(start: Start) -> None:
    run, method, loop = start(TwoOptimizers)
    at = loop.train()
    assert set(at.rows[0]["lr"]) == {"s", "g"}
    assert [row["lr"]["g"] for row in at.rows] == [0.01, 0.01]
    row = at.rows[0]["train"]
    assert row["loss"] == pytest.approx(row["loss/s"] + row["loss/g"], rel=1e-5)
    assert extra_parameters(method, run) == 12


def test_unknown_optimizer_is_named(start: Start) -> None:
    class Wrong(Plain):
        def step(self, batch: Any, run: Any) -> Mapping[str, Tensor]:
            run.optimize(run.task.loss(run.student(batch.x), batch), "students")
            return {}

    with pytest.raises(
        ValueError, match=r"no optimizer named 'students' in this phase; there are \['main'\]"
    ):
        start(Wrong)[2].train()


def test_gradients_are_clipped(start: Start) -> None:
    norms: list[float] = []

    class Spy(Plain):
        def step(self, batch: Any, run: Any) -> Mapping[str, Tensor]:
            loss = 1e4 * run.task.loss(run.student(batch.x), batch)
            run.optimize(loss)
            norms.append(float(torch.cat([p.grad.flatten() for p in run.student.net.parameters()]).norm()))
            return {"task": loss}

    start(Spy, clip_grad=0.5, epochs=1)[2].train()
    assert max(norms) <= 0.5 + 1e-4


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run(start: Start, value: float) -> None:
    class Bad(Plain):
        def loss(self, S: Any, T: Any, batch: Batch, run: Any) -> Mapping[str, Tensor]:
            bad = value if run.epoch == 1 else 0.0
            return {"task": run.task.loss(S, batch), "hint": S.logits.mean() * 0 + bad}

    _, _, loop = start(Bad, epochs=3)
    with pytest.raises(Diverged, match=r"at step 4 \(epoch 2 of phase 'main'\): term 'hint'"):
        loop.train()
    assert len(loop.at.rows) == 1


def test_ticks_need_no_data(start: Start) -> None:
    seen: list[tuple[Any, int, float]] = []

    class DataFree(Method):
        def phases(self, run: Any) -> list[Phase]:
            return [Phase(source=4)]

        def step(self, batch: Batch | None, run: Any) -> Mapping[str, Tensor]:
            seen.append((batch, run.step_in_epoch, run.frac))
            x = torch.randn(6, 3, 8, 8, generator=run.rng)
            loss = run.student(x).logits.square().mean()
            run.optimize(loss)
            return {"free": loss}

    run, _, loop = start(DataFree)
    at = loop.train()
    assert [b for b, _, _ in seen] == [None] * 8
    assert [s for _, s, _ in seen] == [0, 1, 2, 3] * 2
    assert [f for _, _, f in seen] == pytest.approx([k / 8 for k in range(8)])
    assert at.images == 0
    assert "images_per_s" not in at.rows[0]
    assert run.task_data.streams["train"].asked == []


def test_unlabelled_source(start: Start) -> None:
    class Unlabelled(Method):
        def phases(self, run: Any) -> list[Phase]:
            return [Phase(source="train_unlabelled")]

        def loss(self, S: Any, T: Any, batch: Batch, run: Any) -> Mapping[str, Tensor]:
            assert batch.y is None
            return {"kd": run.task.divergence(S, T[0])}

    run, _, loop = start(Unlabelled)
    loop.train()
    assert run.task_data.streams["train_unlabelled"].asked == [(0, 0), (1, 0)]


def test_callable_source_is_called_once_per_epoch(start: Start) -> None:
    calls: list[int] = []

    class Own(Plain):
        def phases(self, run: Any) -> list[Phase]:
            return [Phase(source=self.batches)]

        def batches(self, run: Any) -> Iterator[Batch]:
            calls.append(run.epoch)
            for batch in run.task_data.streams["train"].epoch(0):
                yield Batch(batch.x.flip(3), batch.y, batch.index)

    at = start(Own)[2].train()
    assert calls == [0, 1]
    assert at.global_step == 6


@pytest.mark.parametrize(("source", "message"), [("trian", "no stream 'trian'"), (True, "source must be")])
def test_bad_source(start: Start, source: Any, message: str) -> None:
    class Bad(Plain):
        def phases(self, run: Any) -> list[Phase]:
            return [Phase("p", source=source)]

    with pytest.raises(ValueError, match=message):
        start(Bad)[2].train()


def test_an_epoch_without_batches_is_bad_input(start: Start) -> None:
    class Empty(Plain):
        def phases(self, run: Any) -> list[Phase]:
            return [Phase(source=lambda run: [])]

    with pytest.raises(KdbenchError, match="gives no batch"):
        start(Empty)[2].train()


def test_phase_step_replaces_the_methods(start: Start) -> None:
    class Replaced(Plain):
        def phases(self, run: Any) -> list[Phase]:
            return [Phase("own", 0.5, step=self.own), Phase("rest", 0.5)]

        def own(self, batch: Any, run: Any) -> Mapping[str, Tensor]:
            loss = run.student(batch.x).logits.square().mean()
            run.optimize(loss)
            return {"own": loss}

    at = start(Replaced)[2].train()
    assert [[k for k in row["train"] if k != "loss"] for row in at.rows] == [["loss/own"], ["loss/task"]]


def test_teacher_statistics_of_a_phase(start: Start) -> None:
    modes: list[tuple[str, str]] = []

    class Batchwise(Plain):
        def phases(self, run: Any) -> list[Phase]:
            return [Phase("a", 0.5, teacher_bn="batch"), Phase("b", 0.5)]

        def loss(self, S: Any, T: Any, batch: Batch, run: Any) -> Mapping[str, Tensor]:
            own = run.teach(run.teacher, batch.x, bn="eval").logits
            modes.append(("eval" if torch.equal(T[0].logits, own) else "batch", run.teacher_bn))
            return super().loss(S, T, batch, run)

    start(Batchwise)[2].train()
    assert modes == [("batch", "batch")] * 3 + [("eval", "eval")] * 3


def test_several_deployables_are_all_evaluated(start: Start) -> None:
    class Pair(Method):
        needs = Needs(teachers=0)

        def setup(self, run: Any) -> None:
            self.peer = run.new_student("peer")

        def phases(self, run: Any) -> list[Phase]:
            return [Phase(optimizers={"m": Opt((run.student.net, self.peer.net))})]

        def step(self, batch: Any, run: Any) -> Mapping[str, Tensor]:
            both = [run.task.loss(h(batch.x), batch) for h in (run.student, self.peer)]
            run.optimize(both[0] + both[1])
            return {"a": both[0], "b": both[1]}

        def deploy(self, run: Any) -> Mapping[str, nn.Module]:
            return {"student": run.student.net, "peer": self.peer.net}

    run, method, loop = start(Pair, teachers=0)
    at = loop.train()
    results = at.rows[-1]["eval"]
    assert list(results) == ["student", "peer"]
    assert results["student"] != results["peer"]
    assert extra_parameters(method, run) == sum(p.numel() for p in method.peer.net.parameters())


def test_logged_values_are_means_over_the_epoch(start: Start) -> None:
    class Logs(Plain):
        def loss(self, S: Any, T: Any, batch: Batch, run: Any) -> Mapping[str, Tensor]:
            run.log({"step": run.step_in_epoch, "twice": torch.tensor(2.0)})
            return super().loss(S, T, batch, run)

    at = start(Logs)[2].train()
    assert at.rows[1]["train"]["step"] == 1.0
    assert at.rows[1]["train"]["twice"] == 2.0


class Calls(Plain):
    """Writes down when its hooks run."""

    log: list[str] = []

    def phases(self, run: Any) -> list[Phase]:
        return [Phase("a", 0.5), Phase("b", 0.5)]

    def on_phase_start(self, phase: Phase, run: Any) -> None:
        assert run.optimizers == {}
        self.log.append(f"phase {phase.name}")

    def on_epoch_start(self, run: Any) -> None:
        assert run.student.net.training
        assert not run.teacher.net.training
        self.log.append(f"epoch {run.epoch}")

    def loss(self, S: Any, T: Any, batch: Batch, run: Any) -> Mapping[str, Tensor]:
        self.log.append(f"step {run.step_in_epoch}")
        return super().loss(S, T, batch, run)


STEPS = ["step 0", "step 1", "step 2"]
EPOCHS = ["epoch 0", *STEPS, "epoch 1", *STEPS]


def test_order_of_hooks(start: Start) -> None:
    Calls.log = []
    start(Calls, epochs=4)[2].train()
    assert Calls.log == ["phase a", *EPOCHS, "phase b", *EPOCHS]


@pytest.mark.parametrize(
    ("cut", "again"),
    [
        (1, ["phase a", "epoch 0", "step 1", "step 2", "epoch 1", *STEPS, "phase b", *EPOCHS]),
        (3, ["phase a", "epoch 0", "epoch 1", *STEPS, "phase b", *EPOCHS]),
        (8, ["phase b", "epoch 0", "step 2", "epoch 1", *STEPS]),
    ],
)
def test_order_of_hooks_after_a_resume(start: Start, tmp_path: Path, cut: int, again: list[str]) -> None:
    """Hooks of the phase and of the epoch that was cut run again."""
    count = iter(range(1, 100))
    with pytest.raises(Interrupted):
        start(Calls, epochs=4, options={"should_stop": lambda: next(count) == cut})[2].train()
    Calls.log = []
    start(Calls, epochs=4)[2].train()
    assert Calls.log == again


def test_gate_and_keep_see_every_epoch(start: Start) -> None:
    seen: list[str] = []
    options = {
        "gate": lambda: seen.append("gate"),
        "keep": lambda epochs: seen.append(f"keep {epochs}"),
        "on_epoch": lambda row: seen.append(f"row {row['epoch']}"),
    }
    start(Plain, options=options)[2].train()
    assert seen == ["gate", "keep 1", "row 1", "gate", "keep 2", "row 2"]


def test_a_pause_between_steps_changes_no_number(start: Start) -> None:
    gates: list[int] = []
    options = {"gate": lambda: gates.append(1), "wanted": lambda: True}
    paused = start(Plain, options=options)
    rows = paused[2].train().rows
    straight = start(Plain)[2].train().rows
    assert len(gates) == 2 + sum(row["steps"] for row in rows)
    assert [row["train"] for row in rows] == [row["train"] for row in straight]
    assert paused[2].at.images == sum(round(row["images_per_s"] * row["train_s"]) for row in rows)


class Asks(Plain):
    """Has its one answer in every step from a table."""

    def loss(self, S: Any, T: Any, batch: Batch, run: Any) -> Mapping[str, Tensor]:
        run.answered += 1
        return super().loss(S, T, batch, run)


def test_forwards_are_counted_once_however_often_others_measure(start: Start) -> None:
    at = start(Asks, epochs=2, options={"wanted": lambda: True})[2].train()
    assert at.taught == at.answered == at.global_step == 6


def test_the_test_split_is_closed_to_methods(start: Start) -> None:
    run, _, _ = start(Plain)
    with pytest.raises(ValueError, match="never sees the test split"):
        run.split("test")
    assert len(list(run.split("val"))) == 3


def test_students_are_made_in_setup_only(start: Start) -> None:
    run, _, _ = start(Plain)
    with pytest.raises(RuntimeError, match="belongs in setup"):
        run.new_student("late")


def test_calibrate_shows_the_first_training_batches(start: Start) -> None:
    run, _, _ = start(Plain)
    run.teacher.net.eval()
    sizes: list[int] = []
    run.teacher.calibrate(lambda out: sizes.append(len(out.logits)), 2)
    assert sizes == [6, 6]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_on_the_gpu_follows_the_cpu(start: Start, tmp_path: Path) -> None:
    class NoDropout(Plain):
        def step(self, batch: Any, run: Any) -> Mapping[str, Tensor]:
            run.student.net.drop.eval()
            moved = Batch(batch.x.to(run.device), batch.y.to(run.device), batch.index)
            return super().step(moved, run)

    losses = {}
    for device in ("cpu", "cuda"):
        _, _, loop = start(NoDropout, folder=tmp_path / device, device=device)
        loop._evaluate = dict
        losses[device] = [row["train"]["loss"] for row in loop.train().rows]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-4)
