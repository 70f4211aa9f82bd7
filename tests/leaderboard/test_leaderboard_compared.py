"""Rows against references and against the best of their table."""

import csv
import io

import pytest
from factories import TEACHER_ARCH, make_record
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbench.errors import KdbenchError
from kdbench.leaderboard import render_board
from kdbench.leaderboard.board import make_board
from kdbench.results.schema import Record


def cells(method, values, **kw):
    """Cells of a method, one for each seed; None is a cell that failed."""
    return [
        make_record(
            method=method, seed=s, status="done" if v is not None else "diverged", top1=v or 0.0, **kw
        )
        for s, v in enumerate(values)
    ]


def alone(values, **kw):
    return cells("plain", values, teacher=None, **kw)


def board(*records, **kw):
    return make_board([Record.model_validate(r) for r in records], title="T", **kw)


def rows(found, section=0):
    return {r.labels.variant: r for r in found.sections[section].rows}


NOISY = [*alone([70, 72, 71]), *cells("kd", [73, 74, 76]), *cells("hint", [78, 80, 82.5])]


def test_rows_are_compared_with_the_baseline_and_the_named_references():
    found = rows(board(*NOISY))
    hint = found["hint"]
    assert list(hint.against) == ["plain", "kd"]
    assert hint.against["plain"].mean == pytest.approx((8 + 8 + 11.5) / 3)
    assert hint.against["kd"].mean == pytest.approx((5 + 6 + 6.5) / 3)
    assert hint.against["kd"].better == 1.0
    assert list(found["kd"].against) == ["plain"]
    assert list(found["plain"].against) == ["kd"]


def test_references_are_data():
    found = rows(board(*NOISY, references=["hint"]))
    assert list(found["kd"].against) == ["plain", "hint"]
    assert board(*NOISY, references=[]).sections[0].references == ["plain"]


def test_a_reference_that_is_not_there_is_told():
    with pytest.raises(KdbenchError, match=r"references: the records have no method 'hnt'.*'hint'"):
        board(*NOISY, references=["hnt"])


def test_a_reference_goes_by_variant_and_else_by_method():
    records = [*alone([70, 72, 71]), *cells("kd", [73, 74, 76], variant="kd (T=4)", params={"T": 4})]
    assert list(rows(board(*records))["plain"].against) == ["kd (T=4)"]
    both = [*records, *cells("kd", [73, 75, 76], variant="kd (T=8)", params={"T": 8})]
    assert rows(board(*both))["plain"].against == {}, "two of them answer to the name"


def test_ties_with_the_best():
    found = rows(board(*alone([70, 72, 71]), *cells("a", [80, 82, 84]), *cells("b", [79, 82, 83.5])))
    assert {name: row.tied for name, row in found.items()} == {"a": True, "b": True, "plain": False}
    assert found["a"].to_best is None
    assert found["b"].to_best.mean == pytest.approx(-0.5)


def test_rows_without_a_rank_are_tied_with_nobody():
    found = rows(board(*cells("a", [80, 82, 84]), *cells("few", [90, 91]), *cells("gone", [85, None, 86])))
    assert found["few"].tied is found["gone"].tied is None
    assert found["a"].tied is True
    assert found["gone"].why_null == "seed 1 diverged"
    assert board(*cells("few", [90, 91])).sections[0].rows[0].tied is None


def test_cells_that_are_missing_are_told():
    """A seed that was never run leaves no record; other rows show that it is missing."""
    b = board(*alone([70, 72, 71]), *cells("a", [80, 82, 84])[:2], *cells("b", [80, None, 84]))
    (note,) = [n for n in b.sections[0].notes if "seeds" in n]
    assert note.startswith("There are 3 seeds in this table; rows with fewer: a.")
    assert not [n for n in board(*NOISY).sections[0].notes if "seeds" in n]


def test_a_failed_reference_gives_null_with_the_reason():
    found = rows(board(*alone([70, None, 71]), *cells("a", [80, 82, 84])))
    against = found["a"].against["plain"]
    assert against.mean is None
    assert "seed 1" in against.why


def test_one_student_in_the_tables_of_two_teachers_is_compared_in_each():
    records = [
        *alone([70, 72, 71]),
        *cells("kd", [69, 70, 71.5], teacher="timm:big"),
        *cells("kd", [80, 82, 84]),
    ]
    b = board(*records)
    assert [rows(b, i)["plain"].tied for i in (0, 1)] == [True, False]
    means = [rows(b, i)["plain"].against["kd"].mean for i in (0, 1)]
    assert means == [pytest.approx(5 / 6), -11.0]
    (once,) = [r for r in b.rows if r.labels.variant == "plain"]
    assert once.against == {}, "the board's own row is in no single table"
    assert {id(rows(b, i)["plain"].row) for i in (0, 1)} == {id(once)}


def test_what_the_choice_of_the_epoch_does():
    found = rows(board(*alone([70, 72, 71])))["plain"].differences
    assert (found.val.mean, found.oracle.mean, found.oracle_over_val.mean) == (-0.25, 1.0, 1.25)
    assert rows(board(*alone([70, None, 71])))["plain"].differences.oracle.mean is None


def test_what_is_never_negative_has_no_interval_that_could_be():
    made = render_board([Record.model_validate(r) for r in NOISY], title="T")["leaderboard.csv"].decode()
    assert "best_test_oracle_minus_last," in made
    assert "minus_last_ci95" not in made


def test_gap_has_an_interval_over_seeds():
    teacher = make_record(
        method="plain", teacher=None, role="teacher", student=TEACHER_ARCH, seed=7, top1=80.0
    )
    b = board(*NOISY, teacher)
    hint = rows(b)["hint"]
    low, high = hint.gap_interval
    assert low < hint.gap_closed < high
    assert rows(b)["plain"].gap_interval is None
    assert rows(board(*alone([70, 72]), *cells("hint", [73, 74])))["hint"].gap_interval is None


def test_files_show_what_was_compared():
    out = render_board([Record.model_validate(r) for r in NOISY], title="T")
    text = out["README.md"].decode()
    assert "| Minus plain, points |" in text
    assert "| 1 | hint | best | +9.17 (" in text
    assert "| plain | below |" in text
    table = {r["variant"]: r for r in csv.DictReader(io.StringIO(out["leaderboard.csv"].decode()))}
    assert table["hint"]["minus_plain_mean"] == "9.1667"
    assert table["plain"]["tied_with_best"] == "false"
    assert float(table["plain"]["to_best_mean"]) == pytest.approx(-9.1667)
    assert table["hint"]["to_best_mean"] == ""


def test_one_seed_claims_nothing():
    out = render_board([Record.model_validate(r) for r in [*alone([70]), *cells("a", [90])]], title="T")
    text = out["README.md"].decode()
    assert "To the best" not in text
    assert "+20.00 (no interval)" in text


accuracy = st.integers(0, 359).map(lambda i: i / 3.59)
matrix = st.lists(st.lists(st.none() | accuracy, min_size=4, max_size=4), min_size=1, max_size=4)
NAMES = ["kd", "zeta", "alpha", "mid", "omega"]


def story(names, table):
    """Records of a table of accuracies, one line for each name; the first is trained alone."""
    return [
        r
        for n, v in zip(names, table, strict=False)
        for r in cells(n, v, teacher=None if n == names[0] else TEACHER_ARCH)
    ]


def told(found, names):
    """All that is said of each row, by the position of its values."""
    (section,) = found.sections
    position = {name: n for n, name in enumerate(names)}
    return {
        position[row.labels.variant]: (
            rank,
            row.tied,
            row.to_best,
            row.gap_interval,
            {position[name]: against for name, against in row.against.items()},
        )
        for rank, row in zip(section.ranks, section.rows, strict=True)
    }


@settings(max_examples=40, deadline=None)
@given(matrix, st.permutations(NAMES), st.randoms())
def test_neither_order_nor_names_matter(table, names, rng):
    plain = story(NAMES, table)
    expected = told(board(*plain, references=[NAMES[0]]), NAMES)
    rng.shuffle(plain)
    assert told(board(*plain, references=[NAMES[0]]), NAMES) == expected
    assert told(board(*story(names, table), references=[names[0]]), names) == expected


@settings(max_examples=25, deadline=None)
@given(accuracy, st.integers(1, 4), st.integers(2, 4))
def test_all_equal_is_all_tied(value, seeds, methods):
    names = NAMES[:methods]
    found = told(board(*story(names, [[value] * seeds] * methods), references=[names[0]]), names)
    assert {(rank, tied) for rank, tied, *_ in found.values()} == {(1, True) if seeds >= 3 else (None, None)}


@settings(max_examples=25, deadline=None)
@given(matrix, st.integers(0, 3))
def test_one_failed_cell_leaves_others_as_they_were(table, seed):
    """Rows among themselves do not change when another row loses a seed and with it its mean."""
    names = NAMES[: len(table) + 1]
    lost: list[float | None] = [50.0] * 4
    lost[seed] = None
    before = told(board(*story(names[:-1], table), references=[names[0]]), names)
    after = told(board(*story(names, [*table, lost]), references=[names[0]]), names)
    gone = after.pop(len(table))
    assert gone[:2] == (None, None)
    assert all(p.mean is None or p.n < 4 for p in gone[4].values())
    assert after == before
