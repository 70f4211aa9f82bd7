"""``kdbench status`` reads files only; ``kdbench prepare`` tries each method."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from factories import make_record, signed
from matrices import write_matrix

from kdbench.cli import main
from kdbench.results.lease import Lease
from kdbench.results.progress import PLAN, RunWatch, write_command, write_plan
from kdbench.results.store import RunFolder

IDS = [f"{k:064x}" for k in range(8)]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with a cell of every kind."""
    run = RunFolder(tmp_path / "runs" / "tiny")
    run.write_matrix({"name": "tiny"})
    write_plan(run, [(cell_id, k % 2) for k, cell_id in enumerate(IDS)])
    for k, status in enumerate(("done", "done", "failed", "not_applicable")):
        put(run, IDS[k], status, train_s=10.0 * (k + 1))
    cut = run.cell(IDS[4])
    cut.mkdir()
    (cut / "checkpoint.safetensors").touch()
    (cut / "cell.json").write_text(json.dumps({"labels": make_record(method="dkd", seed=4)["labels"]}))
    running = run.cell(IDS[5])
    running.mkdir()
    labels = make_record(method="kd", seed=5)["labels"]
    (running / "cell.json").write_text(json.dumps({"labels": labels, "recipe": {"epochs": 4}}))
    (running / "curves.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n{"epo')
    return run


def put(run, cell_id, status, train_s=1.0):
    record = make_record(cell_id=cell_id, status=status)
    if record.get("cost"):
        record["cost"] |= {"train_s": train_s, "eval_s": 0.0, "log_s": 0.0, "setup_s": 0.0}
    run.cell(cell_id).mkdir(parents=True, exist_ok=True)
    (run.cell(cell_id) / "result.json").write_text(json.dumps(record))


def status(run, *arguments):
    done = CliRunner().invoke(main, ["status", "tiny", "--runs", str(run.path.parent), *arguments])
    assert done.exit_code == 0, done.output + repr(done.exception)
    return done


def test_counts_running_cells_and_failures(run):
    lease = Lease(run.cell(IDS[5]))
    assert lease.take()
    found = json.loads(status(run, "--json").stdout)
    lease.close()
    assert found["cells"] == 8
    assert found["counts"] == {
        "done": 2,
        "failed": 1,
        "not_applicable": 1,
        "interrupted": 1,
        "running": 1,
        "to run": 2,
    }
    (one,) = found["running"]
    assert (one["pid"], one["epoch"], one["epochs"], one["silent"]) == (os.getpid(), 2, 4, False)
    assert [f["status"] for f in found["failures"]] == ["failed", "interrupted"]
    assert found["parent"] is None
    # patterns: 10 s for even cells, 20 s for odd ones; two of each are left, and one of 15 s is half done
    assert found["left_s"] == pytest.approx(2 * 10 + 2 * 20 - 7.5)


def test_text(run):
    leases = [Lease(run.path), Lease(run.cell(IDS[5]))]
    assert all(lease.take() for lease in leases)
    text = status(run).stdout
    for lease in leases:
        lease.close()
    assert text.startswith(
        "tiny: 8 cells: 2 done, 1 failed, 1 interrupted, 1 not_applicable, 1 running, 2 to run"
    )
    assert f"process {os.getpid()}" in text
    assert "epoch 2/4 on" in text
    assert "\ntime left: 0:00:" in text
    assert "failed: " in text
    cut = "dkd | timm:test_resnet -> timm:test_efficientnet | digits | seed 4"
    assert text.endswith(f"\ninterrupted: {cut}: has a checkpoint\n")


@pytest.mark.parametrize("by_file", [True, False])
def test_what_is_left_of_a_run_that_nobody_works_on(run, tmp_path, by_file):
    file = write_matrix(tmp_path / "m.yaml", name="tiny") if by_file else "tiny"
    done = CliRunner().invoke(main, ["status", str(file), "--runs", str(run.path.parent), "--watch"])
    command = f"kdbench run-matrix {file if by_file else 'MATRIX'} --runs {run.path.parent}"
    assert f"\nnobody works on this run, 4 cell(s) are left: `{command}` goes on\n" in done.stdout
    assert "time left" not in done.stdout
    assert done.stderr == "tiny: nobody works on this run: --watch ends\n"


def test_a_run_with_nothing_left(run):
    for cell_id in IDS[4:]:
        put(run, cell_id, "done")
    done = status(run, "--watch")
    assert "\nnothing is left to run; `kdbench run-matrix MATRIX" in done.stdout
    assert "--rerun failed` runs again what failed\n" in done.stdout
    assert "time left" not in done.stdout
    assert done.stderr == "tiny: nothing is left to run: --watch ends\n"


def test_the_command_that_goes_on_with_a_shipped_matrix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = RunFolder("runs/quickstart")
    quick.write_matrix({"name": "quickstart"})
    write_plan(quick, [(IDS[0], 0)])
    done = CliRunner().invoke(main, ["status", "quickstart"])
    assert "1 cell(s) are left: `kdbench run-matrix quickstart` goes on\n" in done.stdout


def test_the_command_that_began_the_run_goes_on_with_it(run):
    write_command(run, "kdbench run-matrix m.yaml --launcher ray --tracking-uri http://me:hidden-word@host")
    text = status(run).stdout
    assert "`kdbench run-matrix m.yaml --launcher ray --tracking-uri http://***@host` goes on\n" in text


def test_records_that_are_not_as_they_were_written_are_no_results(run):
    path = run.cell(IDS[0]) / "result.json"
    path.write_text(json.dumps({**signed(json.loads(path.read_text())), "warnings": ["another"]}))
    put(run, IDS[1], "done")
    other = run.cell(IDS[1]) / "result.json"
    other.write_text(json.dumps(make_record(cell_id=IDS[0])))
    found = json.loads(status(run, "--json").stdout)
    assert found["counts"].get("done", 0) == 0
    assert found["counts"]["unreadable"] == 2
    told = [f["message"] for f in found["failures"] if f["status"] == "unreadable"]
    assert "the record was edited after it was written" in told[0]
    assert "cell_id is that of another cell" in told[1]


@pytest.mark.parametrize(
    "edit", [{"cost": "x"}, {"cost": {"train_s": "x"}}, {"status": "failed", "error": "x"}]
)
def test_records_of_another_form_are_no_results(run, edit):
    path = run.cell(IDS[0]) / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **edit}))
    assert json.loads(status(run, "--json").stdout)["counts"]["unreadable"] == 1


def test_dead_holder_does_not_run(run):
    holder = {"token": "x", "pid": 2**22 + 1, "born": 1, "host": "here", "expiry_s": 60}
    lease = Lease(run.cell(IDS[5]))
    assert lease.take()
    file = run.cell(IDS[5]) / ".lease-1"
    machine = json.loads(file.read_text())["machine"]
    file.write_text(json.dumps({**holder, "machine": machine}))
    assert json.loads(status(run, "--json").stdout)["running"] == []
    file.write_text(json.dumps({**holder, "machine": "another"}))
    os.utime(file, (1.0, 1.0))
    (one,) = json.loads(status(run, "--json").stdout)["running"]
    assert one["silent"]
    assert "SILENT for" in status(run).stdout
    lease.close()


def test_watching_sees_changes_and_ends(run):
    watch = RunWatch(run)
    assert watch.look().counts["failed"] == 1
    put(run, IDS[2], "done")
    (run.cell(IDS[3]) / "result.json").write_text("{")
    seen = watch.look()
    assert (seen.counts["failed"], seen.counts["done"], seen.counts["unreadable"]) == (0, 3, 1)
    assert [f.status for f in seen.failures] == ["unreadable", "interrupted"]
    assert status(run, "--watch", "--json").exit_code == 0  # nobody works on it


def test_nothing_is_written(run):
    before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*")}
    status(run)
    assert {p: p.stat().st_mtime_ns for p in run.path.rglob("*")} == before


def test_run_without_a_plan_and_unknown_runs(run):
    (run.path / PLAN).unlink()
    assert json.loads(status(run, "--json").stdout)["cells"] == 6
    found = CliRunner().invoke(main, ["status", "tidy", "--runs", str(run.path.parent)])
    assert found.exit_code == 2
    assert (
        "no run of this matrix has begun, or it is still being planned (did you mean 'tiny'?)" in found.stderr
    )


def test_prepare_trains_a_step_of_each_method(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_matrix(tmp_path / "m.yaml", name="m", methods=["vanilla", "kd", "vid"], seeds=2)
    done = CliRunner().invoke(main, ["prepare", str(path), "--workers", "1", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "methods: 3 of 3 trained a step" in done.stdout
    assert [p.name for p in (tmp_path / "runs" / "m" / "cells").glob(".*")] == []
    again = CliRunner().invoke(main, ["prepare", str(path), "--no-smoke"])
    assert "trained a step" not in again.stdout
