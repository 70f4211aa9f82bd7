"""Choosing cells by their axes: ``exclude`` items and ``--only`` terms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kdbench.errors import MatrixError, did_you_mean
from kdbench.matrix.schema import Exclude
from kdbench.matrix.spec import CellSpec, variant_label
from kdbench.matrix.tune import DEFAULT

#: Axes that ``--only`` knows.
AXES = ("method", "teacher", "student", "dataset", "seed", "pair", "track")


def axis_names(spec: CellSpec, axis: str) -> set[str | None]:
    """Return every name by which `spec` answers to an axis; None for a missing teacher."""
    if axis == "method":
        return {spec.method.name, variant_label(spec.method)}
    if axis == "teacher":
        return {None} if spec.teacher is None else {spec.teacher.name, spec.teacher.label}
    if axis == "student":
        return {spec.student.name, spec.student.label}
    if axis == "dataset":
        return {spec.dataset.name, spec.dataset.label}
    if axis == "seed":
        return {str(spec.seed)}
    if axis == "track":
        return {DEFAULT if spec.tuning is None else spec.tuning.track}
    return {spec.pair}


def excluded(spec: CellSpec, item: Exclude) -> bool:
    """Return whether a cell matches every key of an ``exclude`` item."""
    return all(
        any(
            (str(value) if axis == "seed" else value) in axis_names(spec, axis)
            for value in getattr(item, axis)
        )
        for axis in AXES
        if axis in item.model_fields_set and getattr(item, axis) is not None
    )


def select(cells: Sequence[CellSpec], only: Iterable[str]) -> list[CellSpec]:
    """Keep the cells that match every term such as ``method=ab,kd``; terms may also share one text.

    Raises MatrixError for an unknown axis, or a value that no cell of the matrix has.
    """
    chosen = list(cells)
    for text in only:
        for term in split_outside_brackets(text, " \t\n"):
            axis, values = _parse(term)
            for value in values:
                _check(cells, axis, value)
            wanted = {None if value == "null" and axis == "teacher" else value for value in values}
            chosen = [spec for spec in chosen if wanted & axis_names(spec, axis)]
    return chosen


def split_outside_brackets(text: str, separators: str) -> list[str]:
    """Split where a separator stands outside brackets, so that ``dkd(a=1, b=2)`` stays whole; no empty parts.

    A space separates only where a new ``axis=`` follows, since labels may contain spaces.
    """
    parts, depth, start = [], 0, 0
    for position, char in enumerate(text):
        if char in "([{":
            depth += 1
        elif char in ")]}":
            depth = max(0, depth - 1)
        elif depth == 0 and char in separators and (char == "," or _starts_term(text[position + 1 :])):
            parts.append(text[start:position])
            start = position + 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


def _starts_term(rest: str) -> bool:
    word, equals, _ = rest.lstrip().partition("=")
    return bool(equals) and word.isidentifier()


def _parse(term: str) -> tuple[str, list[str]]:
    axis, equals, values = term.partition("=")
    axis = axis.strip()
    listed = split_outside_brackets(values, ",")
    if axis not in AXES:
        near = did_you_mean(axis, AXES)
        raise MatrixError(f"--only {term}: unknown axis '{axis}'{near}; expected one of {', '.join(AXES)}")
    if not equals or not listed:
        raise MatrixError(f"--only {term}: expected {axis}=VALUE or {axis}=VALUE,VALUE")
    return axis, listed


def _check(cells: Sequence[CellSpec], axis: str, value: str) -> None:
    known = {"null" if name is None else name for spec in cells for name in axis_names(spec, axis)}
    if value not in known:
        some = ", ".join(sorted(known)[:12]) + (", ..." if len(known) > 12 else "")
        raise MatrixError(
            f"--only {axis}={value}: no cell has it{did_you_mean(value, known)}; there is {some}"
        )
