"""The plug-in under plugins/template, as a stranger would use it: copied, installed, checked, run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

TEMPLATE = Path(__file__).parents[2] / "plugins" / "template"
IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist", ".*")


class Place:
    """A copy of the template, installed into a folder of its own that is on the path of `call`."""

    def __init__(self, root: Path) -> None:
        self.copy, self.site, self.work = root / "plugin", root / "site", root / "work"
        shutil.copytree(TEMPLATE, self.copy, ignore=IGNORED)
        self.work.mkdir()
        path = os.pathsep.join(p for p in (str(self.site), os.environ.get("PYTHONPATH")) if p)
        self.env = {
            **os.environ,
            "PYTHONPATH": path,
            "KDBENCH_CACHE": str(root / "cache"),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }

    def call(self, *command: str, cwd: Path | None = None) -> str:
        """Run a command; its output. Fails the test with all of it unless the exit code is 0."""
        done = subprocess.run(
            command, cwd=cwd or self.work, env=self.env, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def kdbench(self, *arguments: str) -> str:
        return self.call(sys.executable, "-m", "kdbench", *arguments)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    here = Place(tmp_path_factory.mktemp("template"))
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index"]
    here.call(sys.executable, "-m", "pip", "install", *options, "--target", str(here.site), str(here.copy))
    return here


def test_it_is_listed_with_its_distribution(place):
    listed = {m["name"]: m for m in json.loads(place.kdbench("list", "methods", "--json"))}
    assert {"vanilla", "centred-mse"} <= listed.keys()
    assert "kdbench-example-method" in json.dumps(listed["centred-mse"])
    plugins = place.kdbench("plugins")
    row = next(line for line in plugins.splitlines() if line.startswith("example"))
    assert row.split()[:4] == ["example", "kdbench-example-method", "0.1.0", "active"]


def test_its_parameters_are_shown(place):
    shown = place.kdbench("show", "method", "centred-mse")
    assert "weight of the squared error of the logits" in shown
    assert "gentle" in shown


def test_its_own_tests_pass(place):
    out = place.call(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=place.copy)
    assert "3 passed" in out


def test_it_passes_the_conformance_command(place):
    """Some of the checks; the plug-in's own tests make all of them."""
    names = ("finite losses", "teacher untouched", "needs")
    only = [word for name in names for word in ("--check", name)]
    report = json.loads(place.kdbench("check-method", "centred-mse", "--json", *only))
    assert {c["name"] for c in report["checks"]} == set(names)
    assert [c for c in report["checks"] if not c["passed"]] == []


def test_its_matrix_runs_next_to_the_baselines(place):
    file = str(place.copy / "matrix.yaml")
    only = ["--only", "method=vanilla,centred-mse"]
    place.kdbench("run-matrix", file, *only, "--sink", "none", "--device", "cpu", "--workers", "1")
    records = [json.loads(p.read_text()) for p in place.work.glob("runs/example-method/cells/*/result.json")]
    assert {r["status"] for r in records} == {"done"}
    students = [r for r in records if r["labels"]["role"] == "student"]
    assert sorted(r["labels"]["method"] for r in students) == ["centred-mse", "centred-mse", "vanilla"]
    ours = [r for r in students if r["labels"]["method"] == "centred-mse"]
    assert {r["plugins"]["method"]["distribution"] for r in ours} == {"kdbench-example-method"}
    assert {r["identity"]["method"]["params"]["weight"] for r in ours} == {1.0, 0.1}
    # the weight reaches the training: equal starts, other ends
    assert len({r["weights_sha256"] for r in students}) == 3
    board = (place.work / "runs/example-method/board/leaderboard.csv").read_text()
    assert "centred-mse" in board
    again = place.kdbench("run-matrix", file, *only, "--sink", "none", "--device", "cpu")
    assert "nothing to do" in again


def test_a_matrix_that_asks_for_it_fails_in_one_line_without_it(place):
    command = [sys.executable, "-m", "kdbench", "--disable-plugin", "example", "run-matrix"]
    done = subprocess.run(
        [*command, str(place.copy / "matrix.yaml"), "--dry-run"],
        cwd=place.work,
        env=place.env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "centred-mse" in done.stderr
    assert "example" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
