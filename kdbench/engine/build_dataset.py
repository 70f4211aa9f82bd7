"""Data sets and hyper-parameters from names and arguments. No torch: the planner uses it too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from kdbench.errors import KdbenchError, did_you_mean
from kdbench.protocol.dataset import Dataset
from kdbench.registry import Registry


def make_dataset(registry: Registry, name: str, args: Mapping[str, Any]) -> Dataset:
    """Make a data set from its name and arguments. Raises KdbenchError naming a bad argument."""
    cls = registry.get("datasets", name).load()
    return cls(validated(cls.Params, args, f"data set '{name}'"))  # type: ignore[no-any-return]


def validated(params: Any, values: Mapping[str, Any], what: str) -> Any:
    """Validate hyper-parameters against a pydantic model or a dataclass; one line per problem."""
    known = list(getattr(params, "model_fields", None) or getattr(params, "__dataclass_fields__", {}))
    try:
        return TypeAdapter(params).validate_python(dict(values))
    except ValidationError as e:
        problems = []
        for error in e.errors():
            key = ".".join(str(part) for part in error["loc"]) or "?"
            if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
                near = did_you_mean(key, known) or (f"; it takes {', '.join(known)}" if known else "")
                problems.append(f"{key}: unknown{near}")
            else:
                problems.append(f"{key}: {error['msg']}, got {error['input']!r:.80}")
        raise KdbenchError(f"{what}: " + "; ".join(problems)) from e
