from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kdbench.errors import MatrixError
from kdbench.matrix import document
from kdbench.matrix.document import format_path, parse


def refused(text: str) -> str:
    with pytest.raises(MatrixError) as caught:
        parse(text, "f.yaml")
    return str(caught.value)


def test_every_key_and_item_has_its_line():
    doc = parse("a: 1\nb:\n  - x\n  - c: 2\n    d: [3,\n        4]\n", "f.yaml")
    assert doc.data == {"a": 1, "b": ["x", {"c": 2, "d": [3, 4]}]}
    lines = {path: mark.line for path, mark in doc.marks.items()}
    assert lines[("a",)] == 1
    assert lines[("b", 0)] == 3
    assert lines[("b", 1, "c")] == 4
    assert lines[("b", 1, "d", 1)] == 6
    assert doc.where(("b", 1, "absent", "deeper")) == "f.yaml:4"
    assert doc.where(("absent",)) == "f.yaml:1"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-4", 5e-4),
        ("1E3", 1000.0),
        ("1.5e3", 1500.0),
        ("-2.5e-1", -0.25),
        (".5e1", 5.0),
        ("5.0e-4", 5e-4),
        ("1_000", 1000),
        ("0", 0),
        ("2024-01-01", "2024-01-01"),
        ("e5", "e5"),
        ("null", None),
        ("'010'", "010"),
    ],
)
def test_scalars(text: str, value: object):
    got = parse(f"a: {text}", "f.yaml").data["a"]
    assert got == value
    assert type(got) is type(value)


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
)
# PyYAML writes text such as "1e3" without quotes, because it does not read it as a number; here it is one.
texts = st.text(max_size=20).filter(lambda text: not re.fullmatch(r"[-+.0-9_eE]+", text))
trees = st.recursive(
    scalars | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(texts, trees, max_size=4))
def test_reads_back_what_yaml_writes(tree: dict[str, object]):
    assert parse(yaml.safe_dump(tree), "f.yaml").data == tree


def test_duplicate_key_names_both_lines():
    assert refused("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n") == (
        "f.yaml:5: b.c: key 'c' is given twice, on lines 3 and 5"
    )


def test_anchors_aliases_and_merge_keys():
    doc = parse("a: &x {p: 1, q: 2}\nb: *x\nc: {<<: *x, q: 3}\nd: {<<: [{p: 7}, *x]}\n", "f.yaml")
    assert doc.data["b"] == {"p": 1, "q": 2}
    assert doc.data["c"] == {"p": 1, "q": 3}
    assert doc.data["d"] == {"p": 7, "q": 2}
    assert doc.where(("c", "q")) == "f.yaml:3"
    assert doc.where(("c",)) == "f.yaml:3"


def test_alias_expansion_is_bounded():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert "more than 100,000 values" in refused("\n".join(lines))


def test_alias_inside_itself():
    assert refused("a: &a\n  - *a\n").startswith("f.yaml:1: a[0]: an alias stands inside")


@pytest.mark.parametrize("depth", [100, 5000])
def test_deep_nesting(depth: int):
    assert "nested deeper than 64 levels" in refused("a: " + "[" * depth + "]" * depth)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: [1\nc: 2", "f.yaml:3: not valid YAML"),
        ("a: 1\n\tb: 2", "f.yaml:2: not valid YAML"),
        ("a: 1\nb: \x01", "f.yaml:2: not valid YAML"),
        ("a: 1\n---\nb: 2", "f.yaml:2: not valid YAML"),
        ("a: *nowhere", "f.yaml:1: not valid YAML"),
        (
            "a: !!python/object:os.system {}",
            "f.yaml:1: a: the tag tag:yaml.org,2002:python/object:os.system is not",
        ),
        ("a: !!set {x}", "f.yaml:1: a: the tag"),
        ("a: !!binary aGk=", "f.yaml:1: a: the tag"),
        ("\na: !!int x", "f.yaml:2: a: 'x' is not a valid int"),
        ("a: .nan", "f.yaml:1: a: .nan is not a finite number"),
        ("a: [1, -.inf]", "f.yaml:1: a[1]: -.inf is not a finite number"),
        ("a: 1e999", "f.yaml:1: a: 1e999 is not a finite number"),
        ("\na: 010", "f.yaml:2: a: YAML reads 010 as the octal number 8"),
        ("a: 1:30", "f.yaml:1: a: YAML reads 1:30 as the base-60 number 90"),
        ("a: {1: x}", "f.yaml:1: a: a key must be text; quote it: '1'"),
        ("no: x", "f.yaml:1: a key must be text; quote it: 'no'"),
        ("[a]: x", "f.yaml:1: a key must be text"),
        ("a: {<<: 3}", "f.yaml:1: a: '<<' takes a mapping"),
    ],
)
def test_refused(text: str, expected: str):
    message = refused(text)
    assert message.startswith(expected)
    assert "\n" not in message


def test_files_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(MatrixError, match=r"^x\.yaml: cannot be read: No such file"):
        document.read(tmp_path / "x.yaml", "x.yaml")
    big = tmp_path / "big.yaml"
    big.write_bytes(b"#" * (document.MAX_BYTES + 1))
    with pytest.raises(MatrixError, match=r"^big: larger than 1024 KiB"):
        document.read(big, "big")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"a: 1\nb: \xe9\n")
    with pytest.raises(MatrixError, match=r"^latin:2: not UTF-8 text"):
        document.read(latin, "latin")


def test_byte_order_mark_and_empty_file(tmp_path: Path):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert document.read(path, "x")[0].data == {"a": 1}
    assert parse("# nothing\n", "x").data is None


def test_format_path():
    assert format_path(("methods", 1, "params", "beta")) == "methods[1].params.beta"
    assert format_path(()) == ""
