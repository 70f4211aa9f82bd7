"""Sentences and table of an overall ranking, shared by the web page and the Markdown page."""

from __future__ import annotations

from kdbench.leaderboard.overall import Overall, OverallLine
from kdbench.leaderboard.text import NULL, number

#: Headings, each with whether its cells are numbers.
HEADS: tuple[tuple[str, bool], ...] = (
    ("Method", False),
    ("Average rank", True),
    ("Not told apart", False),
    ("Gap closed, IQM", True),
    ("95 % interval", True),
)
#: Longest list of settings or methods that is written out.
_LISTED = 8


def sentences(overall: Overall) -> list[str]:
    """Return what is said above the table."""
    found = [
        f"{overall.n} settings, each with a mean of every method listed: {_some(overall.settings)}.",
        "Rank is by mean top-1 within a setting. IQM is the mean gap closed of the middle half of all "
        f"settings and seeds, over {overall.iqm_settings} settings.",
    ]
    if overall.friedman is None:
        found.append(f"No test of the ranks: {overall.why}. Average ranks alone do not tell methods apart.")
    else:
        test = overall.friedman
        verdict = "some methods differ" if test.rejects else "no method is told apart from any other"
        p = f"p = {number(test.p, 4)}" if test.p >= 0.0001 else "p < 0.0001"
        f = "infinite" if test.f == float("inf") else number(test.f, 2)
        found.append(
            f"Friedman's test: F = {f}, {p}: {verdict}. Critical difference of average ranks "
            f"{number(overall.critical_difference, 2)} (Nemenyi, 5 %); "
            "methods that share a letter are not told apart."
        )
    if overall.left_out:
        found.append(f"Left out: {_some(overall.left_out, '; ')}.")
    found += [f"{note[0].upper()}{note[1:]}." for note in overall.notes]
    return found


def cells(overall: Overall, line: OverallLine) -> list[str]:
    """Return the texts of a line, one for each heading."""
    letters = [_letter(n) for n, group in enumerate(overall.cliques) if line.variant in group]
    low, high = line.iqm_low, line.iqm_high
    return [
        line.variant,
        number(line.rank, 2),
        " ".join(letters) or NULL,
        f"{NULL} ({line.why})" if line.iqm is None else _percent(line.iqm),
        NULL if low is None or high is None else f"{number(100 * low, 1)} to {_percent(high)}",
    ]


def _letter(n: int) -> str:
    """Name groups a, b, ..., z, aa, ab, ..."""
    return (_letter(n // 26 - 1) if n >= 26 else "") + chr(ord("a") + n % 26)


def _percent(value: float) -> str:
    return f"{number(100 * value, 1)} %"


def _some(texts: list[str], between: str = "; ") -> str:
    more = len(texts) - _LISTED
    return between.join(texts[:_LISTED]) + (f"{between}and {more} more" if more > 0 else "")
