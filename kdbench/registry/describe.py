"""Read the parameters and documentation that a plug-in's classes carry."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Parameter:
    """A parameter of a method or data set.

    Attributes:
        name: key in a matrix file.
        type: its type with bounds, as text.
        default: value when absent; None for a required one as well.
        required: whether it has no default.
        description: one line.
    """

    name: str
    type: str
    default: Any
    required: bool
    description: str


def describe_params(model: Any) -> list[Parameter]:
    """Return the parameters of a pydantic model or a dataclass, in order of definition.

    Raises TypeError for anything else.
    """
    if hasattr(model, "model_fields"):
        return [_of_pydantic(name, info) for name, info in model.model_fields.items()]
    if dataclasses.is_dataclass(model):
        return [_of_dataclass(f) for f in dataclasses.fields(model)]
    raise TypeError(f"expected a pydantic model or a dataclass, not {model!r}")


def documentation(thing: Any) -> str:
    """Return an object's own docstring as plain text, without the marks of code; an empty string for none."""
    doc = thing.__dict__.get("__doc__") if inspect.isclass(thing) else getattr(thing, "__doc__", None)
    return inspect.cleandoc(doc).replace("``", "") if isinstance(doc, str) else ""


def type_text(annotation: Any) -> str:
    """Return a type as a reader would write it: ``int``, ``float | None``, ``Literal['a', 'b']``."""
    if inspect.isclass(annotation) and not getattr(annotation, "__args__", None):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("collections.abc.", "").replace("NoneType", "None")


def _of_pydantic(name: str, info: Any) -> Parameter:
    required = bool(info.is_required())
    default = None if required else info.get_default(call_default_factory=not _needs_data(info))
    bounds = [text for item in info.metadata for text in _bound_texts(item)]
    text = type_text(info.annotation)
    return Parameter(
        name=info.alias or name,
        type=f"{text}, {', '.join(bounds)}" if bounds else text,
        default=default,
        required=required,
        description=" ".join((info.description or "").split()),
    )


def _needs_data(info: Any) -> bool:
    return bool(info.default_factory) and bool(getattr(info, "default_factory_takes_validated_data", False))


def _bound_texts(item: Any) -> list[str]:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "multiple of"}
    signs |= {"min_length": "length >=", "max_length": "length <=", "pattern": "matches"}
    found = ((sign, getattr(item, key, None)) for key, sign in signs.items())
    return [f"{sign} {value}" for sign, value in found if value is not None]


def _of_dataclass(item: dataclasses.Field[Any]) -> Parameter:
    default = item.default
    if item.default_factory is not dataclasses.MISSING:
        default = item.default_factory()
    required = default is dataclasses.MISSING
    return Parameter(
        name=item.name,
        type=item.type if isinstance(item.type, str) else type_text(item.type),
        default=None if required else default,
        required=required,
        description=str(item.metadata.get("description", item.metadata.get("help", ""))),
    )
