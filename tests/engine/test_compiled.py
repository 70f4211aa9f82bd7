"""Compiled networks give what they give uncompiled, at every tap; what cannot be compiled runs as it is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import Net, make_run
from torch import Tensor

from kdbench.engine import compiled
from kdbench.engine.build import prepare_method
from kdbench.engine.evaluation import evaluate_all
from kdbench.engine.loop import Loop
from kdbench.engine.seeds import seed_everything
from kdbench.protocol.types import Tap
from kdbench_methods.at import AT
from kdbench_methods.kd import KD

TAPS = (Tap(0), Tap(1), Tap(1, when="pre"), Tap("bn2"), Tap("conv2"))
X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Quiet(Net):
    """Without dropout, whose random numbers are another matter."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = torch.nn.Identity()


def refuse(graph: Any, inputs: Any) -> Any:
    raise TypeError("no kernel for this machine")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def trained(
    folder: Path, cls: type = KD, net: type = Quiet, **recipe: Any
) -> tuple[dict[str, Tensor], Any, Any]:
    folder.mkdir(exist_ok=True)
    run = make_run(folder, net=net, **recipe)
    method = prepare_method(cls, cls.Params(), run)
    seed_everything(1, deterministic=False)
    at = Loop(run, method, folder, evaluate=lambda: evaluate_all(method, run)).train()
    return run.student.net.state_dict(), run, at


def test_taps_logits_and_pooled_are_the_same(tmp_path: Path) -> None:
    run = make_run(tmp_path, net=Quiet, compile="default")
    run.lock()
    for handle, frozen in ((run.student, False), (run.teacher, True)):
        sites = handle.sites(TAPS[:-1] if frozen else TAPS)
        with torch.set_grad_enabled(not frozen):
            got = handle.assemble(handle.capture(X, sites.values(), frozen=frozen), sites)
            handle.compiler = None
            expected = handle.assemble(handle.capture(X, sites.values(), frozen=frozen), sites)
        assert got.logits.requires_grad == (not frozen)
        torch.testing.assert_close(got.logits, expected.logits)
        torch.testing.assert_close(got.pooled, expected.pooled)
        for tap in sites:
            torch.testing.assert_close(got.feats[tap], expected.feats[tap])
    assert run.compiler is not None
    assert run.compiler.notes == []
    assert run.end_step(lambda: 2.5)
    assert not run.end_step(lambda: 1.0)
    assert run.take_compile_s() == 2.5
    assert run.take_compile_s() == 0.0


@pytest.mark.parametrize("cls", [KD, AT])
def test_a_compiled_cell_trains_to_the_same_weights(tmp_path: Path, cls: type) -> None:
    plain, _, _ = trained(tmp_path / "plain", cls)
    other, run, at = trained(tmp_path / "compiled", cls, compile="default")
    for key, value in plain.items():
        torch.testing.assert_close(other[key], value, rtol=1e-4, atol=1e-5)
    assert run.notes() == []
    # the first step, and the first with the smaller last batch, compile: forward and backward
    assert at.compile_s > 20 * sum(row["train_s"] for row in at.rows)
    assert [row["step_ms"] > 0 for row in at.rows] == [True, True]


def test_the_teacher_is_not_compiled_anew_in_every_epoch(tmp_path: Path) -> None:
    run = make_run(tmp_path, net=Quiet, compile="default")
    run.lock()
    for _ in range(3):
        run.teach(run.teacher, X)
        run.teacher.frozen.forget()
    with torch.no_grad():
        run.teacher.net.conv1.weight.mul_(2.0)
        out, expected = run.teach(run.teacher, X).logits, run.teacher.net(X)
    torch.testing.assert_close(out, expected)
    assert run.compiler is not None
    assert len(run.compiler._made) == 1


def test_what_cannot_be_compiled_runs_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, _, _ = trained(tmp_path / "plain")
    monkeypatch.setattr(compiled, "BACKEND", refuse)
    other, run, _ = trained(tmp_path / "compiled", compile="default")
    assert [note.split(" (")[0] for note in run.notes()] == [
        "teacher0 is not compiled",
        "student is not compiled",
    ]
    assert "no kernel for this machine" in run.notes()[0]
    for key, value in plain.items():
        torch.testing.assert_close(other[key], value)


def test_the_state_of_a_compiled_student_has_its_own_names(tmp_path: Path) -> None:
    state, _, _ = trained(tmp_path, compile="default")
    assert state.keys() == Quiet().state_dict().keys()


def test_copies_of_a_handle_are_not_compiled(tmp_path: Path) -> None:
    """A deployable that holds a handle is copied to count its operations."""
    run = make_run(tmp_path, net=Quiet, compile="default")
    run.lock()
    run.student(X)
    made = copy.deepcopy(run.student)
    assert made.compiler is None
    torch.testing.assert_close(made(X).logits, run.student.net(X))
