"""Parameters and documentation of plug-in classes."""

from dataclasses import dataclass, field
from typing import Literal

import pytest
from pydantic import BaseModel, Field

from kdbench.hooks import Needs
from kdbench.registry import describe_params, documentation


class Model(BaseModel):
    must: int = Field(description="needed\n  always")
    beta: float = Field(2.0, gt=0, le=9, description="weight")
    mode: Literal["a", "b"] | None = None
    parts: list[int] = Field(default_factory=lambda: [1, 2])


@dataclass
class Plain:
    """First line
    goes on.

    Second paragraph: ``x = 1``.
    """

    must: int
    size: "int | None" = field(default=3, metadata={"description": "side"})
    parts: list = field(default_factory=list)


def test_pydantic_model():
    must, beta, mode, parts = describe_params(Model)
    assert (must.name, must.type, must.required, must.description) == ("must", "int", True, "needed always")
    assert (beta.type, beta.default, beta.description) == ("float, > 0, <= 9", 2.0, "weight")
    assert "'a', 'b'" in mode.type
    assert (mode.default, mode.required) == (None, False)
    assert (parts.type, parts.default) == ("list[int]", [1, 2])


def test_dataclass():
    must, size, parts = describe_params(Plain)
    assert (must.type, must.required) == ("int", True)
    assert (size.type, size.default, size.description) == ("int | None", 3, "side")
    assert parts.default == []


def test_needs_name_capabilities_in_words():
    needs = Needs(min_batch=2, capabilities=frozenset({"features", "supervised", "odd"}))
    assert needs.describe() == [
        "batch >= 2",
        "networks with inner features",
        "a task that is odd",
        "a task with labels to learn from",
    ]
    assert needs.describe({"features", "supervised"}) == ["batch >= 2", "a task that is odd"]


def test_anything_else_is_refused():
    with pytest.raises(TypeError, match="pydantic model or a dataclass"):
        describe_params(int)


def test_documentation_is_the_whole_docstring_as_plain_text():
    assert documentation(Plain) == "First line\ngoes on.\n\nSecond paragraph: x = 1."

    class Bare(Plain):
        pass

    assert documentation(Bare) == ""
    assert documentation(describe_params).startswith("Return the parameters of a pydantic model")
