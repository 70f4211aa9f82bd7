"""Sheets of small networks on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdbench.engine.speed import batch as batches
from kdbench.engine.speed import sheet as sheets
from kdbench.engine.speed.models import Inputs, Model
from kdbench.engine.speed.sheet import measure_speed, warnings_of
from kdbench.measure.rounds import warm_up
from kdbench.registry import Registry
from kdbench.results.speed import SpeedSettings
from kdbench.results.speed_row import SpeedRow, median_drift

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def registry():
    return Registry.load()


def settings(*models, **kw):
    given = {
        "models": list(models) or ["timm:test_resnet"],
        "modes": ["infer"],
        "batch_sizes": [2],
        "precisions": ["fp32"],
        "image_size": 32,
        "num_classes": 10,
        "rounds": 3,
        "max_seconds": 0.5,
    }
    return SpeedSettings(**{**given, **kw})


def test_every_combination_is_a_row(registry):
    wanted = settings(
        "timm:test_resnet",
        "resnet20",
        modes=["infer", "train"],
        batch_sizes=[2, 4],
        precisions=["fp32", "bf16"],
    )
    sheet = measure_speed(registry, wanted)
    rows = [(r.model, r.mode, r.precision, r.batch_size) for r in sheet.rows]
    assert rows == [
        (model, mode, precision, batch)
        for model in ("timm:test_resnet", "resnet20")
        for mode in ("infer", "train")
        for precision in ("fp32", "bf16")
        for batch in (2, 4)
    ]
    for row in sheet.rows:
        assert row.status == "done", row.message
        assert row.images_per_s == pytest.approx(1e3 * row.batch_size / row.step_ms)
        assert row.rounds == len(row.samples_ms) == 3
        assert row.latency_ms_p50 <= row.latency_ms_p95
        assert row.drift_percent is not None
    assert sheet.environment["device"] == "cpu"
    assert "precision" not in sheet.environment
    assert sheet.drift_percent is not None


def test_facts_of_a_model(registry):
    (row,) = measure_speed(registry, settings("resnet20", batch_sizes=[1], rounds=1)).rows
    # 6n+2 layers of 16, 32 and 64 channels: 0.27 M parameters, 41 M multiply-accumulates at 32 pixels
    assert row.params == pytest.approx(272_474, rel=0.01)
    assert row.macs == pytest.approx(40.8e6, rel=0.02)
    assert 100_000 < row.activations < 500_000


def test_memory_by_hand(registry):
    made = Model(registry, "timm:test_resnet", settings(), Inputs(settings(), CPU))
    made.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    weights, image, logits = 4 * (3072 * 10 + 10), 4 * 3 * 32 * 32, 4 * 10
    labels = 8
    one = made.contender("infer", "fp32", 2)
    warm_up(one, CPU)
    assert made.peak_bytes(one, "infer", 2) == weights + 2 * (image + labels + logits)
    step = made.contender("train", "fp32", 2)
    warm_up(step, CPU)
    seen = made.peak_bytes(step, "train", 2)
    # weights, momentum, gradients and, in the update, the largest gradient with its decay; the activations are
    # ten numbers an image
    assert 3 * weights < seen - 2 * (image + labels) < 4 * weights + 1000


def test_training_trains_and_inference_does_not(registry):
    model = Model(registry, "timm:test_resnet", settings(), Inputs(settings(), CPU))
    before = {k: v.clone() for k, v in model.net.state_dict().items()}
    infer = model.contender("infer", "fp32", 2)
    infer.enter()
    infer.call()
    assert not model.net.training
    assert all(torch.equal(v, before[k]) for k, v in model.net.state_dict().items())
    train = model.contender("train", "fp32", 2)
    train.enter()
    train.call()
    assert model.net.training
    changed = {k for k, v in model.net.state_dict().items() if not torch.equal(v, before[k])}
    assert any("running_mean" in k for k in changed)
    assert any(k.endswith("weight") for k in changed)
    assert all(p.grad is not None for p in model.net.parameters())
    model.rest()
    assert all(p.grad is None for p in model.net.parameters())


def test_precision_is_that_of_the_products(registry):
    model = Model(registry, "timm:test_resnet", settings(), Inputs(settings(), CPU))
    seen = []
    model.net.register_forward_hook(lambda net, args, out: seen.append(out.dtype))
    for precision in ("fp32", "bf16"):
        one = model.contender("infer", precision, 2)
        one.enter()
        one.call()
    assert seen == [torch.float32, torch.bfloat16]


def test_channels_last_is_that_of_weights_and_images(registry):
    wanted = settings(channels_last=True)
    inputs = Inputs(wanted, CPU)
    model = Model(registry, "timm:test_resnet", wanted, inputs)
    assert inputs.get(2)[0].is_contiguous(memory_format=torch.channels_last)
    convs = [p for p in model.net.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in convs)


def test_what_fails_is_a_row_with_its_reason(registry, monkeypatch):
    monkeypatch.setattr(batches, "LARGEST", 8)
    wanted = settings(
        "timm:test_resnet",
        "timm:resnet18",
        modes=["train"],
        batch_sizes=[1, "auto"],
        image_size=16,
        num_classes=2,
    )
    told = []
    wanted.models[1] = "timm:no_such_model"
    sheet = measure_speed(registry, wanted, told.append)
    by = {(r.model, r.batch_size if not r.found_by else "auto"): r for r in sheet.rows}
    alone = by["timm:test_resnet", 1]
    assert alone.status == "failed"
    assert alone.message == (
        "ValueError: BatchNorm has one value per channel to train on (batch size 1, image size 16): "
        "take batch size 2 or more"
    )
    assert alone.images_per_s is None
    found = by["timm:test_resnet", "auto"]
    assert found.status == "done"
    assert found.batch_size >= 2
    missing = [r for r in sheet.rows if r.model == "timm:no_such_model"]
    assert [r.status for r in missing] == ["failed", "failed"]
    assert "no model 'no_such_model'" in missing[0].message
    assert "building timm:test_resnet" in told
    assert any(line.startswith("finding a batch size") for line in told)
    assert told[-1] == "checking for drift"


def test_out_of_memory_is_a_row(registry, monkeypatch):
    def starve(one, device):
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(sheets, "warm_up", starve)
    (row,) = measure_speed(registry, settings()).rows
    assert (row.status, row.batch_size, row.images_per_s) == ("oom", 2, None)


def test_the_drift_of_a_sheet_is_that_of_its_rows_whichever_way():
    rows = [SpeedRow(model="m", mode="infer", precision="fp32", drift_percent=d) for d in (-52.0, 3.0, 50.0)]
    assert median_drift(rows) == 50.0
    assert median_drift([rows[0].model_copy(update={"drift_percent": None})]) is None


@pytest.mark.parametrize(("drift", "warned"), [(4.9, False), (-5.1, True), (5.1, True), (None, False)])
def test_drift_over_five_percent_is_warned_about(registry, drift, warned):
    sheet = measure_speed(registry, settings(rounds=1))
    sheet.drift_percent = drift
    assert bool(warnings_of(sheet)) == warned
