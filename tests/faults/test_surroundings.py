"""The clock goes back, the run folder moves, the tracking server dies, and others start the same matrix."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import alive, done_files, records, wait_until

pytestmark = pytest.mark.e2e

METHODS = ["crd", "ab"]


@pytest.fixture
def case(cases: Any) -> Any:
    return cases.get("few", methods=METHODS)


@pytest.fixture(scope="module")
def clock(tmp_path_factory: Any) -> Path:
    """A library that sets the clock of a process back. It takes a C compiler, which CI installs."""
    library = tmp_path_factory.mktemp("clock") / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


def test_clock_set_back(case: Any, check: Any, kdbench: Any, tmp_path: Path, clock: Path) -> None:
    """By two hours, in the middle of the run, for the parent and for every worker."""
    back, run = tmp_path / "back", tmp_path / "runs" / case.name
    env = {**case.env, "LD_PRELOAD": str(clock), "CLOCK_BACK": str(back)}
    started = kdbench.start(case.matrix, "--set", "timeout_s=120", env=env)
    wait_until(lambda: records(run) or started.process.poll() is not None, "a record")
    assert started.process.poll() is None, started.stderr
    back.touch()
    assert started.wait() == 0, started.stderr
    found = records(run).values()
    assert any(a["finished_at"] > b["finished_at"] for a in found for b in found)
    assert all(r["cost"]["train_s"] > 0 and r["cost"]["device_hours"] < 1 for r in found)
    again = kdbench.run(case.matrix, "--dry-run", env=case.env)
    assert "0 cell(s) would run" in again.stdout
    check(case, run, {}, [{"fault": "the clock is set back", "moment": "after the first cell"}])


def test_another_run_between_plan_and_lock(case: Any, check: Any, kdbench: Any, tmp_path: Path) -> None:
    """Two start; one has planned all cells when the other finishes them: nothing runs twice."""
    hold, run = tmp_path / "hold", tmp_path / "runs" / case.name
    env = {**case.env, "KDBENCH_TEST_HOLD": str(hold)}
    first = kdbench.start(case.matrix, env=env)
    wait_until(lambda: Path(f"{hold}.held").exists() or first.process.poll() is not None, "the plan")
    second = kdbench.run(case.matrix, env=case.env)
    assert second.returncode == 0, second.stderr
    before = done_files(run)
    assert not list(run.glob("cells/*/previous"))
    hold.touch()
    assert first.wait() == 0, first.stderr
    assert not any(line.startswith("start ") for line in first.lines), first.stderr
    check(case, run, before, [{"fault": "two parents", "moment": "one between plan and lock"}])


@pytest.mark.faults
def test_many_parents_at_once(case: Any, check: Any, kdbench: Any, tmp_path: Path) -> None:
    """One does the work; the others say that it does and leave, or find nothing to do."""
    run = tmp_path / "runs" / case.name
    started = [kdbench.start(case.matrix, env=case.env) for _ in range(3)]
    codes = [s.wait() for s in started]
    assert set(codes) <= {0, 2}
    for s, code in zip(started, codes, strict=True):
        assert (code == 0) or "another kdbench is running this matrix (process " in s.lines[-1], s.stderr
    assert {r["cost"]["attempts"] for r in records(run).values()} == {1}
    assert sum(line.startswith("start ") for s in started for line in s.lines) == len(case.expected)
    check(case, run, {}, [{"fault": "two parents", "moment": "at once"}] * 2)


@pytest.mark.faults
def test_parent_killed_while_code_is_deaf(cases: Any, check: Any, kdbench: Any, tmp_path: Path) -> None:
    """Code that never gives the interpreter back cannot be told that the parent died; it ends all the same."""
    case = cases.get("deaf", methods=[{"name": "saboteur", "params": {"name": "one"}}])
    run = tmp_path / "runs" / case.name
    env = {**case.env, "KDBENCH_TEST_ACTS": json.dumps({"one": "deaf"})}
    started = kdbench.start(case.matrix, env=env)
    cells = {c for c, e in case.expected.items()}
    wait_until(
        lambda: len(list(run.glob("cells/*/curves.jsonl"))) == len(cells), "the deaf cell's first epoch"
    )
    workers = started.workers()
    assert workers
    started.process.kill()
    started.wait()
    wait_until(lambda: not any(map(alive, workers)), "the workers of a killed parent to leave", limit_s=10)
    before = done_files(run)
    done = kdbench.run(case.matrix, env=case.env)
    assert done.returncode == 0, done.stdout + done.stderr
    check(
        case, run, before, [{"fault": "SIGKILL to the parent", "moment": "the worker holds the interpreter"}]
    )


@pytest.mark.parametrize("act", ["import", "import hang"])
def test_a_module_that_cannot_be_imported_when_the_matrix_is_planned(
    cases: Any, kdbench: Any, tmp_path: Path, act: str
) -> None:
    """It is told before anything runs; one that hangs ends with the command."""
    case = cases.get("few", methods=METHODS)
    matrix = tmp_path / "m.yaml"
    matrix.write_text(case.matrix.read_text().replace("crd", "importer"))
    env = {
        **case.env,
        "KDBENCH_TEST_ACTS": json.dumps({"any": act}),
        "KDBENCH_CACHE": str(tmp_path / "cache"),
    }
    if act == "import":
        done = kdbench.run(matrix, env=env)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "sabotage at import" in line
    else:
        started = kdbench.start(matrix, env={**env, "KDBENCH_TEST_BADGE": str(tmp_path / "planning")})
        wait_until(lambda: (tmp_path / "planning").exists(), "the import")
        planner = int((tmp_path / "planning").read_text())
        os.kill(started.pid, signal.SIGINT)
        assert started.wait() == 130, started.stderr
        wait_until(lambda: not alive(planner), "the planning process to leave", limit_s=10)
    assert not list((tmp_path / "runs").glob("*/cells/*/result.json"))


@pytest.mark.faults
def test_tracking_server_killed_and_back(case: Any, check: Any, kdbench: Any, tmp_path: Path) -> None:
    """The records do not need it; `kdbench sync` brings the store up to date, each cell once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"

    def serve() -> subprocess.Popen[bytes]:
        where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        store = ["--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}"]
        line = [sys.executable, "-m", "mlflow", "server", *where, *store]
        process = subprocess.Popen(line, cwd=tmp_path, start_new_session=True)

        def answers() -> bool:
            try:
                return bool(urllib.request.urlopen(f"{uri}/health", timeout=1).status == 200)
            except OSError:
                return False

        wait_until(answers, "the tracking server")
        return process

    def cells() -> list[str]:
        from mlflow.tracking import MlflowClient

        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(f"kdbench/{case.name}")
        runs = client.search_runs([experiment.experiment_id]) if experiment else []
        return sorted(r.data.tags["kdbench.cell_id"] for r in runs if "kdbench.cell_id" in r.data.tags)

    server = serve()
    try:
        run = tmp_path / "runs" / case.name
        started = kdbench.start(case.matrix, "--tracking-uri", uri, env=case.env)
        wait_until(lambda: records(run) or started.process.poll() is not None, "a record")
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        assert started.wait() == 0, started.stderr
        assert "`kdbench sync runs/few` repairs it" in started.stderr
        check(case, run, {}, [{"fault": "the tracking server is killed", "moment": "after the first cell"}])
        server = serve()
        before = done_files(run)
        assert kdbench("sync", case.name, "--tracking-uri", uri).returncode == 0
        assert cells() == sorted(case.expected)
        assert done_files(run) == before
    finally:
        for child in psutil.Process(server.pid).children(recursive=True):
            child.kill()
        server.kill()
        server.wait()


@pytest.mark.faults
def test_moved_run_folder(case: Any, check: Any, kdbench: Any, tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "runs" / case.name, tmp_path / "another disk" / "results"
    started = kdbench.start(case.matrix, env=case.env)
    wait_until(lambda: records(run) or started.process.poll() is not None, "a record")
    started.process.send_signal(signal.SIGTERM)
    assert started.wait() == 130, started.stderr
    elsewhere.mkdir(parents=True)
    shutil.move(run, elsewhere)
    before = done_files(elsewhere / case.name)
    done = kdbench.run(case.matrix, "--runs", elsewhere, env=case.env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not run.exists()
    check(case, elsewhere / case.name, before, [{"fault": "the run folder is moved", "moment": "in a cell"}])
