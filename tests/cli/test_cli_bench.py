"""``kdbench bench`` as a command, on a small suite of its own."""

from __future__ import annotations

import json

import pytest
from commands import error_line

SUITE = """
def work():
    return sum(range(10_000))

def test_own(benchmark):
    benchmark.pedantic(work, rounds=4)
    benchmark.extra_info["ratio"] = {ratio}

def test_other(benchmark):
    benchmark.pedantic(work, rounds=4)
    assert {good}
"""


@pytest.fixture
def suite(tmp_path):
    def write(ratio=1.0, good=True):
        (tmp_path / "test_suite.py").write_text(SUITE.format(ratio=ratio, good=good))
        return tmp_path / "test_suite.py"

    return write


def test_keep_and_compare(kdbench, suite, tmp_path):
    path = suite()
    done = kdbench("bench", path, "--save", "base", "--store", "kept", "-k", "own")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"kept as {tmp_path.joinpath('kept', 'base.json').relative_to(tmp_path)}" in done.stdout
    assert "results.json" not in done.stdout + done.stderr  # a temporary file, which is gone
    content = json.loads((tmp_path / "kept" / "base.json").read_text())
    assert [b["name"] for b in content["benchmarks"]] == ["test_own"]
    assert content["kdbench"]["torch"]
    assert content["machine_info"]["cpu"]
    assert "node" not in content["machine_info"]
    same = kdbench("bench", path, "--compare", "base", "--store", "kept", "-k", "own", "--fail-over", 3)
    assert same.returncode == 0, same.stdout + same.stderr
    assert "0 benchmark(s) slower than 3 x the baseline" in same.stdout
    suite(ratio=1.55)
    slower = kdbench("bench", path, "--compare", "kept/base.json", "-k", "own")
    assert slower.returncode == 1
    assert "1 benchmark(s) slower than 1.2 x the baseline" in slower.stdout


def test_a_failure_is_code_1_and_not_kept(kdbench, suite, tmp_path):
    done = kdbench("bench", suite(good=False), "--save", "base", "--store", "kept")
    assert done.returncode == 1
    assert not (tmp_path / "kept").exists()


def test_bad_input_is_told_in_one_line(kdbench, suite, tmp_path):
    path = suite()
    kept = tmp_path / ".benchmarks"
    kept.mkdir()
    (kept / "monday.json").write_text("{}")
    assert "no results 'mondy' in .benchmarks (did you mean 'monday'?)" in error_line(
        kdbench.here("bench", path, "--compare", "mondy")
    )
    assert "not results of `kdbench bench`" in error_line(kdbench.here("bench", path, "--compare", "monday"))
    assert "is no name for results" in error_line(kdbench.here("bench", path, "--save", "../x"))
    assert "no such file or folder" in error_line(kdbench.here("bench", "missing"))
    assert "--compare x.json: no such file" in error_line(kdbench.here("bench", path, "--compare", "x.json"))


def test_nothing_to_run(kdbench, suite):
    done = kdbench("bench", suite(), "-k", "no_such")
    assert done.returncode == 2
    assert "no benchmark ran: nothing matches -k 'no_such'" in done.stderr


def test_the_suite_of_the_checkout_is_found(tmp_path, monkeypatch):
    from kdbench.cli.bench import _suite

    monkeypatch.chdir(tmp_path)
    assert _suite().joinpath("test_bench_overhead.py").exists()
    (tmp_path / "tests" / "benchmarks").mkdir(parents=True)
    assert not _suite().joinpath("test_bench_overhead.py").exists()
