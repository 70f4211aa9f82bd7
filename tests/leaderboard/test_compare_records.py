"""Two sets of records: pairing, hardware, versions, what is missing or broken."""

from __future__ import annotations

import pytest
from factories import make_record, make_speed_record, make_speed_row

from kdbench.cli.compare import _ratio, record_regressions
from kdbench.leaderboard.compare import compare_records, why_apart
from kdbench.results.schema import Record

CPU = {"device": "cpu", "threads": 1}


def records(*, shift=0.0, ratio=1.0, seeds=3, **kw):
    """Seeds around 72 with a spread of their own, shifted by `shift` and as fast as `ratio`."""
    made = []
    for seed in range(seeds):
        wobble = (0.1, -0.05, 0.02, 0.0)[seed % 4] if shift or ratio != 1.0 else 0.0
        given = {
            "top1": 72.0 + 3 * seed + shift + wobble,
            "step_ms": (10.0 + seed) / (ratio * (1 + wobble / 50)),
        }
        given |= kw
        given["environment"] = {**CPU, **kw.get("environment", {})}
        made.append(Record.model_validate(make_record(seed=seed, **given)))
    return made


def only(found):
    (line,) = found.lines
    return line


def test_equal_sets_have_no_difference():
    line = only(compare_records(records(), records()))
    assert line.name == ("digits", line.name[1], "kd")
    assert line.seeds == [0, 1, 2]
    assert (line.accuracy.value, line.accuracy.significant) == (0.0, False)
    assert set(line.speeds) == {"train", "infer b1", "infer b64"}
    assert all(s.value == 1.0 for s in line.speeds.values())
    assert line.notes == []


def test_a_loss_of_accuracy_is_significant_although_the_seeds_differ_by_more():
    found = compare_records(records(), records(shift=-1.0))
    line = only(found)
    assert line.accuracy.value == pytest.approx(-1.0, abs=0.1)
    assert line.accuracy.significant
    assert len(record_regressions(found, 0.5, None)) == 1
    assert record_regressions(found, 1.5, None) == []


def test_a_gain_is_no_regression():
    assert record_regressions(compare_records(records(), records(shift=1.0, ratio=1.5)), 0.0, 0.0) == []


def test_speed_is_a_ratio_of_training_throughput():
    found = compare_records(records(), records(ratio=0.8))
    assert only(found).speeds["train"].value == pytest.approx(0.8, rel=0.01)
    assert [r for r in record_regressions(found, 9.0, 0.05) if "train -" in r]
    assert record_regressions(found, 9.0, 0.3) == []
    assert record_regressions(found, 9.0, None) == []


def test_two_seeds_are_too_few_for_speed():
    found = compare_records(records(seeds=2), records(seeds=2, ratio=0.1))
    speed = only(found).speeds["train"]
    assert (speed.n, speed.low, speed.significant) == (2, None, False)
    assert _ratio(speed).endswith(" n/a (2 seeds)")
    assert record_regressions(found, 9.0, 0.05) == []


def test_speeds_of_an_unsteady_machine_differ_by_less():
    def unsteady(ratio, iqr):
        made = records(ratio=ratio)
        for record in made:
            for speed in record.throughput["student"].values():
                speed.iqr_ratio = iqr
        return made

    steady = only(compare_records(unsteady(1.0, 0.0), unsteady(0.8, 0.0))).speeds["train"]
    for a, b in ((0.5, 0.0), (0.0, 0.5), (0.3, 0.3)):
        found = compare_records(unsteady(1.0, a), unsteady(0.8, b))
        speed = only(found).speeds["train"]
        assert speed.low == pytest.approx(steady.low / ((1 + a / 2) * (1 + b / 2)))
        assert not speed.significant
        assert record_regressions(found, 9.0, 0.05) == []


def test_one_loss_of_many_rows_may_be_chance():
    """Alone (of three speeds) it counts; among thirty more that differ by nothing it is no surprise."""
    wobble = (0.0, 0.3, -0.3)
    slower = [(10.0 + s) * (1.15 + w / 18) for s, w in enumerate(wobble)]
    a = records()
    b = [
        Record.model_validate(make_record(seed=s, step_ms=ms, environment=CPU)) for s, ms in enumerate(slower)
    ]
    found = compare_records(a, b)
    assert 0.05 / 33 < only(found).speeds["train"].p < 0.05 / 3
    assert len(record_regressions(found, 9.0, 0.05)) == 1
    others = [r for k in range(10) for r in records(method="kd", labels={"variant": f"kd({k})"})]
    many = compare_records([*a, *others], [*b, *others])
    assert len(many.lines) == 11
    assert sum(line.speeds["train"].significant for line in many.lines) == 1
    assert record_regressions(many, 9.0, 0.05) == []


def test_one_seed_is_never_significant():
    found = compare_records(records(seeds=1), records(seeds=1, shift=-5.0))
    assert not only(found).accuracy.significant
    assert record_regressions(found, 0.0, 0.0) == []


@pytest.mark.parametrize("other", [{"device_name": "Other CPU"}, {"threads": 2}])
def test_speeds_of_different_hardware_are_not_compared(other):
    found = compare_records(records(), records(ratio=0.1, environment=other))
    line = only(found)
    assert line.speeds == {}
    assert line.accuracy is not None
    assert any(note.startswith("speeds not compared") for note in line.notes)
    assert any(note.startswith("hardware: ") for note in found.notes)
    assert record_regressions(found, 9.0, 0.0) == []


def test_records_of_two_versions_find_each_other():
    new = records(environment={"torch": "2.16.0"})
    for record in new:
        record.identity["method"]["version"] = "9.9"
        record.cell_id = record.cell_id[::-1]
    found = compare_records(records(), new)
    assert only(found).seeds == [0, 1, 2]
    assert only(found).notes == []
    assert "torch: 2.15.0 in A, 2.16.0 in B" in found.notes


def test_what_else_differs_is_said():
    recipe = {"epochs": 3, "optimizer": {"name": "momentum", "lr": 0.1}, "precision": "fp32"}
    line = only(compare_records(records(), records(recipe=recipe)))
    assert line.notes == ["not the same cells: recipe.optimizer.lr 0.05 and 0.1"]


def test_a_name_that_two_cells_share_is_resolved_by_the_identity():
    other = {"epochs": 9, "optimizer": {"name": "momentum", "lr": 0.05}, "precision": "fp32"}
    both = [*records(), *records(top1=50.0, recipe=other)]
    found = compare_records(both, list(reversed(both)))
    assert [line.seeds for line in found.lines] == [[0, 1, 2]] * 2
    assert [line.accuracy.value for line in found.lines] == [0.0, 0.0]
    assert sorted(line.accuracy.a for line in found.lines) == [50.0, 75.0]


def test_of_two_records_of_a_cell_the_newest_counts():
    old = records(seeds=1, top1=10.0, finished_at="2020-01-01T00:00:00+00:00")
    found = compare_records([*records(seeds=1), *old], records(seeds=1))
    assert only(found).accuracy.a == 72.0
    assert found.notes == ["A holds 1 older record(s) of the same cells, which do not count"]


def test_a_cell_that_broke_is_a_regression_and_the_others_still_count():
    failed = Record.model_validate(make_record(seed=2, status="diverged", environment=CPU))
    found = compare_records(records(), [*records()[:2], failed])
    line = only(found)
    assert line.seeds == [0, 1]
    assert line.broken == {2: "diverged"}
    (text,) = record_regressions(found, 9.0, None)
    assert text.endswith("seed 2: done in A, diverged in B")
    assert record_regressions(compare_records([failed], records()), 0.0, 0.0) == []


def test_what_one_side_lacks_is_listed():
    found = compare_records(records(), [*records(seeds=2), *records(method="dkd", seeds=1)])
    assert only(found).seeds == [0, 1]
    assert [name.split(", ")[-2:] for name in found.only_a] == [["kd", "seed 2"]]
    assert [name.split(", ")[-2:] for name in found.only_b] == [["dkd", "seed 0"]]


def test_what_keeps_all_cells_apart_is_named():
    labels = {"recipe": "slow"}
    identity = {"dataset": {"limit_train": 500}, "teachers": [{"cell": "f" * 64}]}
    slow = records(recipe={"epochs": 9}, labels=labels, identity=identity, seeds=2)
    fast = [*records(method="dkd"), *records()]
    assert compare_records(fast, slow).lines == []
    text = why_apart(fast, slow)
    assert text.startswith("A has digits, ")
    assert "kd, seed 0; B has digits, " in text
    assert text.endswith(
        "they differ in recipe quick and slow, dataset.limit_train None and 500, recipe.epochs 3 and 9, "
        "recipe.optimizer.lr 0.05 and absent, recipe.optimizer.name momentum and absent, "
        "recipe.precision fp32 and absent"
    )


def test_a_difference_that_a_key_tells_is_told_once():
    found = why_apart(records(seeds=1), records(seeds=1, dataset="other"))
    assert found.endswith("they differ in dataset.name digits and other")


def test_costs_taken_in_gangs_on_one_side_only_are_noted():
    ganged = records(cost={"shared_s": 3.0})
    note = "costs of {} cell(s) were taken in gangs in {} and alone in {}"
    assert note.format(3, "A", "B") in compare_records(ganged, records()).notes
    assert note.format(2, "B", "A") in compare_records(records(), [*ganged[:2], records()[2]]).notes
    assert not [n for n in compare_records(ganged, ganged).notes if "gangs" in n]
    # one of them made the batches, so that it took nothing from others
    first = [*records(cost={"gang": 3})[:1], *records(cost={"gang": 3, "shared_s": 3.0})[1:]]
    assert note.format(3, "A", "B") in compare_records(first, records()).notes


def speed_record(*rows, student="small", seed=0, **environment):
    return Record.model_validate(make_speed_record(student, list(rows), seed=seed, **environment))


def scaled(ratio, **kw):
    return make_speed_row(samples_ms=[ms / ratio for ms in (63.8, 63.9, 64.0, 64.1, 64.2)], **kw)


def test_cells_that_measure_speed_only_are_compared_by_their_rounds():
    a = speed_record(scaled(1.0), scaled(1.0, mode="train", batch_size=8))
    b = speed_record(scaled(0.8), scaled(1.0, mode="train", batch_size=8))
    found = compare_records([a], [b])
    line = only(found)
    assert line.accuracy is None
    assert set(line.speeds) == {"infer fp32 b64", "train fp32 b8"}
    slower = line.speeds["infer fp32 b64"]
    assert slower.value == pytest.approx(0.8)
    assert slower.significant
    assert not line.speeds["train fp32 b8"].significant
    assert len(record_regressions(found, 0.0, 0.05)) == 1
    assert record_regressions(found, 0.0, 0.25) == []


def test_a_difference_within_the_drift_is_none():
    line = only(
        compare_records([speed_record(scaled(1.0))], [speed_record(scaled(0.9, drift_percent=-15.0))])
    )
    speed = line.speeds["infer fp32 b64"]
    assert speed.value == pytest.approx(0.9)
    assert not speed.significant


def test_speeds_alone_of_different_hardware_are_not_compared():
    line = only(compare_records([speed_record(scaled(1.0))], [speed_record(scaled(0.5), threads=2)]))
    assert line.speeds == {}
    assert any(note.startswith("speeds not compared") for note in line.notes)


def test_a_speed_that_is_lost_is_a_regression():
    gone = make_speed_row(status="oom", images_per_s=None, step_ms=None, samples_ms=[])
    found = compare_records([speed_record(scaled(1.0))], [speed_record(gone)])
    assert only(found).lost == ["infer fp32 b64: done in A, oom in B"]
    assert len(record_regressions(found, 0.0, None)) == 1
