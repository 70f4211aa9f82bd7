"""What sinks are told of all records together."""

import json
import math

import pytest
from factories import make_record

from kdbench.leaderboard.mirrored import row_summary, tell
from kdbench.leaderboard.rows import make_rows
from kdbench.results.store import validate_record
from kdbench.stats import paired


def records(*made):
    return [validate_record(r, "test") for r in made]


def matrix(**overrides):
    vanilla = [make_record(method="vanilla", teacher=None, seed=s, top1=70.0 + s / 10) for s in range(3)]
    teacher = make_record(
        method="vanilla", teacher=None, role="teacher", student="timm:test_resnet", top1=80.0
    )
    kd = [make_record(method="kd", seed=s, top1=72.0 + s, **overrides) for s in range(3)]
    return records(*vanilla, teacher, *kd)


def summary_of(told, method):
    (found,) = (
        s for s in told.summaries if s["labels"]["method"] == method and s["labels"]["role"] == "student"
    )
    return found


def test_a_row_is_told_with_mean_spread_and_gap():
    told = tell(matrix())
    assert len(told.summaries) == 3
    kd = summary_of(told, "kd")
    assert kd["seeds"] == [0, 1, 2]
    assert kd["whole"]
    assert kd["labels"]["seed"] is None
    assert "seed" not in kd["identity"]
    metrics = kd["metrics"]
    assert metrics["final/top1"] == pytest.approx(73.0)
    assert metrics["final/top1_sd"] == pytest.approx(1.0)
    half = 4.302653 / 3**0.5
    assert metrics["final/top1_ci95_low"] == pytest.approx(73.0 - half)
    assert metrics["final/top1_ci95_high"] == pytest.approx(73.0 + half)
    assert (metrics["seeds/planned"], metrics["seeds/done"]) == (3.0, 3.0)
    assert metrics["final/gap_closed"] == pytest.approx((73.0 - 70.1) / (80.0 - 70.1))
    assert metrics["best_test/top1_minus_last"] == pytest.approx(1.0)
    assert metrics["cost/step_ms"] == 10.0
    assert json.loads(json.dumps(kd)) == kd


def test_cells_are_told_their_own_gap_and_nan_where_there_is_none():
    told = tell(matrix())
    gaps = {cell: metrics["final/gap_closed"] for cell, metrics in told.annotations.items()}
    assert len(gaps) == 7
    assert sum(math.isnan(gap) for gap in gaps.values()) == 4
    assert sorted(g for g in gaps.values() if not math.isnan(g))[0] == pytest.approx(2 / 10)


def test_a_failed_seed_makes_the_mean_null_with_a_reason():
    made = matrix()
    failed = make_record(method="kd", seed=3, status="diverged")
    kd = summary_of(tell([*made, *records(failed)]), "kd")
    assert not kd["whole"]
    assert "final/top1" not in kd["metrics"]
    assert kd["metrics"]["cost/step_ms"] == 10.0
    assert (kd["metrics"]["seeds/planned"], kd["metrics"]["seeds/done"]) == (4.0, 3.0)
    assert kd["notes"]["why_no_mean"] == "seed 3 diverged"


def test_a_row_without_any_result_is_not_told():
    assert tell(records(make_record(status="oom"))).summaries == []


def test_the_order_of_the_records_does_not_matter_and_seeds_keep_the_row():
    made = matrix()
    told, turned = tell(made), tell(made[::-1])
    assert told.summaries == turned.summaries
    fewer = tell([r for r in made if r.labels.seed < 2])
    assert summary_of(fewer, "kd")["row_id"] == summary_of(told, "kd")["row_id"]
    assert summary_of(fewer, "kd")["metrics"] != summary_of(told, "kd")["metrics"]


def test_differences_to_references_have_one_name_each():
    (row,) = make_rows(records(*(make_record(method="dkd", seed=s, top1=72.0 + s) for s in range(3))))
    row.against["kd"] = paired({s: 72.0 + s for s in range(3)}, {s: 70.0 + 2 * s for s in range(3)})
    row.gap_interval = (0.1, 0.5)
    row.tied = False
    told = row_summary(row)
    names = {k: v for k, v in told["metrics"].items() if k.startswith("against/")}
    assert set(names) == {
        "against/kd/top1",
        "against/kd/top1_ci95_low",
        "against/kd/top1_ci95_high",
        "against/kd/top1_better",
    }
    assert names["against/kd/top1"] == pytest.approx(1.0)
    assert told["metrics"]["final/gap_closed_ci95_high"] == 0.5
    assert told["notes"]["tied_with_best"] == "false"
