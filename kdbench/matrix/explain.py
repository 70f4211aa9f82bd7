"""Pydantic's errors in the words of a matrix file: file, line, key path, what was expected, nearest name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from kdbench.errors import did_you_mean, visible
from kdbench.matrix.document import Mark, format_path

#: Most errors told at once.
MAX_ERRORS = 20

_NOUNS = {
    "string_type": "text",
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


_PATTERNS = {
    r"^\S+$": "text without spaces",
    r"^[^\x00-\x1f\x7f]*$": "one line of text",
    r"^[0-9a-f]{64}$": "64 hexadecimal digits in lower case",
    r"^[a-z][a-z0-9_]*$": "lower-case letters, digits and '_', a letter first",
    r"^[a-z0-9][a-z0-9._-]{0,63}$": "at most 64 lower-case letters, digits, '.', '_' and '-', no sign first",
}


def shorten(text: str, limit: int = 200) -> str:
    """Return `text`, cut to `limit` characters and ended with a digest, so that different texts stay so."""
    if len(text) <= limit:
        return text
    return f"{text[: limit - 10]}…{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def model_at(root: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel] | None:
    """Return the model that describes the value at `path`, or None where values are free."""
    model: type[BaseModel] | None = root
    for part in path:
        if isinstance(part, int):
            continue
        if model is None or part not in model.model_fields:
            return None
        model = _model_in(model.model_fields[part].annotation)
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _model_in(arg))), None)


def known_keys(model: type[BaseModel], *, recipe: type[BaseModel] | None = None) -> list[str]:
    """Keys that a mapping for `model` may have; a recipe may also name its base."""
    return [*model.model_fields, *(["base"] if model is recipe else [])]


def unknown_key(key: str, known: Sequence[str]) -> str:
    """Return the message for an unknown key."""
    return f"unknown key '{key}'{did_you_mean(key, known)}; expected one of {', '.join(known)}"


def lookup(data: Any, path: Sequence[str | int]) -> Any:
    """Return the value at `path`; raises LookupError where there is none."""
    for part in path:
        if isinstance(data, str) or not hasattr(data, "__getitem__"):
            raise LookupError(part)
        try:
            data = data[part]
        except TypeError:
            raise LookupError(part) from None
    return data


def explain(
    error: ValidationError,
    root: type[BaseModel],
    data: Any,
    where: Callable[[Sequence[str | int]], str],
    mark: Callable[[Sequence[str | int]], Mark],
) -> list[str]:
    """Return one line per problem, deepest key first and missing keys last, at most MAX_ERRORS.

    `data` is what the user wrote; `where` and `mark` locate a key path in it.
    """
    found: dict[str, tuple[bool, int]] = {}
    items = error.errors(include_url=False)
    unknown = [tuple(item["loc"]) for item in items if item["type"] == "extra_forbidden"]
    for item in items:
        path: tuple[str | int, ...] = tuple(item["loc"])
        kind = item["type"]
        if kind == "too_short" and item["input"]:
            continue  # its items have problems of their own, told beside it
        if kind == "missing" and any(
            path[:-1] == u[:-1] and did_you_mean(str(u[-1]), [str(path[-1])]) for u in unknown
        ):
            continue  # it is there, misspelt
        if kind == "kdbench":
            path += tuple(int(part) if part.isdigit() else part for part in item["ctx"]["at"].split("."))
        place, shown = where(path), _as_written(path[:-1] if kind == "missing" else path, data)
        told = not shown or place == "--set " + ".".join(map(str, shown))
        at = "" if told else f"{format_path(shown)}: "
        line = visible(f"{place}: {at}{_message(item, path, root, mark)}")
        found.setdefault(line, (kind == "missing", -len(path)))
    lines = sorted(found, key=lambda line: found[line])
    rest = len(lines) - MAX_ERRORS
    return lines if rest <= 0 else [*lines[: MAX_ERRORS - 1], f"... and {rest + 1} more"]


def _as_written(path: tuple[str | int, ...], data: Any) -> tuple[str | int, ...]:
    """Drop the last part when the user wrote the short form there (``kd`` for ``{name: kd}``)."""
    while path:
        try:
            parent = lookup(data, path[:-1])
        except LookupError:
            path = path[:-1]
            continue
        if isinstance(parent, dict | list):
            return path
        path = path[:-1]
    return path


def _message(
    item: Any, path: tuple[str | int, ...], root: type[BaseModel], mark: Callable[[Sequence[str | int]], Mark]
) -> str:
    kind, value = item["type"], item["input"]
    if kind == "extra_forbidden":
        model = model_at(root, path[:-1])
        return unknown_key(str(path[-1]), list(model.model_fields) if model else [])
    if kind == "missing":
        return f"the key '{path[-1]}' is missing"
    if kind in ("kdbench", "value_error"):
        text = str(item["msg"]).removeprefix("Value error, ")
        return text if kind == "kdbench" else f"{text}; got {_got(value)}{_hint(value, path, mark)}"
    if kind == "literal_error":
        expected = str(item["ctx"]["expected"])
        near = did_you_mean(str(value), re.findall(r"'([^']+)'", expected))
        return f"{_got(value)} is not possible{near}; expected {expected}{_hint(value, path, mark)}"
    expected = _NOUNS.get(kind) or _expected(item)
    return f"expected {expected}, got {_got(value)}{_hint(value, path, mark)}"


def _expected(item: Any) -> str:
    kind, context = item["type"], item.get("ctx", {})
    if kind == "string_pattern_mismatch":
        return _PATTERNS.get(context["pattern"], f"text like {context['pattern']}")
    if kind in ("too_short", "too_long"):
        limit = context["min_length"] if kind == "too_short" else context["max_length"]
        return f"at {'least' if kind == 'too_short' else 'most'} {limit} item{'s' if limit != 1 else ''}"
    text = str(item["msg"])
    bound = text.removeprefix("Input should be ")
    return (
        f"a number {bound}"
        if bound.startswith(("greater", "less"))
        else bound.removeprefix("String should have ")
    )


def _got(value: Any) -> str:
    names = {None: "null", True: "true", False: "false"}
    text = names[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _hint(value: Any, path: tuple[str | int, ...], mark: Callable[[Sequence[str | int]], Mark]) -> str:
    plain = mark(path).plain
    if isinstance(value, bool) and plain and plain.lower() not in ("true", "false"):
        return f"; YAML reads {plain} as {_got(value)}: quote it if it is text"
    if isinstance(value, str) and plain is None and re.fullmatch(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?", value, re.I):
        return "; it is quoted text: remove the quotes"
    return ""
