import pytest

from kdbench.leaderboard.text import clean, count, first_line, markdown, number, rate, spreadsheet


def test_clean_is_one_visible_line():
    assert clean(" a\n\tb\x00c\u202ed\u200be ") == "a b cde"
    assert clean("x" * 300) == "x" * 199 + "…"
    assert clean("\udc80ok") == "ok"


def test_first_line():
    assert first_line("\n \n  CUDA error\nmore") == "CUDA error"
    assert first_line("") == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b", "a\\|b"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("`x`", "\\`x\\`"),
        ("[a](b)", "\\[a\\](b)"),
        ("a\nb", "a b"),
        ("https://x.org @me", "https:\u200b//x.org @\u200bme"),
        ("www.x.org", "www\u200b.x.org"),
    ],
)
def test_markdown(text, expected):
    assert markdown(text) == expected


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1+1", "'=1"])
def test_spreadsheet_formulas_become_texts(text):
    assert spreadsheet(text).startswith("'")


def test_plain_text_stays():
    assert spreadsheet("dkd(beta=2.0)") == "dkd(beta=2.0)"


def test_numbers():
    assert number(None, 2) == "—"
    assert number(-0.001, 2) == "0.00"
    assert number(-0.006, 2) == "-0.01"
    assert [rate(v) for v in (1234.5, 12.34, 1.234, None)] == ["1234", "12.3", "1.23", "—"]
    assert [count(v) for v in (0, 999, 1_000, 1_234_567, 4 * 10**9, None)] == [
        "0",
        "999",
        "1.00 k",
        "1.23 M",
        "4.00 G",
        "—",
    ]
