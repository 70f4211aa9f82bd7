"""What plots show, and the SVG files of a board."""

import random
import xml.etree.ElementTree as ET

import pytest
from factories import TEACHER_ARCH, make_record

from kdbench.leaderboard.board import make_board
from kdbench.leaderboard.overall import Overall, OverallLine
from kdbench.leaderboard.plots import AXES, frontier, gap_table, points, usual_range
from kdbench.leaderboard.svg import _ticks, accuracy_cost, level, rank_diagram, render_plots
from kdbench.results.schema import Record

SVG = "{http://www.w3.org/2000/svg}"


def board(*methods, students=("timm:one",), **kw):
    """Methods are (name, top-1, step time); the first is the student alone."""
    records = []
    for student in students:
        for n, (name, top1, step) in enumerate(methods):
            for seed in range(3):
                record = make_record(
                    method=name,
                    student=student,
                    teacher=TEACHER_ARCH if n else None,
                    seed=seed,
                    top1=top1 + seed / 10,
                    step_ms=step,
                    **kw,
                )
                records.append(Record.model_validate(record))
    return make_board(records, title="T")


METHODS = ("plain", 70.0, 10.0), ("cheap", 72.0, 12.0), ("dear", 75.0, 30.0), ("beaten", 71.0, 31.0)


def test_frontier_has_what_nothing_beats():
    found = [(10, 70), (12, 72), (30, 75), (31, 71), (12, 71.5), (30, 75)]
    assert frontier(found, "low") == {0, 1, 2, 5}
    assert frontier([(-x, y) for x, y in found], "high") == {0, 1, 2, 5}


def test_frontier_does_not_depend_on_the_order():
    rng = random.Random(0)
    found = [(rng.randint(1, 9), rng.randint(1, 9)) for _ in range(40)]
    expected = {found[n] for n in frontier(found, "low")}
    for _ in range(5):
        rng.shuffle(found)
        assert {found[n] for n in frontier(found, "low")} == expected
    for x, y in expected:
        assert not any((a <= x and b > y) or (a < x and b >= y) for a, b in found)


def test_points_know_baseline_and_frontier():
    (section,) = board(*METHODS).sections
    found = {p.name: p for p in points(section, AXES[0])}
    assert {name for name, p in found.items() if p.best} == {"plain", "cheap", "dear"}
    assert [name for name, p in found.items() if p.baseline] == ["plain"]
    assert found["dear"].x == 30.0
    assert found["dear"].low < found["dear"].y < found["dear"].high


def test_rows_without_a_mean_are_no_points():
    made = board(*METHODS[:2])
    failed = Record.model_validate(make_record(method="late", student="timm:one", status="oom"))
    made = make_board([*(r for row in made.rows for r in row.records), failed], title="T")
    assert {p.name for p in points(made.sections[0], AXES[0])} == {"plain", "cheap"}


def test_a_failed_method_does_not_make_the_plot_flat():
    values = [80.0, 81.0, 82.0, 82.5, 83.0, 84.0]
    assert usual_range([*values, 10.0]) == (80.0, 84.0)
    assert usual_range([80.0, 10.0]) == (10.0, 80.0)
    assert usual_range([80.0] * 5) == (80.0, 80.0)


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [
        (0, 100, False, [0, 20, 40, 60, 80, 100]),
        (80.0, 80.0, False, [40, 60, 80, 100, 120]),
        (23, 2900, True, [20, 50, 100, 200, 500, 1000, 2000, 5000]),
    ],
)
def test_ticks_are_round_and_include_both_ends(low, high, log, expected):
    assert _ticks(low, high, log=log) == pytest.approx(expected)


def test_gaps_by_method_and_pair():
    table = gap_table(board(*METHODS, students=("timm:one", "timm:two")).rows)
    assert len(table.columns) == 2
    assert [name for name, _ in table.lines] == ["dear", "cheap", "beaten"]
    assert dict(table.lines)["dear"][0] == pytest.approx(5 / 9.9)
    assert gap_table(board(METHODS[0]).rows) is None


def test_shades_follow_the_numbers():
    edges = [-2.0, -0.5, -0.1, 0.0, 0.1, 0.3, 0.6, 0.9]
    assert [level(v) for v in (*edges, None)] == ["n3", "n2", "n1", "p0", "p1", "p2", "p3", "p4", "none"]


def test_the_plot_has_a_mark_for_each_row():
    text = accuracy_cost(board(*METHODS).sections[0])
    root = ET.fromstring(text)
    titles = [t.text for t in root.iter(f"{SVG}title")]
    assert "dear: 75.10 % at 30" in titles
    assert len(list(root.iter(f"{SVG}circle"))) == 1
    assert text.count('class="best"') == 2
    assert text.count('class="base"') == 1
    assert "NaN" not in text
    assert "nan" not in text


def marks(text):
    root = ET.fromstring(text)
    return [t.text for t in root.iter(f"{SVG}text") if t.get("class") == "label"]


def test_few_points_all_have_a_name_and_the_legend_has_all_marks():
    text = accuracy_cost(board(*METHODS).sections[0])
    assert sorted(marks(text)) == ["beaten", "cheap", "dear", "plain"]
    assert "○ another method" in text
    many = [(f"m{n}", 80.0 - n / 4, 20.0 + n) for n in range(13)]
    assert sorted(marks(accuracy_cost(board(("plain", 81.0, 10.0), *many).sections[0]))) == ["plain"]


@pytest.mark.parametrize(("last", "cut"), [(75.0, False), (99.0, True)])
def test_intervals_are_in_view_unless_one_would_make_the_rest_flat(last, cut):
    records = [r for row in board(*METHODS).rows for r in row.records]
    for seed, top1 in enumerate((71.0, 73.0, last)):
        made = make_record(method="wide", student="timm:one", seed=seed, top1=top1, step_ms=20.0)
        records.append(Record.model_validate(made))
    assert ("↑ cut" in accuracy_cost(make_board(records, title="T").sections[0])) is cut


def test_what_is_outside_the_plot_is_named():
    usual = [(f"m{n}", 80.0 + n / 4, 20.0 + n) for n in range(6)]
    text = accuracy_cost(board(("plain", 80.0, 10.0), *usual, ("broken", 10.0, 3000.0)).sections[0])
    assert "Outside: broken" in text


def test_one_point_is_no_plot():
    assert accuracy_cost(board(METHODS[0]).sections[0]) is None
    assert render_plots(board(METHODS[0])) == {}


def test_plots_are_the_same_for_any_order_of_records():
    made = board(*METHODS, students=("timm:one", "timm:two"))
    expected = render_plots(made)
    assert set(expected) == {
        *("plots/accuracy-cost-1.svg", "plots/accuracy-cost-2.svg", "plots/gap-closed.svg")
    }
    records = [r for row in made.rows for r in row.records]
    random.Random(3).shuffle(records)
    assert render_plots(make_board(records, title="T")) == expected


def test_methods_that_are_not_told_apart_share_a_bar():
    lines = [OverallLine(f"m{n}", 1.0 + n) for n in range(4)]
    overall = Overall("t", ["s"] * 6, lines, None, 1.5, [("m0", "m1"), ("m2", "m3")])
    root = ET.fromstring(rank_diagram(overall))
    bars = [x for x in root.iter(f"{SVG}line") if x.get("class") == "bar"]
    dots = [float(x.get("cy")) for x in root.iter(f"{SVG}circle")]
    assert len(bars) == 2
    assert [float(bars[0].get("y1")) < y < float(bars[0].get("y2")) for y in dots] == [
        True,
        True,
        False,
        False,
    ]
    assert "critical difference 1.50" in rank_diagram(overall)


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '"><g onload="x">', "]]>&amp;\x1b\u202e"])
def test_hostile_names_stay_texts(text):
    plain = render_plots(board(("plain", 70.0, 10.0), ("other", 72.0, 12.0), students=("s", "t")))
    hostile = render_plots(board(("plain", 70.0, 10.0), (text, 72.0, 12.0), students=("s", f"t{text}")))
    assert set(hostile) == set(plain)
    for name, content in hostile.items():
        tags = [element.tag for element in ET.fromstring(content).iter()]
        assert tags == [element.tag for element in ET.fromstring(plain[name]).iter()]
        assert b"\x1b" not in content
        assert "\u202e" not in content.decode()
