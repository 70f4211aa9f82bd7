"""The environment of a result."""

from __future__ import annotations

import json
import platform

import timm
import torch

from kdbench import __version__
from kdbench.measure.environment import capture, cpu_name, peak_memory_mb

CPU = torch.device("cpu")


def test_environment_is_flat_and_true() -> None:
    seen = capture(CPU, precision="bf16", deterministic=True, compiled="none")
    assert all(v is None or isinstance(v, (str, int, float, bool)) for v in seen.values())
    assert json.loads(json.dumps(seen, allow_nan=False)) == seen
    assert seen["device"] == "cpu"
    assert seen["device_name"] == seen["cpu"] == cpu_name() != ""
    assert seen["torch"] == torch.__version__
    assert seen["timm"] == timm.__version__
    assert seen["kdbench"] == __version__
    assert seen["python"] == platform.python_version()
    assert seen["threads"] == torch.get_num_threads()
    assert (seen["precision"], seen["deterministic"], seen["compile"]) == ("bf16", True, "none")
    assert seen["cuda"] is seen["driver"] is seen["device_memory_mb"] is None


def test_peak_memory_grows_with_what_is_held() -> None:
    before = peak_memory_mb(CPU)
    assert before is not None
    held = torch.ones(int((before + 64) * 2**20 / 4))  # more than the peak so far
    after = peak_memory_mb(CPU)
    assert after is not None
    assert after >= before + 32
    assert held[0] == 1
