"""Every shipped method on pairs of unlike networks: it trains, or it is refused for a reason listed here.

The networks differ in kind (convolutions, transformer), number of stages, channel counts, map sizes and norms.
A method that starts to refuse a pair, or stops to, changes this list; so the change is seen.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import pytest
import torch

from kdbench.api import NotApplicable
from kdbench.registry import Registry
from kdbench.testing.bench import Bench
from kdbench_methods import METHODS


class Pair(NamedTuple):
    teacher: str
    student: str


PAIRS = {
    # 4 stages of 32..192 channels and 5 of 16..64; other channel counts at every stage
    "cnn -> cnn": Pair("test_resnet", "test_efficientnet"),
    # maps of 8, 4, 2, 1 pixels and tokens of a 2x2 grid
    "cnn -> vit": Pair("test_resnet", "test_vit"),
    "vit -> cnn": Pair("test_vit", "test_resnet"),
    # 9 blocks of width 96 and 6 of width 64
    "vit -> vit": Pair("test_vit3", "test_vit"),
    # LayerNorm, GELU inside the blocks, no activation at a stage's end
    "convnext -> cnn": Pair("test_convnext", "test_resnet"),
    # LayerNorm before ReLU-like activations: what enters them exists, statistics of batches do not
    "cnn with LayerNorm -> cnn": Pair("test_efficientnet_ln", "test_resnet"),
    # maps from a network that ends in attention
    "hybrid -> vit": Pair("test_coatnet", "test_vit"),
}

_NO_PRE = "stages end in an activation"
_WIDTHS = "needs equal channel counts, stage widths are"
_TOKEN = "needs a student with a distillation head"
#: (method, pair) -> part of the reason.
REFUSED: dict[tuple[str, str], str] = {
    # the boundary of a neuron is where its activation starts: transformers and ConvNeXt add residuals last
    **{
        (m, p): _NO_PRE
        for m in ("ab", "ofd")
        for p in ("vit -> cnn", "vit -> vit", "convnext -> cnn", "hybrid -> vit")
    },
    # a flow matrix has the channel counts as its shape; with connectors it runs, see below
    **{("fsp", p): _WIDTHS for p in PAIRS},
    # timm's task needs a second head, which these students do not have; see test_token_student
    **{("timm-token", p): _TOKEN for p in PAIRS},
}
#: What must run between convolutional networks and transformers, both ways (the refusals above aside).
ACROSS = {
    *("at", "sp", "cc", "nst", "rkd", "pkt", "vid", "crd", "srrl", "simkd", "reviewkd", "ft", "ofa"),
    *("fitnet", "kd", "dkd", "dist", "feed"),
}


@pytest.fixture(scope="module")
def registry():
    return Registry.load()


def make(registry, name, pair, **params):
    cls = registry.get("methods", name).load()
    return Bench(registry, cls, params, teacher=f"timm:{pair.teacher}", student=f"timm:{pair.student}")


def train(bench, folder):
    """Train a short cell; return the losses of all epochs."""
    run = bench.run(sizes=(8,))
    try:
        method = bench.method(run)
        rows = bench.loop(run, method, folder).train().rows
    finally:
        run.close()
    return [row["train"] for row in rows]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", [entry.name for entry in METHODS])
def test_pair(name, pair, registry, tmp_path):
    reason = REFUSED.get((name, pair))
    bench = make(registry, name, PAIRS[pair])
    if reason is not None:
        with pytest.raises(NotApplicable, match=re.escape(reason)):
            train(bench, tmp_path)
        return
    losses = train(bench, tmp_path)
    assert losses
    assert all(math.isfinite(value) for row in losses for key, value in row.items() if key.startswith("loss"))


def test_the_list_of_refusals():
    names = {entry.name for entry in METHODS}
    assert {name for name, _ in REFUSED} <= names
    assert {pair for _, pair in REFUSED} <= set(PAIRS)
    assert names >= ACROSS
    refused = {name for name, pair in REFUSED if pair in ("cnn -> vit", "vit -> cnn")}
    assert not refused & ACROSS


@pytest.mark.parametrize("pair", ["cnn -> vit", "vit -> cnn", "vit -> vit", "convnext -> cnn"])
def test_fsp_with_connectors(pair, registry, tmp_path):
    losses = train(make(registry, "fsp", PAIRS[pair], connectors=True), tmp_path)
    assert all(math.isfinite(row["loss"]) for row in losses)


def test_fsp_on_equal_widths(registry, tmp_path):
    assert train(make(registry, "fsp", Pair("test_vit2", "test_vit")), tmp_path)


@pytest.mark.parametrize("teacher", ["test_resnet", "test_vit"])
def test_token_student(teacher, registry, tmp_path):
    """The one kind of student that timm-token takes, from teachers of both kinds."""
    student = "deit_tiny_distilled_patch16_224"
    losses = train(make(registry, "timm-token", Pair(teacher, student)), tmp_path)
    assert all(math.isfinite(row["loss"]) for row in losses)


@pytest.mark.parametrize("name", ["at", "nst", "ft"])
def test_all_maps_of_one_pixel(name, registry):
    """Methods that compare positions have nothing to compare; the reason says so."""
    params = {"factor": "energy"} if name == "ft" else {"stages": 1}
    bench = make(registry, name, Pair("test_resnet", "test_vit"), **params)
    with pytest.raises(NotApplicable, match="compares positions of maps, and every paired map is 1x1"):
        bench.method(bench.run())


@pytest.mark.parametrize("name", ["at", "sp", "dist"])
def test_network_without_norms(name, registry):
    """Steep losses on a network without norm layers: a large gradient, but a right one.

    At a learning rate for networks with norms such a student diverges under the published weights: these
    losses do not see the scale of features, nothing in the network bounds it, and the first gradient is about
    a thousand times that of the task. No digit is lost for it: float64 gives the same gradient, and a small
    step along it lowers the loss by what it promises.
    """
    bench = make(registry, name, Pair("test_vit2", "test_nfnet"))
    run = bench.run(sizes=(8,))
    method = bench.method(run)
    (batch,) = run.task_data.streams["train"].epoch(0)
    net = run.student.net.train()

    def total(dtype):
        for module in (net, method, run.teacher.net):
            module.to(dtype)
        x = batch.x.to(dtype)
        return sum(method.loss(run.student(x), [run.teach(run.teacher, x)], batch, run).values())

    def gradient(loss):
        net.zero_grad()
        loss.backward()
        return torch.cat([p.grad.double().flatten() for p in net.parameters() if p.grad is not None])

    low = gradient(total(torch.float32))
    before = total(torch.float64)
    exact = gradient(before)
    assert float((low - exact).norm() / exact.norm()) < 1e-3
    assert float(exact.norm()) > 300
    promised = 1e-4 * before.item()
    with torch.no_grad():
        for p in net.parameters():
            if p.grad is not None:
                p -= promised / float(exact.square().sum()) * p.grad
        after = total(torch.float64)
    run.close()
    assert before.item() - after.item() == pytest.approx(promised, rel=0.1)
