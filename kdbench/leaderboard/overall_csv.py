"""``overall.csv``: the methods over all settings, for programs. Empty cells are null."""

from __future__ import annotations

import csv
import io

from kdbench.leaderboard.board import Board
from kdbench.leaderboard.text import spreadsheet

_HEAD = (
    *("title", "settings", "variant", "average_rank", "critical_difference", "friedman_f", "friedman_p"),
    *("iqm_settings", "iqm_gap_closed", "iqm_ci95_low", "iqm_ci95_high", "groups", "why_null"),
)


def render_overall_csv(board: Board) -> str | None:
    """Return the text, None where no two settings have methods in common.

    ``groups`` has the numbers, from 1, of the groups of methods that are not told apart.
    """
    if not board.overalls:
        return None
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_HEAD)
    for overall in board.overalls:
        test = overall.friedman
        for line in overall.lines:
            groups = [str(n) for n, group in enumerate(overall.cliques, 1) if line.variant in group]
            why = "; ".join(text for text in (overall.why, line.why) if text)
            writer.writerow(
                [
                    *(spreadsheet(overall.title), overall.n, spreadsheet(line.variant), _number(line.rank)),
                    *(
                        _number(overall.critical_difference),
                        _number(test and test.f),
                        _number(test and test.p),
                    ),
                    *(overall.iqm_settings, _number(line.iqm), _number(line.iqm_low), _number(line.iqm_high)),
                    *(" ".join(groups), spreadsheet(why)),
                ]
            )
    return out.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value + 0.0:.4f}"
