"""A large matrix without training: planning, leases, records, the end of the run.

Goals at 100,000 cells: planning in 20 s, the parent in 300 MiB.
The number of cells is 1,000 unless ``KDBENCH_SCALE_CELLS`` says another.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_distributions import Distributions

from kdbench.launch.whole import MANY

CELLS = int(os.environ.get("KDBENCH_SCALE_CELLS", "1000"))
#: Seconds of planning and MiB of the parent: what any size may take, and what a cell adds.
PLAN_S, PLAN_CELL_S = 2.0, 18e-5
MEMORY_MB, MEMORY_CELL_MB = 80.0, 220e-5

PLUGIN = """
from kdbench.hooks import LauncherEntry, hookimpl


@hookimpl
def kdbench_launchers():
    return [LauncherEntry(name="fake-cells", target="scale.fake_cells:FakeCells", version="1")]
"""


@pytest.fixture(scope="module")
def simulate(tmp_path_factory):
    """Run a phase in a process of its own, in the order of the tests."""
    folder = tmp_path_factory.mktemp("scale")
    site = Distributions(folder / "site")
    site.add("scale-fake", PLUGIN)
    here = Path(__file__).parent
    paths = [site.path, here.parents[1], here.parents[1] / "plugins", here.parent, here]

    def run(phase):
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
        command = [sys.executable, "-m", "scale.simulate", phase, str(CELLS), str(folder)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    run.folder = folder
    return run


def keep(benchmark, found):
    benchmark.extra_info.update({key: round(value, 3) for key, value in found.items()})
    return found


def test_run_of_many_cells(benchmark, simulate):
    found = keep(benchmark, benchmark.pedantic(simulate, args=("run",), rounds=1))
    assert len(list(simulate.folder.glob("run/cells/*/result.json"))) == found["cells"]
    assert not list(simulate.folder.glob("run/cells/*/.lease*"))
    assert found["memory_mb"] < MEMORY_MB + MEMORY_CELL_MB * CELLS


def test_plan_of_many_finished_cells(benchmark, simulate):
    found = keep(benchmark, benchmark.pedantic(simulate, args=("again",), rounds=1))
    assert found["memory_mb"] < MEMORY_MB + MEMORY_CELL_MB * CELLS
    if benchmark.enabled:
        assert found["plan_s"] < PLAN_S + PLAN_CELL_S * CELLS


def test_end_of_many_cells(benchmark, simulate):
    found = keep(benchmark, benchmark.pedantic(simulate, args=("end",), rounds=1))
    assert (simulate.folder / "run" / "board" / "leaderboard.csv").exists()
    if found["cells"] >= MANY:
        assert found["memory_mb"] < MEMORY_MB + MEMORY_CELL_MB * CELLS
