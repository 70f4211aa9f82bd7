"""dml and tfkd's self-training: networks that a method makes and trains besides the student."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fake_run import FakeRun, batch, copy_state, net, same_state, start, train_phase

from kdbench.api import Out
from kdbench_methods.dml import DML
from kdbench_methods.tfkd import TfKD


def moved(before, module):
    return not same_state(before, copy_state(module))


class TestDML:
    def outs(self, count=3):
        generator = torch.Generator().manual_seed(0)
        return [Out(torch.randn(5, 4, generator=generator, dtype=torch.float64)) for _ in range(count)]

    def test_divergence_against_numpy(self):
        run, outs = FakeRun(net(0)), self.outs()
        p = [np.exp(o.logits.numpy()) / np.exp(o.logits.numpy()).sum(1, keepdims=True) for o in outs]
        want = sum((p[j] * np.log(p[j] / p[1])).sum() / 5 for j in (0, 2)) / 2
        assert float(DML().divergence(1, outs, run)) == pytest.approx(want, abs=1e-10)

    def test_no_gradient_reaches_the_target(self):
        run, outs = FakeRun(net(0)), self.outs(2)
        for out in outs:
            out.logits.requires_grad_()
        DML().divergence(0, outs, run).backward()
        assert outs[0].logits.grad is not None
        assert outs[1].logits.grad is None

    @pytest.mark.parametrize("update", ["alternating", "simultaneous"])
    @pytest.mark.parametrize("networks", [2, 3])
    def test_every_network_steps(self, update, networks):
        run, method = FakeRun(net(0)), DML(DML.Params(networks=networks, update=update))
        (phase,) = start(method, run)
        before = {n: copy_state(h.net) for n, h in run.students.items()}
        (parts,) = train_phase(method, phase, run, steps=1)
        assert len(parts) == 2 * networks
        assert all(np.isfinite(v) for v in parts.values())
        assert all(moved(before[n], h.net) for n, h in run.students.items())
        names = tuple(h.name for h in method.networks)
        assert run.stepped == ([(n,) for n in names] if update == "alternating" else [names])
        assert list(method.deploy(run)) == list(names)

    def test_alternating_shows_the_second_network_the_new_first_one(self):
        seen = {}
        for update in ("alternating", "simultaneous"):
            run, method = FakeRun(net(0)), DML(DML.Params(update=update))
            (phase,) = start(method, run)
            seen[update] = train_phase(method, phase, run, steps=1, lr=0.5)[0]
        a, b = seen["alternating"], seen["simultaneous"]
        assert a["mutual"] == b["mutual"]
        assert a["mutual_peer1"] != b["mutual_peer1"]


class TestTfKDSelf:
    def test_phases_train_one_network_each(self):
        run, method = FakeRun(net(0)), TfKD()
        first, second = start(method, run)
        peer = run.students["self_teacher"]
        assert (first.budget, second.budget) == (0.5, 0.5)
        student = copy_state(run.student.net)
        train_phase(method, first, run)
        assert same_state(student, copy_state(run.student.net))
        trained = copy_state(peer.net)
        train_phase(method, second, run)
        assert same_state(trained, copy_state(peer.net))
        assert moved(student, run.student.net)
        assert list(method.deploy(run)) == ["student", "self_teacher"]

    def test_loss(self):
        run, method = FakeRun(net(0)), TfKD(TfKD.Params(alpha=0.8, temperature=3.0, multiplier=2.0))
        _, second = start(method, run)
        peer = run.students["self_teacher"]
        b = batch(8)
        with torch.no_grad():
            run.student.net.train()
            S = run.student(b.x, ())
            P = peer.eval()(b.x, ())
        want = run.task.loss(S, b), run.task.divergence(S, P, 3.0)
        (parts,) = train_phase(method, second, run, steps=1)
        assert parts["task"] == pytest.approx(0.2 * float(want[0]), rel=1e-5)
        assert parts["kd"] == pytest.approx(0.8 * 2 / 4 * float(want[1]), rel=1e-5)

    def test_reg_has_one_phase_and_no_peer(self):
        run, method = FakeRun(net(0)), TfKD(TfKD.Params(variant="reg"))
        assert [p.name for p in start(method, run)] == ["reg"]
        assert list(run.students) == ["student"]
        assert list(method.deploy(run)) == ["student"]
