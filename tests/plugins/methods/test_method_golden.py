"""Logit methods and the seed papers' methods: golden values, published values, whole losses by numpy."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from fake_run import FakeRun, net

from kdbench.api import Batch, Out
from kdbench_methods import METHODS
from kdbench_methods._common import kl_divergence
from kdbench_methods._golden import student_logits, teacher_logits
from kdbench_methods.fitnet import hint_loss

MINE = [
    "vanilla", "kd", "kd-ls", "dkd", "dist", "mlkd", "wsld", "ctkd", "dml", "tfkd", "timm-logit", "timm-feature",
    "timm-token", "ab", "ofd", "feed", "ffl", "dfad", "rco", "bss", "fitnet",
]  # fmt: skip
#: What the reference code of each paper sets, or of the benchmark that the preset is named after.
PUBLISHED = {
    ("kd", "cifar100"): {"ce_weight": 0.1, "alpha": 0.9, "temperature": 4.0},
    ("kd", "imagenet"): {"ce_weight": 0.5, "alpha": 0.5, "temperature": 1.0},
    ("kd-ls", "cifar100"): {"ce_weight": 0.1, "alpha": 9.0, "temperature": 2.0, "standardise": True},
    ("kd-ls", "imagenet"): {"ce_weight": 1.0, "alpha": 9.0, "temperature": 2.0, "standardise": True},
    ("kd-ls", "resnet50-mobilenetv2"): {"ce_weight": 0.1, "alpha": 1.0, "temperature": 3.0},
    ("dkd", "cifar100"): {"ce_weight": 1.0, "alpha": 1.0, "beta": 8.0, "temperature": 4.0, "warmup": 20},
    ("dkd", "resnet56-resnet20"): {"alpha": 1.0, "beta": 2.0, "temperature": 4.0, "warmup": 20},
    ("dkd", "wrn_40_2-wrn_16_2"): {"alpha": 1.0, "beta": 6.0, "temperature": 4.0, "warmup": 20},
    ("dkd", "imagenet"): {"alpha": 1.0, "beta": 0.5, "temperature": 1.0, "warmup": 1},
    ("dkd", "imagenet-resnet50-mobilenetv1"): {"alpha": 1.0, "beta": 2.0, "temperature": 1.0, "warmup": 1},
    ("dist", "cifar100"): {"ce_weight": 1.0, "kd_weight": 2.0, "beta": 1.0, "gamma": 1.0, "temperature": 4.0},
    ("dist", "imagenet"): {"kd_weight": 2.0, "beta": 1.0, "gamma": 1.0, "temperature": 1.0},
    ("mlkd", "cifar100"): {"ce_weight": 0.1, "kd_weight": 0.9, "temperature": 4.0, "variant": "official"},
    ("mlkd", "imagenet"): {"ce_weight": 0.5, "kd_weight": 0.5, "temperature": 1.0},
    ("mlkd", "cifar100-ls"): {"ce_weight": 0.1, "kd_weight": 9.0, "temperature": 2.0, "standardise": True},
    ("wsld", "imagenet"): {"ce_weight": 1.0, "alpha": 2.5, "temperature": 2.0},
    ("ctkd", "cifar100"): {"ce_weight": 0.1, "alpha": 0.9, "t_start": 1.0, "t_range": 20.0, "loops": 10},
    ("ctkd", "imagenet"): {"ce_weight": 1.0, "alpha": 1.0, "t_start": 1.0, "t_range": 20.0, "loops": 5},
    ("tfkd", "cifar100"): {"variant": "self", "alpha": 0.95, "temperature": 6.0, "multiplier": 50.0},
    ("tfkd", "cifar100-reg"): {"reg_alpha": 0.1, "reg_temperature": 20.0, "reg_multiplier": 100.0},
    ("timm-logit", "timm-docs"): {"task_loss_weight": 0.3, "temperature": 4.0},
    ("timm-feature", "timm-docs"): {"task_loss_weight": 1.0, "distill_loss_weight": 5.0},
    ("timm-token", "timm-docs"): {"task_loss_weight": 0.5, "distill_type": "soft", "temperature": 3.0},
    ("ab", "official"): {"loss_weight": 3e-3, "margin": 1.0, "ce_weight": 0.0, "kd_weight": 1 / 9},
    ("ab", "cifar100"): {"loss_weight": 3e-3, "ce_weight": 1.0, "kd_weight": 0.0, "init_share": 1 / 9},
    ("ofd", "cifar100"): {"ce_weight": 1.0, "alpha": 1e-3},
    ("ofd", "imagenet"): {"ce_weight": 1.0, "alpha": 1e-4},
    ("ffl", "cifar100"): {"temperature": 3.0, "ramp_epochs": 80, "fusion_weight_decay": 1e-5},
    ("dfad", "cifar100"): {"nz": 256, "batch_size": 256, "iterations": 50, "student_steps": 5},
    ("bss", "paper"): {
        "temperature": 3.0, "kd_start": 4.0, "kd_end": 1.0, "bss_weight": 2.0, "bss_share": 0.75,
        "attack_share": 0.25, "attack_steps": 10, "step_size": 0.3, "clip": 2.5,
    },
    ("fitnet", "cifar100"): {"ce_weight": 1.0, "hint_weight": 100.0, "stages": "joint", "kd_weight": 0.0},
}  # fmt: skip


def load(name):
    target = next(e.target for e in METHODS if e.name == name)
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


GOLDEN = [(name, golden) for name in MINE for golden in load(name).golden()]


@pytest.mark.parametrize(("name", "golden"), GOLDEN, ids=lambda x: x if isinstance(x, str) else x.name)
def test_golden(name, golden):
    got = torch.as_tensor(golden.value(), dtype=torch.float64).detach().numpy()
    np.testing.assert_allclose(got, np.asarray(golden.expected, dtype=float), rtol=golden.rtol, atol=0)
    assert golden.name
    assert golden.source


@pytest.mark.parametrize("name", MINE)
class TestMethod:
    def test_has_golden_values_with_names_of_their_own(self, name):
        names = [golden.name for golden in load(name).golden()]
        assert names
        assert len(set(names)) == len(names)

    def test_the_first_line_of_its_text_is_its_formula(self, name):
        first = load(name).__doc__.splitlines()[0]
        assert first.startswith(("``", "First ``L ="))
        assert first.count("``") % 2 == 0

    def test_numbers_have_bounds(self, name):
        for key, info in load(name).Params.model_fields.items():
            if info.annotation in (int, float):
                assert info.metadata, key


@pytest.mark.parametrize(("name", "preset"), PUBLISHED, ids=lambda x: x)
def test_published_values(name, preset):
    cls = load(name)
    values = cls.Params(**cls.presets[preset]).model_dump()
    want = PUBLISHED[name, preset]
    assert {key: values[key] for key in want} == pytest.approx(want)


@pytest.mark.parametrize(
    ("name", "preset"), [("kd", "cifar100"), ("kd-ls", "cifar100"), ("dkd", "cifar100"), ("mlkd", "cifar100"),
                         ("dist", "cifar100"), ("ab", "official"), ("ofd", "cifar100"), ("fitnet", "cifar100")]
)  # fmt: skip
def test_the_defaults_are_those_of_the_preset(name, preset):
    # a warm-up that is not given is scaled to the run, which makes it 20 of 240 epochs
    cls = load(name)
    default, chosen = cls.Params().model_dump(), cls.Params(**cls.presets[preset]).model_dump()
    assert {k: v for k, v in default.items() if k != "warmup"} == {
        k: v for k, v in chosen.items() if k != "warmup"
    }


def log_softmax(z):
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def standardised(z):
    return (z - z.mean(1, keepdims=True)) / (z.std(1, ddof=1, keepdims=True) + 1e-7)


def soft(zs, zt, t):
    log_s, log_t = log_softmax(zs / t), log_softmax(zt / t)
    return t**2 * (np.exp(log_t) * (log_t - log_s)).sum() / len(zs)


@pytest.mark.parametrize(
    ("name", "params", "distilled"),
    [
        ("vanilla", {}, lambda s, t: 0.0),
        ("kd", {"alpha": 0.7, "temperature": 3.0}, lambda s, t: 0.7 * soft(s, t, 3)),
        ("kd-ls", {}, lambda s, t: 9 * soft(standardised(s), standardised(t), 2)),
        ("rco", {"kd_weight": 1.5}, lambda s, t: 1.5 * soft(s, t, 5)),
    ],
)
def test_whole_loss_against_numpy(name, params, distilled):
    rng = np.random.default_rng(3)
    zs, zt, y = 2 * rng.normal(size=(7, 4)), 2 * rng.normal(size=(7, 4)), rng.integers(4, size=7)
    cls = load(name)
    method = cls(cls.Params(**params))
    batch = Batch(torch.zeros(7, 3, 4, 4), torch.tensor(y))
    parts = method.loss(Out(torch.tensor(zs)), [Out(torch.tensor(zt))], batch, FakeRun(net(0), net(1)))
    task = -log_softmax(zs)[np.arange(7), y].mean()
    want = getattr(method.hp, "ce_weight", 1.0) * task + distilled(zs, zt)
    assert float(sum(parts.values())) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("loss", [lambda s, t: kl_divergence(s, t, 3.0), hint_loss], ids=["kl", "hint"])
def test_gradients(loss):
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher_logits()), (student_logits().requires_grad_(),))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_logits_are_those_asked_for(count):
    assert student_logits(count).shape == teacher_logits(count).shape == (count, 3)
