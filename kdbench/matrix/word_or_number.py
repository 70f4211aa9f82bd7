"""Keys that take a word or a number: what they take, and the one line that says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kdbench.errors import did_you_mean


@dataclass(frozen=True)
class WordOrNumber:
    """One of `words`, or a number of cells from `least` to `most`."""

    words: tuple[str, ...]
    least: int
    most: int

    def check(self, value: Any) -> Any:
        """Return a value of a matrix file. Raises ValueError with the line for any other."""
        number = isinstance(value, int) and not isinstance(value, bool) and self.least <= value <= self.most
        word = isinstance(value, str) and value in self.words
        if not number and not word:
            raise ValueError(self.expected(value))
        return value

    def read(self, text: str) -> str | int:
        """Return what an option's text stands for. Raises ValueError likewise."""
        value: str | int = int(text) if text.isdecimal() else text
        self.check(value)
        return value

    def expected(self, value: Any) -> str:
        """Return what was expected, with the nearest word."""
        near = did_you_mean(str(value), self.words)
        return f"expected {', '.join(self.words)} or a number of cells from {self.least} to {self.most}{near}"


#: ``gang`` and ``--gang``.
GANG = WordOrNumber(("auto", "off"), 2, 64)
#: ``slots_per_gpu`` and ``--slots-per-gpu``.
SLOTS = WordOrNumber(("auto",), 1, 16)
