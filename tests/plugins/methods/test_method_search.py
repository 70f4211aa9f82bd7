"""Where the shipped methods are searched: bounds that they take, their own values inside."""

from __future__ import annotations

import pytest

from kdbench.api import Method, MethodParams, Search
from kdbench.engine.build import method_params
from kdbench.engine.probe import search_space
from kdbench.errors import KdbenchError
from kdbench.launch.search import holds
from kdbench.registry import Registry

REGISTRY = Registry.load()
METHODS = [item.name for item in REGISTRY.all("methods") if item.plugin.name == "methods"]
#: timm's tasks take no weight (null) to mean that both weights are 1.
OPEN = {"timm-feature", "timm-logit", "timm-token"}


@pytest.mark.parametrize("name", METHODS)
def test_a_space_holds_the_methods_own_values_and_nothing_that_it_refuses(name):
    cls = REGISTRY.get("methods", name).load()
    space = search_space(cls, name)
    assert all(where.source for where in cls.search.values())
    for end in ("low", "high"):
        params = {key: where[end] for key, where in space.items()}
        resolved = method_params(cls, name, None, params)
        assert {key: getattr(resolved, key) for key in space} == params
    given = cls.Params().model_dump()
    assert (holds(space, given) is None) == (name in OPEN)


def test_every_method_with_a_weight_has_a_space():
    without = {name for name in METHODS if not REGISTRY.get("methods", name).load().search}
    assert without == {"vanilla"}


def test_a_space_of_no_hyper_parameter_is_told():
    class Wrong(Method):
        class Params(MethodParams):
            weight: float = 1.0

        search = {"wieght": Search(low=0.0, high=1.0)}

    with pytest.raises(KdbenchError, match=r"no hyper-parameter 'wieght' \(did you mean 'weight'\?\)"):
        search_space(Wrong, "wrong")


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"low": 1.0},
        {"low": 2.0, "high": 1.0},
        {"low": 0.0, "high": 1.0, "log": True},
        {"low": float("nan"), "high": 1.0},
        {"choices": ("a",)},
        {"choices": ("a", "b"), "low": 1.0},
    ],
)
def test_what_is_no_space_is_refused(bad):
    with pytest.raises(ValueError):
        Search(**bad)
