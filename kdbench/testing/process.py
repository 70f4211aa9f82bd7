"""Settings of the whole process: seen, compared and put back, so that one broken method harms no other."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.modules import module as _modules

from kdbench.engine.seeds import rng_state, set_rng_state

#: Functions that seed a global generator: (owner, attribute, name in messages).
SEEDERS: tuple[tuple[Any, str, str], ...] = (
    (torch, "manual_seed", "torch.manual_seed"),
    (torch.random, "manual_seed", "torch.random.manual_seed"),
    (torch, "seed", "torch.seed"),
    (random, "seed", "random.seed"),
    (np.random, "seed", "numpy.random.seed"),
)
_GLOBAL_HOOKS = tuple(name for name in vars(_modules) if name.startswith("_global_") and "hooks" in name)


def settings() -> dict[str, Any]:
    """Return what a method could change for all that runs after it, by name; random generators aside."""
    return {
        "torch.is_grad_enabled()": torch.is_grad_enabled(),
        "torch.is_inference_mode_enabled()": torch.is_inference_mode_enabled(),
        "torch.get_default_dtype()": torch.get_default_dtype(),
        "torch.get_num_threads()": torch.get_num_threads(),
        "torch.are_deterministic_algorithms_enabled()": torch.are_deterministic_algorithms_enabled(),
        "torch.is_anomaly_enabled()": torch.is_anomaly_enabled(),
        "torch.get_float32_matmul_precision()": torch.get_float32_matmul_precision(),
        "autocast on the CPU": torch.is_autocast_enabled("cpu"),
        "torch.backends.cudnn.benchmark": torch.backends.cudnn.benchmark,
        "global hooks of torch modules": sum(_entries(name) for name in _GLOBAL_HOOKS),
        "the working directory": os.getcwd(),
    }


def _entries(name: str) -> int:
    hooks = getattr(_modules, name)
    return len(hooks) if hasattr(hooks, "__len__") else 0


def restore(old: dict[str, Any]) -> None:
    """Put the settings back."""
    torch.set_grad_enabled(old["torch.is_grad_enabled()"])
    torch.set_default_dtype(old["torch.get_default_dtype()"])
    torch.set_num_threads(old["torch.get_num_threads()"])
    torch.use_deterministic_algorithms(old["torch.are_deterministic_algorithms_enabled()"], warn_only=True)
    torch.autograd.set_detect_anomaly(old["torch.is_anomaly_enabled()"])
    torch.set_float32_matmul_precision(old["torch.get_float32_matmul_precision()"])
    torch.set_autocast_enabled("cpu", old["autocast on the CPU"])
    torch.backends.cudnn.benchmark = old["torch.backends.cudnn.benchmark"]
    if old["global hooks of torch modules"] == 0:
        for name in _GLOBAL_HOOKS:
            hooks = getattr(_modules, name)
            if hasattr(hooks, "clear"):
                hooks.clear()
    os.chdir(old["the working directory"])


@contextmanager
def untouched() -> Iterator[None]:
    """Put random generators and settings of the process back at the end."""
    generators, before = rng_state(), settings()
    try:
        yield
    finally:
        set_rng_state(generators)
        restore(before)


@contextmanager
def seeding_watched() -> Iterator[list[str]]:
    """Collect the calls that seed a global generator, those of the engine and of this suite aside."""
    calls: list[str] = []
    originals = [(owner, attribute, getattr(owner, attribute)) for owner, attribute, _ in SEEDERS]

    def watch(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            caller = str(sys._getframe(1).f_globals.get("__name__", ""))
            if not caller.startswith(("kdbench.engine", "kdbench.testing")):
                calls.append(f"{name}({', '.join(map(repr, args))})")
            return original(*args, **kwargs)

        return call

    for owner, attribute, name in SEEDERS:
        setattr(owner, attribute, watch(name, getattr(owner, attribute)))
    try:
        yield calls
    finally:
        for owner, attribute, original in originals:
            setattr(owner, attribute, original)
