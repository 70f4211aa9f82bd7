"""Settings of the whole process: seen, compared and put back, so that one broken method harms no other."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.modules import module as _modules

from kdbench.engine import settings as engine
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
        **engine.settings(),
        "torch.is_inference_mode_enabled()": torch.is_inference_mode_enabled(),
        "global hooks of torch modules": sum(_entries(name) for name in _GLOBAL_HOOKS),
    }


def _entries(name: str) -> int:
    hooks = getattr(_modules, name)
    return len(hooks) if hasattr(hooks, "__len__") else 0


def restore(old: dict[str, Any]) -> None:
    """Put the settings back."""
    engine.put_back(old)
    if old["global hooks of torch modules"] == 0:
        for name in _GLOBAL_HOOKS:
            hooks = getattr(_modules, name)
            if hasattr(hooks, "clear"):
                hooks.clear()


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
