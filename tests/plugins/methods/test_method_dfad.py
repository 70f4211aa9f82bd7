"""dfad: discrepancy, generator, alternating steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fake_run import FakeRun, copy_state, net, pair_of_logits, same_state, start, train_phase

from kdbench.api import NotApplicable
from kdbench_methods.dfad import DFAD, Generator, discrepancy

SMALL = {"nz": 8, "batch_size": 4, "iterations": 2, "student_steps": 3}


def test_golden():
    z = pair_of_logits()
    assert float(discrepancy(z.s, z.t)) == pytest.approx(0.8333333, abs=1e-6)


def test_against_numpy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 5)), rng.normal(size=(4, 5))
    assert float(discrepancy(torch.tensor(a), torch.tensor(b))) == pytest.approx(
        np.abs(a - b).mean(), rel=1e-12
    )


def test_gradient_and_half_precision():
    torch.manual_seed(0)
    a = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    b = torch.randn(3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: discrepancy(x, b), (a,))
    big = torch.full((2, 3), 6e4, dtype=torch.float16)
    assert float(discrepancy(big, -big)) == pytest.approx(2 * float(big[0, 0]))


@pytest.mark.parametrize("size", [4, 8, 28, 32, 36, 64, 96])
@pytest.mark.parametrize("chans", [1, 3])
def test_generator_fills_any_size_that_four_divides(size, chans):
    torch.manual_seed(0)
    images = Generator(16, size, chans)(torch.randn(5, 16))
    assert images.shape == (5, chans, size, size)
    np.testing.assert_allclose(images.mean((0, 2, 3)).detach(), 0, atol=1e-5)
    np.testing.assert_allclose(images.var((0, 2, 3), correction=0).detach(), 1, atol=1e-2)


def test_the_dense_layer_of_large_images_stays_small():
    assert Generator(256, 32).layers[0].out_features == 128 * 8 * 8
    assert Generator(256, 224).layers[0].out_features == 128 * 7 * 7


@pytest.mark.parametrize("size", [30, 2, 0])
def test_other_sizes_are_not_applicable(size):
    with pytest.raises(ValueError, match="not divisible by 4"):
        Generator(8, size)
    run = FakeRun(net(0), net(1))
    object.__setattr__(run.data, "image_size", size)
    with pytest.raises(NotApplicable, match=f"dfad: image size {size}"):
        start(DFAD(DFAD.Params()), run)


class TestSteps:
    def test_five_to_one(self):
        run = FakeRun(net(0), net(1))
        (phase,) = start(method := DFAD(DFAD.Params(**SMALL)), run)
        assert (phase.source, phase.optimizers["G"].kind, phase.optimizers["G"].kw["lr"]) == (2, "adam", 1e-3)
        losses = train_phase(method, phase, run, steps=1)[0]
        assert run.stepped == [("S",)] * 3 + [("G",)]
        assert losses["student"] > 0 > losses["generator"]
        assert DFAD.Params().student_steps == 5

    def test_each_step_moves_its_own_network_only(self):
        run = FakeRun(net(0), net(1))
        (phase,) = start(method := DFAD(DFAD.Params(**{**SMALL, "student_steps": 1})), run)
        weights = lambda m: {k: v for k, v in copy_state(m).items() if k.endswith("weight")}  # noqa: E731
        seen = []
        original = run.optimize

        def watch(loss, *names, **kw):
            before = weights(run.student.net), weights(method.generator)
            original(loss, *names, **kw)
            after = weights(run.student.net), weights(method.generator)
            seen.append((names, *(not same_state(a, b) for a, b in zip(before, after, strict=True))))

        run.optimize = watch
        train_phase(method, phase, run, steps=1)
        assert seen == [(("S",), True, False), (("G",), False, True)]

    def test_the_teacher_is_untouched_but_passes_a_gradient_to_the_images(self):
        run = FakeRun(net(0), net(1))
        (phase,) = start(method := DFAD(DFAD.Params(**SMALL)), run)
        before = copy_state(run.teacher.net)
        train_phase(method, phase, run)
        assert same_state(copy_state(run.teacher.net), before)
        assert all(p.grad is None for p in run.teacher.net.parameters())
        x = torch.randn(2, 3, 16, 16, requires_grad=True)
        with_grad = torch.autograd.grad(method.gap(x, run, grad=True), x)[0]
        without = torch.autograd.grad(method.gap(x, run, grad=False), x)[0]
        assert not torch.allclose(with_grad, without)

    def test_noise_comes_from_the_generator_of_the_run(self):
        run = FakeRun(net(0), net(1))
        method = DFAD(DFAD.Params(**SMALL))
        state = run.rng.get_state()
        a, b = method.noise(run), method.noise(run)
        run.rng.set_state(state)
        torch.manual_seed(123)
        torch.testing.assert_close(method.noise(run), a, rtol=0, atol=0)
        assert not torch.equal(a, b)

    def test_the_generator_finds_images_on_which_the_networks_differ(self):
        run = FakeRun(net(0), net(1))
        torch.manual_seed(0)
        method = DFAD(DFAD.Params(nz=8, batch_size=32, student_steps=1, generator_lr=1e-2))
        (phase,) = start(method, run)
        # the student stands still, so only the generator moves the discrepancy
        losses = train_phase(method, phase, run, steps=40, lr=0.0)
        found = [-x["generator"] for x in losses]
        assert sum(found[-5:]) > 1.1 * sum(found[:5])
