"""sp, cc, rkd, pkt: what the images of a batch are to each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fake_run import batch, copy_state, net, start, train_phase
from pooled_run import PooledRun

from kdbench.api import NotApplicable
from kdbench_methods.cc import CC, neighbour_loss, rbf_correlation, rbf_loss
from kdbench_methods.crd import CRD
from kdbench_methods.pkt import PKT, neighbour_probabilities, pkt_loss
from kdbench_methods.rkd import RKD, angle_loss, angles, distance_loss, relative_distances
from kdbench_methods.sp import SP, similarity_loss

F = torch.tensor([[1, 2], [0, 1], [1, 1]], dtype=torch.float64)
G = torch.tensor([[1, 1], [1, 1], [0, 1]], dtype=torch.float64)


def draws(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def pair(b=5, ds=4, dt=7):
    return torch.tensor(draws(b, ds)), torch.tensor(draws(b, dt, seed=1))


def smooth_l1(a, b):
    d = np.abs(a - b)
    return np.where(d < 1, d**2 / 2, d - 0.5).mean()


def smooth_gradient(loss, *, b=4, d=3):
    s = torch.tensor(draws(b, d, seed=2), requires_grad=True)
    t = torch.tensor(draws(b, d, seed=3))
    return torch.autograd.gradcheck(lambda x: loss(x, t), (s,))


@pytest.mark.parametrize("loss", [similarity_loss, rbf_loss, distance_loss, angle_loss, pkt_loss])
class TestEveryRelation:
    def test_gradient(self, loss):
        assert smooth_gradient(loss)

    def test_zero_for_equal_and_no_gradient_to_nan(self, loss):
        s = torch.tensor(draws(4, 3), requires_grad=True)
        value = loss(s, s.detach())
        value.backward()
        assert float(value.detach()) == pytest.approx(0, abs=1e-12)
        assert torch.isfinite(s.grad).all()

    def test_dead_and_equal_rows_stay_finite(self, loss):
        s = torch.zeros(4, 3, requires_grad=True)
        t = torch.ones(4, 3)
        loss(s, t).backward()
        assert torch.isfinite(s.grad).all()
        assert torch.isfinite(loss(t, s.detach()))

    def test_half_precision_does_not_overflow(self, loss):
        s, t = pair()
        assert torch.isfinite(loss((s * 1e4).half(), (t * 1e4).half()))

    def test_one_image_is_finite(self, loss):
        assert torch.isfinite(loss(torch.ones(1, 3), torch.ones(1, 5)))

    def test_order_of_the_images_does_not_matter(self, loss):
        s, t = pair()
        order = torch.tensor([3, 0, 4, 1, 2])
        assert float(loss(s, t)) == pytest.approx(float(loss(s[order], t[order])), rel=1e-10)


class TestSP:
    def test_golden(self):
        s = torch.tensor([[1, 0], [1, 1]], dtype=torch.float64)
        assert float(similarity_loss(s, torch.eye(2, dtype=torch.float64))) == pytest.approx(
            0.1992330, abs=1e-6
        )

    def test_against_numpy_on_maps_of_different_shapes(self):
        s, t = draws(5, 3, 4, 4), draws(5, 6, 2, 2, seed=1)

        def normal(x):
            gram = x.reshape(5, -1) @ x.reshape(5, -1).T
            return gram / np.linalg.norm(gram, axis=1, keepdims=True)

        expected = ((normal(s) - normal(t)) ** 2).sum() / 25
        assert float(similarity_loss(torch.tensor(s), torch.tensor(t))) == pytest.approx(expected, rel=1e-12)

    def test_last_stage_only_by_default(self):
        run = PooledRun(net(0), net(1, widths=(5, 7, 9), strides=(1, 2, 2)))
        method = SP(SP.Params())
        start(method, run)
        assert len(run.student.wanted) == len(run.teacher.wanted) == 1
        b = batch()
        S, T = run.student(b.x), run.teach(run.teacher, b.x)
        (s,), (t,) = S.feats.values(), T.feats.values()
        parts = method.loss(S, [T], b, run)
        assert float(parts["sp"].detach()) == pytest.approx(
            3000 * float(similarity_loss(s, t).detach()), rel=1e-5
        )


class TestCC:
    def test_golden(self):
        assert float(neighbour_loss(F, G)) == pytest.approx(0.5, abs=1e-12)
        assert float(rbf_loss(F, G)) == pytest.approx(0.0056194, abs=1e-6)

    def test_neighbours_against_numpy(self):
        s, t = draws(5, 4), draws(5, 4, seed=1)
        d = np.abs(s - t)
        expected = sum((d[i] * d[i + 1]).sum() for i in range(4)) / 4
        assert float(neighbour_loss(torch.tensor(s), torch.tensor(t))) == pytest.approx(expected, rel=1e-12)

    def test_gradient_of_the_neighbours(self):
        assert smooth_gradient(neighbour_loss)

    def test_kernels_against_numpy(self):
        s, t = draws(5, 4), draws(5, 6, seed=1)

        def kernel(x):
            x = x / np.linalg.norm(x, axis=1, keepdims=True)
            c = x @ x.T
            return np.exp(-0.6) * (1 + 0.6 * c + 0.6**2 / 2 * c**2 + 0.6**3 / 6 * c**3)

        expected = ((kernel(s) - kernel(t)) ** 2).sum() / 25
        got = rbf_loss(torch.tensor(s), torch.tensor(t), 0.3, 3)
        assert float(got) == pytest.approx(expected, rel=1e-10)

    def test_one_image_has_no_neighbour(self):
        assert float(neighbour_loss(torch.ones(1, 3), torch.zeros(1, 3))) == 0

    def test_the_series_is_that_of_the_gaussian(self):
        x = torch.tensor(draws(6, 4))
        unit = x / x.norm(dim=1, keepdim=True)
        exact = (-0.4 * torch.cdist(unit, unit) ** 2).exp()
        torch.testing.assert_close(rbf_correlation(x, 0.4, 8), exact, atol=1e-6, rtol=0)
        by_hand = math.exp(-0.8) * (1 + 0.8 * unit @ unit.T + 0.32 * (unit @ unit.T) ** 2)
        torch.testing.assert_close(rbf_correlation(x, 0.4, 2), by_hand)

    @pytest.mark.parametrize("preset", list(CC.presets))
    def test_both_embeddings_learn(self, preset):
        run = PooledRun(net(0), net(1, widths=(5, 7, 9)))
        method = CC(CC.Params(**CC.presets[preset]))
        (phase,) = start(method, run)
        before = copy_state(method)
        train_phase(method, phase, run)
        assert all(not torch.equal(v, before[k]) for k, v in method.state_dict().items())


class TestRKD:
    f = torch.tensor([[0, 0], [1, 0], [0, 2]], dtype=torch.float64)
    g = torch.tensor([[0, 0], [3, 0], [0, 4]], dtype=torch.float64)

    def test_golden(self):
        assert float(distance_loss(self.f, self.g)) == pytest.approx(0.0059560, abs=1e-6)
        assert float(angle_loss(self.f, self.g)) == pytest.approx(0.0011948, abs=1e-6)

    def test_against_numpy(self):
        s, t = draws(5, 4), draws(5, 7, seed=1)

        def distances(x):
            d = np.linalg.norm(x[:, None] - x[None], axis=2)
            return d / d[d > 0].mean()

        def cosines(x):
            out = np.zeros((5, 5, 5))
            for i in range(5):
                for j in range(5):
                    for k in range(5):
                        a, b = x[j] - x[i], x[k] - x[i]
                        norm = np.linalg.norm(a) * np.linalg.norm(b)
                        out[i, j, k] = a @ b / norm if norm else 0
            return out

        a, b = torch.tensor(s), torch.tensor(t)
        np.testing.assert_allclose(relative_distances(a), distances(s), atol=1e-10)
        np.testing.assert_allclose(angles(a), cosines(s), atol=1e-10)
        assert float(distance_loss(a, b)) == pytest.approx(smooth_l1(distances(s), distances(t)), rel=1e-9)
        assert float(angle_loss(a, b)) == pytest.approx(smooth_l1(cosines(s), cosines(t)), rel=1e-9)

    def test_distances_survive_a_large_common_offset(self):
        x = torch.tensor(draws(5, 4), dtype=torch.float32)
        torch.testing.assert_close(relative_distances(x + 1e3), relative_distances(x), atol=1e-2, rtol=0)

    def test_a_weight_of_zero_leaves_the_part_out(self):
        run = PooledRun(net(0), net(1))
        method = RKD(RKD.Params(angle_weight=0))
        start(method, run)
        b = batch()
        assert set(method.loss(run.student(b.x), [run.teacher(b.x)], b, run)) == {"task", "distance"}


class TestPKT:
    def test_golden(self):
        assert float(pkt_loss(F, G)) == pytest.approx(0.000579977, abs=1e-8)

    def test_against_numpy(self):
        s, t = draws(5, 4), draws(5, 7, seed=1)

        def probabilities(x):
            x = x / np.linalg.norm(x, axis=1, keepdims=True)
            k = (x @ x.T + 1) / 2
            return k / k.sum(1, keepdims=True)

        ps, pt = probabilities(s), probabilities(t)
        expected = (pt * np.log((pt + 1e-7) / (ps + 1e-7))).mean()
        got = pkt_loss(torch.tensor(s), torch.tensor(t))
        assert float(got) == pytest.approx(expected, rel=1e-9)

    def test_opposite_vectors(self):
        x = torch.tensor([[1.0, 0.0, 1e-4], [-1.0, 0.0, -1e-4]], requires_grad=True)
        p = neighbour_probabilities(x)
        torch.testing.assert_close(p.sum(1), torch.ones(2))
        pkt_loss(x, torch.eye(2)).backward()
        assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("cls", [CC, RKD, PKT, CRD])
def test_networks_without_a_pooled_feature(cls):
    run = PooledRun(net(0), net(1))
    run.teacher.num_features = 0
    with pytest.raises(NotApplicable, match="teacher0 has no pooled feature"):
        start(cls(cls.Params()), run)
