"""Inputs made to take a parser's time or memory: each ends well before the deadline."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbench.errors import KdbenchError, MatrixError, visible
from kdbench.leaderboard.text import clean, markdown, spreadsheet
from kdbench.matrix import document, load_matrix
from kdbench.matrix.schema import Matrix

from .engine import bad_message, guarded, refusal

MERGED = ", ".join(f"k{i}: 1" for i in range(8000))
YAML = {
    "digits": "a: " + "1" * 900_000,
    "base 60": "a: 1" + ":1" * 400_000,
    "hexadecimal": "a: 0x" + "f" * 900_000,
    "lists in lists": "a: " + "[" * 5000,
    "mappings in mappings": "a: " + '{"a":' * 5000,
    "keys over merged keys": f"b: &b {{{MERGED}}}\nx: {{<<: *b, {MERGED}}}",
    "aliases of aliases": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)),
    "escapes": 'a: "' + "\\n" * 400_000 + '"',
}


@pytest.mark.parametrize("name", YAML)
def test_yaml_that_takes_time(name, tmp_path):
    with guarded(tmp_path):
        error = refusal(lambda: document.parse(YAML[name], "m"))
    assert error is None or bad_message(error, lines=False) is None


@pytest.mark.parametrize("text", ['!!int ""', "!!float _", "!!bool x", "!!int _", "!!float '-'", "!!null x"])
def test_tags_over_what_they_cannot_be(text):
    error = refusal(lambda: document.parse(f"a: {text}", "m"))
    assert error is None or str(error).startswith("m:1: a: ")
    assert error is not None or "null" in text


@pytest.mark.parametrize("number", ["9" * 5000, "0x" + "f" * 5000, "1" + ":1" * 3000, "0" + "7" * 5000])
def test_long_numbers_are_text_and_refused_where_a_number_is_wanted(number):
    assert document.parse(f"a: {number}", "m").data == {"a": number}
    with pytest.raises(MatrixError, match="more than 100 characters"):
        document.parse(f"a: !!int {number}", "m")


def test_keys_cannot_write_lines_or_drive_a_terminal(tmp_path):
    (tmp_path / "m.yaml").write_text('name: a\n"x\\n\\e[2J\\u202em.yaml:1: forged": 1\n')
    with pytest.raises(MatrixError) as caught:
        load_matrix("m.yaml", cwd=tmp_path)
    lines = str(caught.value).splitlines()
    assert all(line.startswith("m.yaml:") for line in lines)
    assert all(line.isprintable() for line in lines)
    assert "x\\n\\x1b[2J\\u202em.yaml:1: forged" in str(caught.value)


@given(st.text())
@settings(max_examples=300)
def test_any_text_becomes_one_harmless_line(text):
    assert str(KdbenchError(text)).isprintable()
    assert visible(text).isprintable()
    assert clean(text).isprintable()
    cell = spreadsheet(text)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    line = markdown(text)
    assert "\n" not in line
    assert "<" not in line
    assert "|" not in line.replace("\\|", "")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


SOUND = {
    "name": "a",
    "datasets": ["d"],
    "methods": ["kd"],
    "seeds": 1,
    "recipe": "quick",
    "pairs": [{"teacher": "t", "student": "s"}],
}


@given(st.sampled_from(sorted(Matrix.model_fields)), JSON)
@settings(max_examples=300, deadline=None)
def test_any_value_for_any_key_of_a_matrix(tmp_path_factory, key, value):
    """JSON is YAML: what no mutation of a text comes to is made as data."""
    folder = tmp_path_factory.getbasetemp()
    (folder / "m.yaml").write_text(json.dumps({**SOUND, key: value}), encoding="utf-8")
    error = refusal(lambda: load_matrix("m.yaml", cwd=folder))
    assert error is None or bad_message(error, lines=True) is None
