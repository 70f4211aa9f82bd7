"""What the user sees of a run."""

from types import SimpleNamespace

from kdbench.launch.progress import INTERRUPTED, LiveProgress, PlainProgress


def test_plain_lines_count_what_ended_and_not_what_was_cut(capsys):
    shown = PlainProgress()
    shown.start(3, 0)
    for status in ("done", INTERRUPTED, "failed"):
        shown.cell_ended(SimpleNamespace(id=status, label=status), status, "why")
    assert capsys.readouterr().err.splitlines() == [
        "done   done: why (1/3, left ?)",
        "interrupted interrupted: why",
        "failed failed: why (2/3, left ?)",
    ]


def test_the_bar_counts_what_ended_and_not_what_was_cut():
    shown = LiveProgress()
    shown.start(3, 0)
    try:
        for status in ("done", INTERRUPTED, "failed"):
            shown.cell_ended(SimpleNamespace(id=status, label=status), status, "why")
        (bar,) = shown._bars.tasks
        assert (bar.completed, bar.total) == (2, 3)
    finally:
        shown.stop()
