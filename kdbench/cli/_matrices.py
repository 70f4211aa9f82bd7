"""The matrix files shipped with kdbench, as texts, and their kind beside those of the registry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MATRICES = "matrices"


@dataclass(frozen=True)
class ShippedMatrix:
    """A shipped matrix file; `summary` is its first comment line."""

    name: str
    path: Path
    summary: str


def shipped_matrices() -> list[ShippedMatrix]:
    """Return the shipped matrices, sorted by name."""
    import kdbench

    folder = Path(kdbench.__file__).parent / "matrices"
    return [ShippedMatrix(p.stem, p, _summary(p)) for p in sorted(folder.glob("*.yaml"))]


def kind_of(word: str) -> str:
    """Return the kind, matrices included, that `word` names in singular or plural. Raises UnknownName."""
    from kdbench.errors import UnknownName, did_you_mean
    from kdbench.registry import KINDS, singular, to_kind

    if word in (MATRICES, "matrix"):
        return MATRICES
    try:
        return to_kind(word)
    except UnknownName:
        known = [*KINDS, MATRICES]
        near = did_you_mean(word, [*known, *map(singular, KINDS), "matrix"])
        raise UnknownName(f"unknown kind {word!r}: expected one of {', '.join(known)}{near}") from None


def _summary(path: Path) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            return line.lstrip("# ").strip()
        if line.strip():
            break
    return ""
