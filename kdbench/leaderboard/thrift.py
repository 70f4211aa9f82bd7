"""Records in less memory: what many of them say in the same words is kept once."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

    from kdbench.results.schema import Record


class Thrift:
    """Makes records of one board share their environments, plug-ins and the parts of their identities.

    A record takes 30 KiB as it is read, and a third of that afterwards. Shared parts must not be changed.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Any] = {}
        self._sets: dict[frozenset[str], set[str]] = {}

    def __call__(self, record: Record) -> Record:
        """Return `record`, whose parts are now shared."""
        record.environment = self._one("environment", record.environment)
        record.floors = self._one("floors", record.floors)
        record.identity = {key: self._one("identity", value) for key, value in record.identity.items()}
        record.plugins = self._one(
            "plugins", record.plugins, lambda plugins: {k: p.model_dump() for k, p in plugins.items()}
        )
        for model in (record, record.labels, record.cost, *record.deployables.values(), *record.teachers):
            if model is not None:
                self._share_set(model)
        for sizes in record.throughput.values():
            for speed in sizes.values():
                self._share_set(speed)
        return record

    def _one(self, kind: str, value: Any, plain: Callable[[Any], Any] = lambda value: value) -> Any:
        if not isinstance(value, (dict, list)):
            return value
        return self._known.setdefault((kind, json.dumps(plain(value))), value)

    def _share_set(self, model: BaseModel) -> None:
        """Share the names of the fields that were given: a set for each model takes more than its values."""
        given = model.model_fields_set
        object.__setattr__(model, "__pydantic_fields_set__", self._sets.setdefault(frozenset(given), given))
