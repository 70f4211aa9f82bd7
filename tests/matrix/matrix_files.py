"""Small matrix files for the tests of the matrix room."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbench.errors import MatrixError
from kdbench.matrix import LoadedMatrix, load_matrix

SMALL = """\
name: small
datasets: [digits]
pairs: [{teacher: big, student: little}]
methods: [alone, kd, {name: dkd, params: {beta: 2.0}}]
seeds: 2
recipe: quick
"""


def write(folder: Path, text: str, name: str = "m.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def load(folder: Path, text: str = SMALL, **kw: object) -> LoadedMatrix:
    write(folder, text)
    return load_matrix("m.yaml", cwd=folder, **kw)  # type: ignore[arg-type]


def error(folder: Path, text: str = SMALL, **kw: object) -> str:
    """Return the message with which a matrix is refused."""
    with pytest.raises(MatrixError) as caught:
        load(folder, text, **kw)
    return str(caught.value)


def swap(old: str, new: str, text: str = SMALL) -> str:
    assert old in text
    return text.replace(old, new)
