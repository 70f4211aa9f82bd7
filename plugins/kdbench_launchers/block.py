"""Reading a launcher's block of ``launcher_options``: known keys, values that fit, methods that are there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from kdbench.api import KdbenchError, did_you_mean


def read_block(
    launcher: str,
    given: Mapping[str, Any],
    methods: Collection[str],
    whole: type[BaseModel],
    each: type[BaseModel],
    *,
    known: Collection[str] = (),
    own: Collection[str] = (),
) -> Any:
    """Return a block as `whole`, whose ``methods`` say by method what differs for its cells.

    Args:
        launcher: the name of the block.
        given: the block as it stands in the matrix.
        methods: the methods of the matrix.
        whole: model of the block.
        each: model of what may differ by method.
        known: further keys that are taken.
        own: keys that the launcher sets by itself.

    Raises:
        KdbenchError: for a key, a value or a method that is not known.
    """
    where = f"launcher_options.{launcher}"
    options = checked(whole, given, where, known, own)
    for method, changes in options.methods.items():
        place = f"{where}.methods.{method}"
        if method not in methods:
            listed = ", ".join(sorted(methods))
            raise KdbenchError(
                f"{place}: the matrix has no such method{did_you_mean(method, methods)}; it has {listed}"
            )
        checked(each, changes, place, known, own)
    return options


def checked(
    model: type[BaseModel],
    given: Mapping[str, Any],
    where: str,
    known: Collection[str] = (),
    own: Collection[str] = (),
) -> Any:
    """Return `given` as a model. Raises KdbenchError that names the key, with the nearest one that is known."""
    keys = set(model.model_fields) | (set(known) - set(own))
    for key in given:
        if key in own:
            raise KdbenchError(f"{where}.{key}: the launcher sets it by itself")
        if key not in keys:
            raise KdbenchError(f"{where}.{key}: unknown key{did_you_mean(key, keys)}")
    try:
        return model(**given)
    except ValidationError as e:
        first = e.errors()[0]
        path = ".".join(map(str, (where, *first["loc"])))
        raise KdbenchError(f"{path}: {first['input']!r:.60}: {first['msg']}") from e
