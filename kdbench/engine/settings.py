"""Settings of the whole process that code of one cell can change for all that runs after it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Setting:
    """A setting with the name that messages give it; `write` takes what `read` returned."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], Any]


def _deterministic(value: bool) -> None:
    torch.use_deterministic_algorithms(value, warn_only=True)


def _autocast(value: bool) -> None:
    torch.set_autocast_enabled("cpu", value)


def _benchmark(value: bool) -> None:
    torch.backends.cudnn.benchmark = value


#: Random generators aside; see :mod:`kdbench.engine.seeds`.
SETTINGS = (
    Setting("torch.is_grad_enabled()", torch.is_grad_enabled, torch.set_grad_enabled),
    Setting("torch.get_default_dtype()", torch.get_default_dtype, torch.set_default_dtype),
    Setting("torch.get_num_threads()", torch.get_num_threads, torch.set_num_threads),
    Setting(
        "torch.are_deterministic_algorithms_enabled()",
        torch.are_deterministic_algorithms_enabled,
        _deterministic,
    ),
    Setting("torch.is_anomaly_enabled()", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    Setting(
        "torch.get_float32_matmul_precision()",
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    Setting("autocast on the CPU", lambda: torch.is_autocast_enabled("cpu"), _autocast),
    Setting("torch.backends.cudnn.benchmark", lambda: torch.backends.cudnn.benchmark, _benchmark),
    Setting("the working directory", os.getcwd, os.chdir),
)


def settings() -> dict[str, Any]:
    """Return the settings by name."""
    return {s.name: s.read() for s in SETTINGS}


def put_back(old: Mapping[str, Any]) -> None:
    """Write the settings that are not what they were: some cost time to write."""
    for setting in SETTINGS:
        if setting.read() != old[setting.name]:
            setting.write(old[setting.name])
