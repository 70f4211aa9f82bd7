"""Every method and variant through a plain training loop: finite, complete, and harmless to its teachers."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from fake_run import FakeRun, copy_state, net, same_state, start, train_phase

CASES = {
    "vanilla": ("vanilla:Vanilla", {}),
    "kd": ("kd:KD", {}),
    "dkd": ("dkd:DKD", {}),
    "fitnet": ("fitnet:FitNet", {}),
    "fitnet two-phase": ("fitnet:FitNet", {"stages": "two-phase", "kd_weight": 1.0}),
    "ab": ("ab:AB", {}),
    "ab batch": ("ab:AB", {"teacher_bn": "batch"}),
    "ofd": ("ofd:OFD", {}),
    "feed": ("feed:FEED", {}),
    "feed paraphrase": ("feed:FEED", {"paraphrase": True}),
    "feed sequential": ("feed:FEED", {"variant": "sequential", "generations": 2}),
    "ffl": ("ffl:FFL", {}),
    "ffl separate": ("ffl:FFL", {"share": "none"}),
    "dfad": ("dfad:DFAD", {"nz": 8, "batch_size": 4, "student_steps": 2}),
    "rco": ("rco:RCO", {"anchors": 2}),
}


def make(case, **kw):
    target, params = CASES[case]
    module, _, name = target.partition(":")
    cls = getattr(importlib.import_module(f"kdbench_methods.{module}"), name)
    needs = cls.requires(cls.Params(**params))
    run = FakeRun(net(0), *(net(1 + i, widths=(5, 7, 9)) for i in range(needs.teachers)), **kw)
    run.route = [lambda: copy_state(net(1, widths=(5, 7, 9))) for _ in range(needs.route)]
    method = cls(cls.Params(**params))
    return run, method, start(method, run)


@pytest.mark.parametrize("amp", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_trains(case, amp):
    run, method, phases = make(case, amp=amp)
    teachers = [copy_state(t.net) for t in run.teachers]
    own = dict(method.named_parameters())
    before = {k: p.detach().clone() for k, p in own.items()}
    students = {n: copy_state(h.net) for n, h in run.students.items()}
    for phase in phases:
        for parts in train_phase(method, phase, run):
            assert parts
            assert all(math.isfinite(v) for v in parts.values()), parts
    assert all(same_state(copy_state(t.net), s) for t, s in zip(run.teachers, teachers, strict=True))
    assert all(p.grad is None for t in run.teachers for p in t.net.parameters())
    # a convolution before BatchNorm has a bias without effect; everything else must have been reached
    idle = [
        k for k, p in own.items() if p.grad is None or (k.endswith("weight") and torch.equal(p, before[k]))
    ]
    assert idle == []
    for name, handle in run.students.items():
        after = copy_state(handle.net)
        assert not any(torch.equal(after[k], students[name][k]) for k in after if k.endswith("weight")), name


@pytest.mark.parametrize("case", CASES)
def test_deploys_the_student_without_the_methods_modules(case):
    run, method, _ = make(case)
    nets = method.deploy(run)
    assert next(iter(nets)) == "student"
    assert nets["student"] is run.student.net
    own = {id(p) for p in method.parameters()}
    if not method.deploys_extra:
        assert not any(id(p) in own for n in nets.values() for p in n.parameters())


@pytest.mark.parametrize("case", CASES)
def test_state_round_trip_gives_the_same_next_step(case):
    def losses(interrupt):
        run, method, phases = make(case)
        phase = phases[-1]
        train_phase(method, phase, run, steps=1)
        if interrupt:
            saved = (
                {n: copy_state(h.net) for n, h in run.students.items()},
                copy_state(method),
                run.rng.get_state(),
            )
            run, method, phases = make(case)
            phase = phases[-1]
            for name, handle in run.students.items():
                handle.net.load_state_dict(saved[0][name])
            method.load_state_dict(saved[1])
            run.rng.set_state(saved[2])
        return train_phase(method, phase, run, steps=1)

    if case == "dfad":  # the generator's Adam starts anew in train_phase, in both runs alike
        assert losses(True)[0]["student"] == losses(False)[0]["student"]
    assert losses(True) == losses(False)
