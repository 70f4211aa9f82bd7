"""Samples of the machine: what is in them, and that none is taken while somebody measures."""

import json
import sys

import pytest

from kdbench.launch.locks import Turnstile
from kdbench.launch.system import SystemSampler
from kdbench.results.system import SYSTEM, read_samples

pytest.importorskip("psutil")


@pytest.fixture
def sampler(tmp_path):
    return SystemSampler(tmp_path)


def test_a_sample_is_told_and_kept(sampler, tmp_path):
    row = sampler.sample()
    assert 0 < row["system_memory_usage_percentage"] <= 100
    assert row["cpu_utilization_percentage"] >= 0
    assert sampler.samples == read_samples(tmp_path) == [row]


def test_no_sample_while_a_cell_measures(sampler, tmp_path):
    turn = Turnstile(tmp_path, "cpu")
    other = Turnstile(tmp_path, "cuda:1")
    try:
        turn.gate()
        other.gate()
        assert sampler.sample() is not None  # training is no measurement
        with other.alone():
            assert sampler.sample() is None
        assert sampler.sample() is not None
        assert len(read_samples(tmp_path)) == 2
    finally:
        turn.close()
        other.close()


def test_the_thread_leaves_at_least_one_sample(sampler, tmp_path):
    sampler.start()
    sampler.close()
    assert len(read_samples(tmp_path)) == len(sampler.samples) == 1


def test_without_psutil_nothing_is_sampled(sampler, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    sampler.start()
    sampler.close()
    assert sampler.samples == []
    assert not (tmp_path / SYSTEM).exists()


def test_lines_that_are_no_samples_are_left_out(tmp_path):
    good = {"at": 2.0, "cpu_utilization_percentage": 5.0}
    lines = [json.dumps(good), "[1]", '{"at": 1, "gpu_0_utilization_percentage": NaN}', "{}", '{"at": 3']
    (tmp_path / SYSTEM).write_text("\n".join(lines))
    assert read_samples(tmp_path) == [{"at": 1.0}, good]
    assert read_samples(tmp_path / "nowhere") == []
