"""at, nst, vid, fsp, ft: losses on the stages' maps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fake_run import FakeRun, batch, copy_state, net, same_state, start, train_phase

from kdbench.api import NotApplicable, Tap
from kdbench_methods.at import AT, attention_loss
from kdbench_methods.fsp import FSP, flow, flow_loss, has_stem
from kdbench_methods.ft import FT, energy_l1, translator
from kdbench_methods.nst import NST, polynomial_mmd
from kdbench_methods.reviewkd import hierarchical_loss
from kdbench_methods.vid import VID, Gaussian, gaussian_nll

FS = torch.tensor([[[[1, 0], [2, 1]], [[0, 1], [1, 2]]]], dtype=torch.float64)
FT_MAP = torch.tensor([[[[2, 0], [0, 1]], [[1, 1], [0, 1]]]], dtype=torch.float64)


def maps(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def tensors(*shapes):
    return [torch.tensor(maps(*shape, seed=i)) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize(
    "loss",
    [attention_loss, polynomial_mmd, hierarchical_loss, energy_l1, lambda s, t: flow_loss([s, s], [t, t])],
)
class TestEveryMapLoss:
    def test_half_precision_does_not_overflow(self, loss):
        s, t = (200 * x.half() for x in tensors((2, 3, 8, 8), (2, 3, 8, 8)))
        assert torch.isfinite(loss(s, t))

    def test_dead_maps_stay_finite(self, loss):
        s = torch.zeros(2, 3, 4, 4, requires_grad=True)
        loss(s, torch.rand(2, 3, 4, 4)).backward()
        assert torch.isfinite(s.grad).all()

    def test_zero_for_equal_maps(self, loss):
        (s,) = tensors((2, 3, 4, 4))
        assert float(loss(s, s)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "loss",
    [
        attention_loss,
        lambda s, t: attention_loss(s, t, "paper"),
        polynomial_mmd,
        hierarchical_loss,
        energy_l1,
        lambda s, t: flow_loss([s, s], [t, t]),
    ],
)
def test_gradients(loss):
    s, t = tensors((2, 2, 3, 3), (2, 2, 3, 3))
    assert torch.autograd.gradcheck(lambda x: loss(x, t), (s.requires_grad_(),))


class TestAT:
    def test_golden(self):
        assert float(attention_loss(FS, FT_MAP)) == pytest.approx(0.2974521, abs=1e-6)
        assert float(attention_loss(FS, FT_MAP, "paper")) == pytest.approx(1.0907834, abs=1e-6)

    def test_against_numpy(self):
        s, t = maps(3, 4, 5, 5), maps(3, 2, 5, 5, seed=1)

        def q(x):
            a = (x**2).mean(1).reshape(3, -1)
            return a / np.linalg.norm(a, axis=1, keepdims=True)

        a, b = torch.tensor(s), torch.tensor(t)
        assert float(attention_loss(a, b)) == pytest.approx(((q(s) - q(t)) ** 2).mean(), rel=1e-12)
        expected = np.linalg.norm(q(s) - q(t), axis=1).mean()
        assert float(attention_loss(a, b, "paper")) == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize(("variant", "weight"), [("code", 10.0), ("paper", 5.0)])
    def test_weight_of_the_variants(self, variant, weight):
        run = FakeRun(net(0), net(1, widths=(5, 7, 9)))
        method = AT(AT.Params(variant=variant, beta=10.0))
        start(method, run)
        b = batch()
        S, T = run.student(b.x), run.teach(run.teacher, b.x)
        got = float(method.loss(S, [T], b, run)["at"].detach())
        each = [float(attention_loss(S.feats[Tap(i)], T.feats[Tap(i)], variant).detach()) for i in (1, 2, 3)]
        assert got == pytest.approx(weight * sum(each), rel=1e-5)

    def test_number_of_stages_and_sizes(self):
        run = FakeRun(net(0), net(1, strides=(1, 2, 2)))
        method = AT(AT.Params(stages=2))
        (phase,) = start(method, run)
        assert run.student.wanted == [Tap(2), Tap(3)]
        assert all(math.isfinite(v) for row in train_phase(method, phase, run) for v in row.values())

    @pytest.mark.parametrize("cls", [AT, NST])
    def test_maps_of_one_position_say_nothing(self, cls):
        run = FakeRun(net(0), net(1, strides=(16, 1, 1)))
        with pytest.raises(NotApplicable, match="1x1"):
            start(cls(cls.Params()), run)


class TestNST:
    def test_golden(self):
        assert float(polynomial_mmd(FS, FT_MAP)) == pytest.approx(0.9444444, abs=1e-6)

    def test_against_numpy_with_different_channel_counts(self):
        s, t = maps(2, 3, 4, 4), maps(2, 5, 4, 4, seed=1)

        def unit(x):
            x = x.reshape(*x.shape[:2], -1)
            return x / np.linalg.norm(x, axis=2, keepdims=True)

        def kernel(a, b):
            return np.mean([[[(x @ y) ** 2 for y in b[i]] for x in a[i]] for i in range(2)])

        a, b = unit(s), unit(t)
        expected = kernel(b, b) + kernel(a, a) - 2 * kernel(a, b)
        assert float(polynomial_mmd(torch.tensor(s), torch.tensor(t))) == pytest.approx(expected, rel=1e-12)

    def test_sum_of_stages(self):
        run = FakeRun(net(0), net(1, widths=(5, 7, 9), strides=(1, 2, 2)))
        method = NST(NST.Params())
        (phase,) = start(method, run)
        assert math.isfinite(train_phase(method, phase, run)[0]["nst"])


class TestVID:
    def test_golden(self):
        one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        got = gaussian_nll(0.5 * one, 1.5 * one, torch.tensor([5.0], dtype=torch.float64))
        assert float(got) == pytest.approx(0.9047190, abs=1e-6)

    def test_against_numpy(self):
        m, t = maps(2, 3, 4, 4), maps(2, 3, 4, 4, seed=1)
        v = np.array([0.5, 2.0, 7.0])
        wide = v[None, :, None, None]
        expected = (((m - t) ** 2 / wide + np.log(wide)) / 2).mean()
        got = gaussian_nll(*(torch.tensor(x) for x in (m, t, v)))
        assert float(got) == pytest.approx(expected, rel=1e-12)

    def test_gradient(self):
        m, t = tensors((2, 2, 2, 2), (2, 2, 2, 2))
        v = torch.tensor([0.5, 2.0], dtype=torch.float64)
        assert torch.autograd.gradcheck(
            lambda a, b: gaussian_nll(a, t, b), (m.requires_grad_(), v.requires_grad_())
        )

    @pytest.mark.parametrize("start_value", [1e-3, 5.0, 50.0])
    def test_the_variance_starts_where_it_should(self, start_value):
        made = Gaussian(2, 3, start_value)
        torch.testing.assert_close(made.variance, torch.full((3,), start_value), rtol=1e-3, atol=1e-5)

    def test_the_variance_is_learned(self):
        run = FakeRun(net(0), net(1, widths=(5, 7, 9)))
        method = VID(VID.Params())
        (phase,) = start(method, run)
        assert "regressors.0.raw_variance" in dict(method.named_parameters())
        before = [r.variance.detach().clone() for r in method.regressors]
        train_phase(method, phase, run, steps=3, lr=0.5)
        for regressor, old in zip(method.regressors, before, strict=True):
            assert (regressor.variance != old).all()
            # the fit is far better than a variance of 5 says
            assert (regressor.variance < old).all()

    def test_the_mean_learns_too(self):
        run = FakeRun(net(0), net(1, widths=(5, 7, 9), strides=(1, 2, 2)))
        method = VID(VID.Params(stages=1))
        (phase,) = start(method, run)
        before = copy_state(method.regressors[0].mean)
        train_phase(method, phase, run)
        assert not same_state(copy_state(method.regressors[0].mean), before)


class TestFSP:
    def test_golden(self):
        a = torch.tensor([[[[1, 2], [0, 1]]]], dtype=torch.float64)
        b = torch.tensor([[[[1, 1], [2, 0]], [[0, 1], [1, 1]]]], dtype=torch.float64)
        torch.testing.assert_close(flow(a, b), torch.tensor([[[0.75, 0.75]]], dtype=torch.float64))

    def test_against_numpy(self):
        s = [maps(2, 3, 4, 4), maps(2, 5, 2, 2, seed=1), maps(2, 6, 2, 2, seed=2)]
        t = [maps(2, 3, 8, 8, seed=3), maps(2, 5, 4, 4, seed=4), maps(2, 6, 4, 4, seed=5)]

        def g(a, b):
            k = a.shape[2] // b.shape[2]
            side = b.shape[2]
            a = a.reshape(2, a.shape[1], side, k, side, k).mean((3, 5))
            return np.einsum("nihw,njhw->nij", a, b) / side**2

        expected = sum(((g(s[i], s[i + 1]) - g(t[i], t[i + 1])) ** 2).mean() for i in range(2))
        got = flow_loss([torch.tensor(x) for x in s], [torch.tensor(x) for x in t])
        assert float(got) == pytest.approx(expected, rel=1e-12)

    def test_phases(self):
        run = FakeRun(net(0), net(1))
        method = FSP(FSP.Params())
        first, second = start(method, run)
        assert (first.evaluate, second.evaluate) == (False, True)
        assert first.optimizers["main"].schedule == "constant"
        assert first.budget + second.budget == pytest.approx(1)
        head = copy_state(run.student.net.head)
        assert set(train_phase(method, first, run)[0]) == {"fsp"}
        assert same_state(copy_state(run.student.net.head), head)
        assert set(train_phase(method, second, run)[0]) == {"task"}
        assert not same_state(copy_state(run.student.net.head), head)

    def test_joint_with_connectors(self):
        run = FakeRun(net(0), net(1, widths=(5, 7, 9)))
        method = FSP(FSP.Params(connectors=True, **FSP.presets["joint"]))
        (phase,) = start(method, run)
        before = copy_state(method.connectors)
        assert set(train_phase(method, phase, run)[0]) == {"task", "fsp"}
        assert not same_state(copy_state(method.connectors), before)

    def test_the_stem_begins_the_first_flow_where_both_have_one_of_equal_width(self):
        def taps(student, teacher, **params):
            run = FakeRun(net(0, widths=student), net(1, widths=teacher))
            method = FSP(FSP.Params(**params))
            start(method, run)
            return run, method, [a.at for a, _ in method.pairs]

        run, method, at = taps((4, 6, 8), (4, 6, 8))
        assert at == [0, 1, 2, 3]
        assert Tap(0) in run.student.wanted
        assert Tap(0) in run.teacher.wanted
        b = batch()
        S, T = run.student(b.x), run.teach(run.teacher, b.x)
        s, t = ([out.feats[Tap(i)] for i in range(4)] for out in (S, T))
        parts = method.loss(S, [T], b, run)
        assert float(parts["fsp"].detach()) == pytest.approx(float(flow_loss(s, t).detach()), rel=1e-5)
        assert taps((4, 6, 8), (4, 6, 8), stem=False)[2] == [1, 2, 3]
        # the stem is as wide as the first stage in these networks
        assert taps((4, 6, 8), (5, 6, 8))[2] == [1, 2, 3]
        assert taps((4, 6, 8), (5, 6, 8), connectors=True)[2] == [0, 1, 2, 3]

    def test_networks_without_a_stem(self):
        handle = FakeRun(net(0)).student
        assert has_stem(handle)
        for stages in ((0, 1, 2), (1, 3, 5, 7), (2, 5, 8, 11)):
            handle.stages = stages
            assert not has_stem(handle)

    def test_needs_depend_on_the_connectors(self):
        assert FSP.needs.equal_channels
        assert not FSP.requires(FSP.Params(connectors=True)).equal_channels

    def test_one_stage_has_no_flow(self):
        run = FakeRun(net(0), net(1))
        run.student.stages = (3,)
        with pytest.raises(NotApplicable, match="two stages"):
            start(FSP(FSP.Params()), run)


class TestFT:
    def test_golden_of_the_raw_factor(self):
        from kdbench_methods.feed import unit_l1

        s, t = torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[2.0, 2, 1, 0]])
        assert float(unit_l1(s, t)) == pytest.approx(0.4325742, abs=1e-6)

    def test_energy_against_numpy(self):
        s, t = maps(2, 3, 4, 4), maps(2, 5, 4, 4, seed=1)

        def unit(x):
            a = (x**2).mean(1).reshape(2, -1)
            return a / np.linalg.norm(a, axis=1, keepdims=True)

        got = energy_l1(torch.tensor(s), torch.tensor(t))
        assert float(got) == pytest.approx(np.abs(unit(s) - unit(t)).mean(), rel=1e-12)

    @pytest.mark.parametrize("bn", [False, True])
    def test_translator(self, bn):
        made = translator(4, 6, bn=bn)
        convs = [m for m in made if isinstance(m, torch.nn.Conv2d)]
        assert [m.out_channels for m in convs] == [4, 6, 6]
        assert all(m.bias is not None for m in convs)
        norms = [m.num_features for m in made if isinstance(m, torch.nn.BatchNorm2d)]
        assert norms == ([4, 6, 6] if bn else [])
        assert made(torch.randn(2, 4, 1, 1)).shape == (2, 6, 1, 1)

    @pytest.mark.parametrize("factor", ["raw", "energy"])
    def test_factors_are_pooled_after_the_translator(self, factor):
        run = FakeRun(net(0, strides=(1, 1, 2)), net(1, widths=(5, 7, 10)))
        method = FT(FT.Params(beta=3.0, factor=factor))
        start(method, run)
        b = batch()
        with torch.no_grad():
            S, T = run.student(b.x), run.teach(run.teacher, b.x)
            s = method.translator(S.feats[Tap(-1)])
            t = method.paraphraser.encoder(T.feats[Tap(-1)])
            got = method.loss(S, [T], b, run)["ft"]
        k = s.shape[2] // t.shape[2]
        assert k > 1
        s = s.reshape(*t.shape[:3], k, t.shape[3], k).mean((3, 5))
        a, b = (x.double().numpy() for x in (s, t))
        if factor == "energy":
            a, b = ((x**2).mean(1) for x in (a, b))
        a, b = (x.reshape(len(x), -1) for x in (a, b))
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
        assert float(got) == pytest.approx(3 * np.abs(a - b).mean(), rel=1e-4)

    def test_needs_depend_on_the_batch_norm(self):
        assert FT.requires(FT.Params()) == FT.needs
        assert FT.requires(FT.Params(**FT.presets["cifar100"])).min_batch == 2

    def test_energies_of_one_position_say_nothing(self):
        run = FakeRun(net(0), net(1, strides=(16, 1, 1)))
        with pytest.raises(NotApplicable, match="1x1"):
            start(FT(FT.Params(factor="energy")), run)
        start(FT(FT.Params()), run)

    @pytest.mark.parametrize("preset", list(FT.presets))
    def test_the_paraphraser_trains_first_and_alone(self, preset):
        run = FakeRun(net(0), net(1, widths=(5, 7, 10), strides=(1, 2, 2)))
        method = FT(FT.Params(**FT.presets[preset]))
        first, second = start(method, run)
        assert (first.evaluate, method.paraphraser.factors) == (False, 5)
        opt, rate = first.optimizers["main"], method.hp.paraphrase_lr
        assert (opt.schedule, dict(opt.kw)) == ("constant", {} if rate is None else {"lr": rate})
        assert first.budget + second.budget == pytest.approx(1)
        student, own = copy_state(run.student.net), copy_state(method.paraphraser)
        target = run.teacher(batch().x).feats[Tap(-1)]

        def gap():
            with torch.no_grad():
                d = target - method.paraphraser(target)
            return float((d.abs() if method.hp.reconstruction == "l1" else d.square()).mean())

        before = gap()
        rows = train_phase(method, first, run, steps=8, lr=0.1)
        assert rows[0]["paraphrase"] == pytest.approx(before, rel=1e-5)
        assert gap() < before
        assert same_state(copy_state(run.student.net), student)
        trained = copy_state(method.paraphraser)
        assert not same_state(trained, own)
        moving = copy_state(method.translator)
        assert set(train_phase(method, second, run)[0]) == {"task", "ft"}
        assert same_state(copy_state(method.paraphraser), trained)
        assert not same_state(copy_state(method.translator), moving)
