"""What all tests share: a quiet environment, and the command `kdbench` in processes of its own."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

# set before anything imports torch or mlflow; worker processes and subprocesses inherit it
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DO_NOT_TRACK"] = "true"
for _name in ("MLFLOW_TRACKING_URI", "KDBENCH_DISABLE_PLUGINS", "KDBENCH_STRICT_PLUGINS"):
    os.environ.pop(_name, None)
# a shell's background job ignores Ctrl-C, and so would all that the tests start and interrupt
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """Answers of the planner are kept for the session, and nothing is left in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def tiny_matrix(tmp_path):
    """Write a matrix file of small cells; keyword arguments replace its keys (None removes one)."""
    from matrices import write_matrix

    def write(name: str = "tiny", **overrides: object) -> Path:
        return write_matrix(tmp_path / f"{name}.yaml", name=name, **overrides)

    return write


@pytest.fixture(scope="module")
def gang_plugin(tmp_path_factory):
    """The folder of the plug-in of ``gang_world``, which is on the path."""
    from gang_world import importable, install

    site = tmp_path_factory.mktemp("site")
    install(site)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        importable(site)
        yield site


@pytest.fixture(scope="module")
def world(gang_plugin, tmp_path_factory):
    """Cells of milliseconds, with one teacher."""
    from gang_world import World

    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def kdbench(tmp_path):
    """Run the command to its end in a process: ``kdbench("list", cwd=..., env={...})``."""
    from commands import Command

    command = Command(tmp_path)
    yield command
    command.close()


@pytest.fixture
def browser():
    """A headless Chromium."""
    from chromium import chromium

    with chromium() as driver:
        yield driver
