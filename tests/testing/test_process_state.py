"""The suite puts back what a method changed outside its objects."""

from __future__ import annotations

import functools
import os
import random
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdbench.testing.leaks import fresh_start
from kdbench.testing.process import seeding_watched, settings, untouched


def spoil(folder: Path) -> None:
    """Change every setting, seed every generator, and fail."""
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.use_deterministic_algorithms(True)
    torch.autograd.set_detect_anomaly(True)
    torch.set_float32_matmul_precision("medium")
    nn.modules.module.register_module_forward_hook(lambda *_: None)
    os.chdir(folder)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    changed.update(settings())
    raise ZeroDivisionError


changed: dict[str, Any] = {}


@pytest.fixture
def usual() -> Iterator[None]:
    """The settings of a fresh process in what a cell trained by an earlier test leaves on for its worker."""
    kept = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(kept[0], warn_only=kept[1])


@pytest.mark.usefixtures("usual")
def test_settings_and_generators_are_put_back(tmp_path: Path) -> None:
    before = settings()
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    with pytest.raises(ZeroDivisionError), untouched():
        spoil(tmp_path)
    assert len([key for key, value in changed.items() if value != before[key]]) == 8
    assert settings() == before
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    assert np.array_equal(np.random.get_state()[1], state[2])


def test_seeding_is_told_by_name() -> None:
    original = torch.manual_seed
    with untouched(), seeding_watched() as calls:
        torch.manual_seed(3)
        torch.random.manual_seed(4)
        random.seed(5)
        np.random.seed(6)
        torch.Generator().manual_seed(7)
        random.random()
    assert calls == [
        "torch.manual_seed(3)",
        "torch.random.manual_seed(4)",
        "random.seed(5)",
        "numpy.random.seed(6)",
    ]
    assert torch.manual_seed is original


@pytest.fixture
def package() -> Iterator[Any]:
    """A package of two modules with state; its class is ``made_up.method.Thing``."""
    root, module, tools = (types.ModuleType(n) for n in ("made_up", "made_up.method", "made_up.tools"))
    module.__dict__.update(cache={"kept": [1]}, count=2, limit=None)

    @functools.lru_cache
    def slow(x: int) -> list[int]:
        return [x]

    tools.slow = slow  # type: ignore[attr-defined]
    body = {"__module__": "made_up.method", "seen": set(), "best": torch.zeros(1), "rows": [[1], {"a": [2]}]}
    module.Thing = type("Thing", (), body)  # type: ignore[attr-defined]
    names = {"made_up": root, "made_up.method": module, "made_up.tools": tools}
    sys.modules.update(names)
    yield types.SimpleNamespace(module=module, tools=tools, cls=module.Thing)  # type: ignore[attr-defined]
    for name in names:
        del sys.modules[name]


def test_variables_of_classes_and_modules_are_put_back(package: Any) -> None:
    cls, module = package.cls, package.module
    best, cache, inner = cls.best, module.cache, module.cache["kept"]
    back = fresh_start(cls)
    cls.seen.add(1)
    cls.best = torch.ones(1)
    cls.rows[1]["a"].append(3)
    cls.rows.append([4])
    module.cache["kept"].append(2)
    module.cache["new"] = 1
    module.count, module.limit = 3, 5
    made = package.tools.slow(1)
    back()
    assert cls.seen == set()
    assert cls.best is best
    assert cls.rows == [[1], {"a": [2]}]
    assert module.cache is cache
    assert module.cache == {"kept": [1]}
    assert module.cache["kept"] is inner
    assert (module.count, module.limit) == (2, None)
    assert package.tools.slow(1) is not made


def test_variables_of_kdbench_and_torch_stay() -> None:
    from kdbench.protocol.method import Method

    back = fresh_start(Method)
    Method.mark = 1  # type: ignore[attr-defined]
    try:
        back()
        assert Method.mark == 1  # type: ignore[attr-defined]
    finally:
        del Method.mark  # type: ignore[attr-defined]
