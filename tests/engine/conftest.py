"""A small run for the tests of the engine: networks, data and a recipe, without a data set on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_run import make_run

from kdbench.engine.build import prepare_method
from kdbench.engine.context import CellRun
from kdbench.engine.evaluation import evaluate_all
from kdbench.engine.loop import Loop
from kdbench.engine.seeds import seed_everything
from kdbench.protocol.method import Method


def make_loop(run: CellRun, method: Method, folder: Path, **options: Any) -> Loop:
    """A loop from a seeded start, as a worker makes it."""
    seed_everything(1, deterministic=False)
    return Loop(run, method, folder, evaluate=lambda: evaluate_all(method, run), **options)


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., tuple[CellRun, Method, Loop]]:
    """Make a run, its method and its loop: ``start(cls, folder=..., **run options)``."""

    def make(
        cls: type[Method], folder: Path | None = None, options: dict[str, Any] | None = None, **kw: Any
    ) -> tuple[CellRun, Method, Loop]:
        run = make_run(tmp_path, **kw)
        method = prepare_method(cls, cls.Params(), run)
        where = folder or tmp_path
        where.mkdir(exist_ok=True)
        return run, method, make_loop(run, method, where, **(options or {}))

    return make


@pytest.fixture
def run(tmp_path: Path) -> CellRun:
    """A run with one teacher."""
    return make_run(tmp_path)
