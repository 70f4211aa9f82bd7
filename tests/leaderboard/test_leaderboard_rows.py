"""Grouping, gap closed and relative cost, with numbers by hand."""

import csv
import io

import pytest
from factories import TEACHER_ARCH, make_record

from kdbench.errors import RecordError
from kdbench.leaderboard import render_board
from kdbench.leaderboard.board import make_board
from kdbench.results.schema import Record


def board(*records):
    return make_board([Record.model_validate(r) for r in records], title="T")


def seeds(method, values, **kw):
    return [make_record(method=method, seed=s, top1=v, **kw) for s, v in enumerate(values)]


def alone(values, **kw):
    return seeds("plain", values, teacher=None, **kw)


def teacher_cell(method="plain"):
    return make_record(method=method, teacher=None, role="teacher", student=TEACHER_ARCH, seed=7, top1=80.0)


def row(b, variant, role="student"):
    (found,) = [r for r in b.rows if r.labels.variant == variant and r.labels.role == role]
    return found


def test_gap_closed_by_hand():
    b = board(*alone([70, 71, 72]), *seeds("hint", [73, 74, 75]), teacher_cell())
    hint = row(b, "hint")
    assert hint.last.mean == 74.0
    assert hint.teacher_top1 == 80.0
    assert hint.gap_closed == pytest.approx((74 - 71) / (80 - 71))
    assert hint.baseline is row(b, "plain")
    assert row(b, "plain").gap_closed is None


def test_gap_is_over_the_seeds_of_the_row():
    b = board(*alone([70, 72, 74]), *seeds("hint", [73, 75]), teacher_cell())
    assert row(b, "hint").gap_closed == pytest.approx((74 - 71) / (80 - 71))


@pytest.mark.parametrize(
    "records",
    [
        [*alone([70, 71, 72]), *seeds("hint", [73, 74, 75], teacher_top1=71.0)],  # the teacher is no better
        [*alone([70, 71]), *seeds("hint", [73, 74, 75])],  # seed 2 has no baseline
        [*alone([70, 71]), *alone([0, 0, 0], status="oom")[2:], *seeds("hint", [73, 74, 75])],
        [
            *alone([70, 71, 72]),
            *seeds("hint", [73, 74]),
            make_record(method="hint", seed=2, status="diverged"),
        ],
        [*alone([70, 71, 72], recipe={"epochs": 9}), *seeds("hint", [73, 74, 75])],  # another recipe
        [*alone([70, 71, 72], student="timm:other"), *seeds("hint", [73, 74, 75])],  # another student
        seeds("hint", [73, 74, 75]),
    ],
)
def test_gap_is_null(records):
    assert row(board(*records), "hint").gap_closed is None


def test_baseline_is_the_method_that_trained_the_teacher():
    others = seeds("smooth", [72, 72, 72], teacher=None)  # has no teacher either
    records = [*alone([70, 71, 72]), *others, *seeds("hint", [73, 74, 75])]
    assert row(board(*records, teacher_cell("plain")), "hint").baseline.labels.method == "plain"
    assert row(board(*records, teacher_cell("smooth")), "hint").baseline.labels.method == "smooth"
    assert row(board(*records), "hint").baseline is None


def test_baseline_without_teacher_cells_is_the_one_with_fewest_hyper_parameters():
    others = seeds("smooth", [72, 72, 72], teacher=None, params={"eps": 0.1})
    b = board(*alone([70, 71, 72]), *others, *seeds("hint", [73, 74, 75]))
    assert row(b, "hint").baseline.labels.method == "plain"


def test_method_without_its_teacher_is_no_baseline():
    lost = [make_record(method="hint", teacher=None, seed=s, status="not_applicable") for s in range(3)]
    b = board(*lost, *seeds("other", [73, 74, 75]))
    assert row(b, "other").baseline is None


def test_extra_parameters_rule_a_baseline_out():
    peers = seeds("peers", [72, 72, 72], teacher=None, cost={"extra_params": 5})
    b = board(*peers, *seeds("hint", [73, 74, 75]))
    assert row(b, "hint").baseline is None


def test_failed_cell_makes_the_means_null_and_is_listed():
    b = board(*seeds("hint", [73, 74]), make_record(method="hint", seed=2, status="oom", message="a\nb"))
    hint = row(b, "hint")
    assert (len(hint.done), len(hint.records)) == (2, 3)
    assert hint.last.mean is hint.best_val is hint.best_test is None
    (cell,) = b.unfinished
    assert (cell.status, cell.variant, cell.seed, cell.message) == ("oom", "hint", 2, "a")


def test_best_epochs_are_means():
    hint = row(board(*seeds("hint", [73, 74, 75])), "hint")
    assert hint.best_val == 73.75
    assert hint.best_test == 75.0


def test_costs_are_medians_and_hours_are_summed():
    records = [make_record(method="hint", seed=s, step_ms=ms) for s, ms in enumerate([10.0, 40.0, 20.0])]
    b = board(*records, *alone([70, 71, 72], step_ms=10.0))
    hint = row(b, "hint")
    assert hint.cost("step_ms") == 20.0
    assert hint.relative_step == 2.0
    assert hint.device_hours == 0.75
    assert hint.infer_images_per_s == 4000.0
    assert hint.latency_ms == 2.0


def test_relative_step_only_on_equal_hardware():
    other = {"device_name": "Other GPU"}
    b = board(*seeds("hint", [73, 74, 75]), *alone([70, 71, 72], environment=other))
    assert row(b, "hint").relative_step is None
    assert any("different hardware" in n for s in b.sections for n in s.notes)


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": 2},
        {"recipe": {"epochs": 9}},
        {"identity": {"dataset": {"revision": "other"}}},
        {"identity": {"dataset": {"limit_train": 100}}},
        {"identity": {"dataset": {"args": {"crop": 5}}}},
        {"identity": {"task": {"version": "2"}}},
        {"dataset": "cifar"},
    ],
)
def test_what_differs_in_setting_is_never_in_one_table(change):
    b = board(*seeds("hint", [73, 74, 75]), *seeds("other", [73, 74, 75], **change))
    assert [[r.labels.variant for r in s.rows] for s in b.sections] in (
        [["hint"], ["other"]],
        [["other"], ["hint"]],
    )


def test_equal_labels_of_different_cells_are_different_rows():
    b = board(
        *seeds("hint", [73, 74, 75], variant="h", params={"a": 1}),
        *seeds("hint", [60, 61, 62], variant="h", params={"a": 2}),
    )
    assert sorted(r.last.mean for r in b.rows) == [61.0, 74.0]


def test_sections_have_pairs_lone_students_and_teachers():
    b = board(
        *alone([70, 71, 72]),
        *seeds("hint", [73, 74, 75]),
        *seeds("hint", [73, 74, 75], teacher="timm:big"),
        *alone([50, 51, 52], student="timm:solo"),
        teacher_cell(),
    )
    assert [(s.title, [r.labels.variant for r in s.rows]) for s in b.sections] == [
        ("timm:big → timm:test_efficientnet", ["hint", "plain"]),
        ("timm:test_resnet → timm:test_efficientnet", ["hint", "plain"]),
        ("Students without a teacher", ["plain"]),
        ("Teachers", ["plain"]),
    ]


def test_ranks_need_three_seeds_and_equal_means_share_one():
    b = board(
        *seeds("a", [73, 74, 75]),
        *seeds("b", [75, 74, 73]),
        *seeds("c", [71, 72, 73]),
        *seeds("few", [99, 99]),
        *seeds("gone", [90, 90, 90, 90], status="crashed"),
    )
    (section,) = b.sections
    ranks = [(r.labels.variant, rank) for r, rank in zip(section.rows, section.ranks, strict=True)]
    assert ranks == [("few", None), ("a", 1), ("b", 1), ("c", 3), ("gone", None)]


def test_two_records_of_one_cell_are_refused():
    with pytest.raises(RecordError, match="more than one record"):
        board(make_record(), make_record(top1=99.0))


def test_equal_seeds_have_a_mean_and_the_reason_why_there_is_no_interval():
    board = make_board([Record.model_validate(make_record(seed=s, top1=9.38)) for s in range(3)], title="T")
    files = render_board([r for row in board.rows for r in row.records], title="T")
    assert "9.38 to 9.38" not in files["README.md"].decode()
    assert "— (all values are equal)" in files["README.md"].decode()
    (line,) = csv.DictReader(io.StringIO(files["leaderboard.csv"].decode()))
    assert (line["last_top1_mean"], line["last_top1_ci95_low"], line["last_top1_ci95_high"]) == (
        "9.3800",
        "",
        "",
    )


@pytest.mark.parametrize(("teacher", "told"), [(70.5, True), (80.0, False)])
def test_a_table_says_why_no_row_closes_a_gap(teacher, told):
    made = board(*alone([69.0, 70.0, 71.0]), *seeds("kd", [71.0, 72.0, 73.0], teacher_top1=teacher))
    (note,) = [n for n in made.sections[0].notes if n.startswith("Top-1 of the teacher")]
    assert ("no gap to close: the teacher is not above the student alone" in note) is told


def test_a_table_says_that_speeds_of_equal_networks_differ_by_their_measurement():
    def notes(*speeds, **network):
        cells = [alone([60, 61, 62]), *(seeds(f"m{n}", [70, 71, 72]) for n in range(len(speeds)))]
        for records, speed in zip(cells[1:], speeds, strict=True):
            for record in records:
                record["throughput"]["student"]["64"]["images_per_s"] = speed
                record["deployables"]["student"] |= network
        (section,) = board(*(record for row in cells for record in row)).sections
        return [n for n in section.notes if "one architecture" in n]

    (note,) = notes(3800.0, 4200.0)
    assert note.startswith("3 of the rows")
    assert "3800 to 4200 images/s at batch 64" in note
    assert notes(4000.0, 4000.0) == []
    assert notes(3800.0, macs=1_000_000) == []
