"""Reading a launcher's block of ``launcher_options``: known keys, values that fit, methods that are there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from kdbench.api import OptionError, did_you_mean

#: What pydantic's kinds of errors expected.
_NOUNS = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "dict_type": "a mapping",
}


def read_block(
    launcher: str,
    given: Mapping[str, Any],
    methods: Collection[str],
    whole: type[BaseModel],
    each: type[BaseModel],
    *,
    known: Collection[str] | None = (),
    own: Collection[str] = (),
) -> Any:
    """Return a block as `whole`, whose ``methods`` say by method what differs for its cells.

    Args:
        launcher: the name of the block.
        given: the block as it stands in the matrix.
        methods: the methods of the matrix.
        whole: model of the block.
        each: model of what may differ by method.
        known: further keys that are taken; None: any, for nobody can tell.
        own: keys that the launcher sets by itself.

    Raises:
        OptionError: for a key, a value or a method that is not known.
    """
    where = ("launcher_options", launcher)
    options = checked(whole, given, where, known, own)
    for method, changes in options.methods.items():
        place = (*where, "methods", method)
        if method not in methods:
            listed = ", ".join(sorted(methods))
            text = f"the matrix has no such method{did_you_mean(method, methods)}; it has {listed}"
            raise _wrong(text, *place)
        checked(each, changes, place, known, own)
    return options


def checked(
    model: type[BaseModel],
    given: Mapping[str, Any],
    where: tuple[str, ...],
    known: Collection[str] | None = (),
    own: Collection[str] = (),
) -> Any:
    """Return `given` as a model. Raises OptionError that names the key, with the nearest one that is known."""
    keys = set(model.model_fields) | (set(known or ()) - set(own))
    for key in given:
        if key in own:
            raise _wrong("the launcher sets it by itself", *where, key)
        if known is not None and key not in keys:
            raise _wrong(f"unknown key{did_you_mean(key, keys)}", *where, key)
    try:
        return model(**given)
    except ValidationError as e:
        first = e.errors()[0]
        raise _wrong(_expected(first), *where, *first["loc"]) from e


def _wrong(problem: str, *path: str | int) -> OptionError:
    return OptionError(f"{'.'.join(map(str, path))}: {problem}", *path)


def _expected(error: Any) -> str:
    """Return one of pydantic's errors in the words of a matrix file."""
    text = str(error["msg"]).removeprefix("Value error, ")
    bound = text.removeprefix("Input should be ")
    if (noun := _NOUNS.get(error["type"])) is not None:
        text = f"expected {noun}"
    elif bound.startswith(("greater", "less")):
        text = f"expected a number {bound}"
    return f"{text}, got {error['input']!r:.60}"
