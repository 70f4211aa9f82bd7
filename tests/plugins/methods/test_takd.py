"""takd: an assistant between teacher and student, of the pair's or the student's architecture."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fake_run import FakeRun, batch, copy_state, net, same_state, start, train_phase

from kdbench_methods.takd import TAKD


@pytest.mark.parametrize(("assistant", "width"), [("pair", 9), ("student", 8)])
def test_the_assistant_is_trained_first_and_then_kept(assistant, width):
    run, method = FakeRun(net(0), net(1)), TAKD(TAKD.Params(assistant=assistant))
    first, second = start(method, run)
    made = run.students["assistant"].net
    assert made.head.in_features == width
    assert (first.name, second.name) == ("assistant", "student")
    student, fresh, teacher = (copy_state(n) for n in (run.student.net, made, run.teacher.net))
    train_phase(method, first, run)
    assert same_state(student, copy_state(run.student.net))
    assert not same_state(fresh, copy_state(made))
    trained = copy_state(made)
    train_phase(method, second, run)
    assert same_state(trained, copy_state(made))
    assert not same_state(student, copy_state(run.student.net))
    assert same_state(teacher, copy_state(run.teacher.net))
    assert list(method.deploy(run)) == ["student"]


def test_losses_of_both_phases():
    run, method = FakeRun(net(0), net(1)), TAKD(TAKD.Params(kd_weight=0.7, temperature=3.0))
    first, second = start(method, run)
    b = batch(8)
    with torch.no_grad():
        A, T = method.assistant(b.x), run.teach(run.teacher, b.x)
    want = run.task.loss(A, b), run.task.divergence(A, T, 3.0)
    (parts,) = train_phase(method, first, run, steps=1)
    assert parts["task"] == pytest.approx(0.3 * float(want[0]), rel=1e-5)
    assert parts["kd"] == pytest.approx(0.7 * float(want[1]), rel=1e-5)
    # in the second phase the teacher has no say: only the assistant, in eval mode
    with torch.no_grad():
        run.student.net.train()
        A, S = method.assistant.eval()(b.x), run.student(b.x)
    want = run.task.loss(S, b), run.task.divergence(S, A, 3.0)
    (parts,) = train_phase(method, second, run, steps=1)
    assert parts["task"] == pytest.approx(0.3 * float(want[0]), rel=1e-5)
    assert parts["kd"] == pytest.approx(0.7 * float(want[1]), rel=1e-5)


def test_needs_follow_the_assistant():
    assert TAKD.requires(TAKD.Params()) == TAKD.needs
    assert TAKD.needs.assistants == TAKD.needs.teachers == 1
    alone = TAKD.requires(TAKD.Params(**TAKD.presets["one-teacher"]))
    assert alone == replace(TAKD.needs, assistants=0)
    assert alone.reads == "logits"


def test_the_presets_are_valid():
    for name, values in TAKD.presets.items():
        assert TAKD.Params(**values), name
