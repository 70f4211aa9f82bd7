"""Tests of the example method; the fixture `check_method` comes with kdbench."""

from __future__ import annotations

import pytest
import torch
from kdbench_example.centred_mse import centred_mse


def test_the_method_passes_the_conformance_suite(check_method):
    report = check_method("centred-mse")
    golden = next(check for check in report.checks if check.name == "golden values")
    assert golden.seen == "1: logits (1, 0), (0, 0)"
    check_method("centred-mse", preset="gentle", student="timm:test_vit")


def test_the_loss_is_the_limit_of_softened_divergence():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(8, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    temperature = 1e3
    log_s, log_t = ((z / temperature).log_softmax(dim=1) for z in (student, teacher))
    divergence = temperature**2 * (log_t.exp() * (log_t - log_s)).sum(dim=1).mean()
    # the divergence sums over the classes, the squared error is their mean
    assert float(centred_mse(student, teacher)) == pytest.approx(float(divergence), rel=1e-2)


def test_a_shift_of_all_logits_changes_nothing():
    logits = torch.tensor([[1.0, 2.0, 4.0]])
    assert float(centred_mse(logits + 3, logits)) == pytest.approx(0, abs=1e-10)
