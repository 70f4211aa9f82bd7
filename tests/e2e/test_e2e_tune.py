"""`kdbench tune` with real workers: cut, gone on with, and what the run and its board make of it."""

from __future__ import annotations

import csv
import json

import pytest
from commands import Command, records
from matrices import write_matrix

pytestmark = pytest.mark.e2e


def test_a_search_and_the_track_that_it_gives(tmp_path):
    path = write_matrix(
        tmp_path / "m.yaml",
        methods=["vanilla", "kd"],
        recipe={"base": "quick", "epochs": 1, "batch_size": 32},
        tune={"trials": 2, "seeds": [9]},
    )
    command = Command(tmp_path)
    first = command.here("tune", str(path), "--method", "kd", "--trials", "1", "--device", "cpu")
    assert first.returncode == 0, first.stderr
    run = tmp_path / "runs" / "tiny"
    once = json.loads((run / "tuned.json").read_text())["studies"]
    second = command.here("tune", str(path), "--device", "cpu")
    assert second.returncode == 0, second.stderr
    studies = {s["variant"]: s for s in json.loads((run / "tuned.json").read_text())["studies"].values()}
    assert {name: len(s["trials"]) for name, s in studies.items()} == {"vanilla": 0, "kd": 2}
    (kept,) = once.values()
    assert studies["kd"]["trials"][:1] == kept["trials"]
    trials = [r for r in records(run / "tune").values() if r["labels"]["role"] == "trial"]
    assert len(trials) == 2
    for record in trials:
        assert record["deployables"]["student"]["last"] == {}
        assert {t["top1"] for t in record["teachers"]} == {None}
    assert {r["validation"]["last"] for r in trials} == {t["value"] for t in studies["kd"]["trials"]}

    done = command.run_here(path)
    assert done.returncode == 0, done.stderr
    made = [r for r in records(run).values() if r["labels"]["role"] == "student"]
    tuned = [r for r in made if r["labels"]["track"] == "per-pair-tuned"]
    assert (len(made), len(tuned)) == (4, 2)
    with (run / "board" / "leaderboard.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["role"] == "student"]
    assert {(r["variant"], r["track"], r["search_budget"]) for r in rows} == {
        ("vanilla", "default", ""),
        ("kd", "default", ""),
        ("vanilla", "per-pair-tuned", "2 trials of 1 epoch on seed 9"),
        ("kd", "per-pair-tuned", "2 trials of 1 epoch on seed 9"),
    }
    assert {r["baseline"] for r in rows} == {"vanilla"}
