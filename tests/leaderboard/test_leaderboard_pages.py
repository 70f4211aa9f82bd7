"""The files for forges and programs: determinism, what is shown, hostile texts."""

import csv
import io
import random

import pytest
from factories import TEACHER_ARCH, make_record

from kdbench.errors import RecordError
from kdbench.leaderboard import build_board, render_board
from kdbench.results.schema import Record

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "a|b\n## c\n\n| x | y |",
    '=HYPERLINK("http://x")',
    "`rm` [x](javascript:alert(1)) ![i](http://x/i.png)",
    "{{ 7 * 7 }}{% raw %}",
    '" onmouseover="alert(1)',
    "&lt;b&gt; <!-- --> \u202e\x00\x1b[31m",
]


def some_records():
    records = [make_record(method="plain", teacher=None, role="teacher", student=TEACHER_ARCH, top1=80.0)]
    for number, method in enumerate(["plain", "hint", "map", "late"]):
        for seed in range(3):
            status = "diverged" if (method, seed) == ("late", 1) else "done"
            records.append(
                make_record(
                    method=method,
                    teacher=None if method == "plain" else TEACHER_ARCH,
                    seed=seed,
                    top1=70.0 + number + seed / 3,
                    status=status,
                    step_ms=10.0 + number,
                )
            )
    return records


def files(records, **kw):
    return {
        k: v.decode() for k, v in render_board(map(Record.model_validate, records), title="T", **kw).items()
    }


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_shuffled_records_give_equal_bytes(tmp_path):
    records = some_records()
    build_board(records, tmp_path / "a", title="T")
    for attempt in range(5):
        random.Random(attempt).shuffle(records)
        out = tmp_path / str(attempt)
        paths = build_board(records, out, title="T")
        names = ["leaderboard.csv", "README.md", "accuracy-cost-1.svg"]
        assert [p.name for p in paths] == names
        for path in paths:
            assert path.read_bytes() == (tmp_path / "a" / path.relative_to(out)).read_bytes()


def test_times_and_versions_of_the_build_are_not_in_the_files(tmp_path):
    from kdbench import __version__

    records = [make_record(plugins={"method": {"version": "9.9"}}, environment={"kdbench": "9.9"})]
    for text in files(records).values():
        assert __version__ not in text


def test_csv_has_every_row_with_its_numbers():
    rows = {(r["variant"], r["role"]): r for r in rows_of(files(some_records())["leaderboard.csv"])}
    assert set(rows) == {("plain", "teacher"), *((m, "student") for m in ("plain", "hint", "map", "late"))}
    hint = rows["hint", "student"]
    assert hint["last_top1_mean"] == "71.3333"
    assert hint["gap_closed"] == f"{1 / (80 - 70 - 1 / 3):.4f}"
    assert hint["n_done"] == hint["n_planned"] == "3"
    assert hint["step_relative_to_baseline"] == "1.1000"
    assert hint["baseline"] == "plain"
    late = rows["late", "student"]
    assert (late["n_done"], late["last_top1_mean"], late["gap_closed"]) == ("2", "", "")


def test_markdown_shows_ranks_nulls_and_failures():
    text = files(some_records())["README.md"]
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert any(line.startswith("| 1 | map | 3/3 | 72.33 ± 0.33 |") for line in table)
    assert any(line.startswith("| — | late | 2/3 | — (seed 1 diverged) | — |") for line in table)
    assert "| diverged | late |" in text
    assert "loss is not finite" in text
    assert "oracle" in text


def hostile_records(text):
    labels = dict.fromkeys(("dataset", "student", "teacher", "variant", "recipe", "fidelity", "preset"), text)
    return [
        make_record(
            method=text,
            seed=seed,
            status="failed" if seed == 2 else "done",
            message=f"{text}\n{text}",
            labels=labels,
            environment={"device_name": text, "precision": text},
            plugins={"method": {"distribution": text, "version": text}},
            identity={"dataset": {"revision": text}, "task": {"version": text}},
        )
        for seed in range(3)
    ]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_harmless(text):
    plain = files(hostile_records("plain"), description="plain", notes=["plain"])
    out = {
        k: v.decode()
        for k, v in render_board(
            map(Record.model_validate, hostile_records(text)), title=text, description=text, notes=[text]
        ).items()
    }
    # The same lines and the same number of cells in each as with a plain text.
    lines, expected = out["README.md"].splitlines(), plain["README.md"].splitlines()
    assert len(lines) == len(expected)
    for line, other in zip(lines, expected, strict=True):
        assert line.replace("\\|", "").count("|") == other.count("|")
        assert "<script" not in line
        assert "<img" not in line
        assert "](" not in line.replace("\\](", "") or "leaderboard.csv" in line or "plots/" in line

    table, reference_table = rows_of(out["leaderboard.csv"]), rows_of(plain["leaderboard.csv"])
    assert len(table) == len(reference_table)
    for row in table:
        for name, cell in row.items():
            assert "\n" not in cell
            if name not in ("gap_closed",):
                assert not cell.startswith(("=", "+", "-", "@", "\t"))
    for content in out.values():
        assert "\x00" not in content
        assert "\x1b" not in content
        assert "\u202e" not in content


def test_invalid_record_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(RecordError, match="status"):
        build_board([make_record(), make_record(seed=1) | {"status": "fine"}], tmp_path / "b", title="T")
    assert not (tmp_path / "b").exists()


def test_no_records():
    out = files([])
    assert "Cells: none." in out["README.md"]
    assert len(out["leaderboard.csv"].splitlines()) == 1
