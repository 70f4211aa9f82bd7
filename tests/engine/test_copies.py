"""Networks of a plan are built once and copied."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdbench.engine import copies
from kdbench.engine.cellspec import Arch
from kdbench.engine.copies import Copies

FACTS = {"num_classes": 3, "in_chans": 3, "image_size": 8}


class Stubborn(nn.Module):
    def __deepcopy__(self, memo: object) -> nn.Module:
        raise TypeError("not this one")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, object]]]:
    """Replace the builder by one that notes what it makes."""
    made: list[tuple[str, dict[str, object]]] = []

    def builder(registry: object, arch: Arch):
        def make(**facts: object) -> nn.Module:
            made.append((arch.name, facts))
            return Stubborn() if arch.name == "stubborn" else nn.Linear(2, 2)

        return make

    monkeypatch.setattr(copies, "builder", builder)
    return made


def test_built_once_and_each_copy_is_its_own(built: list) -> None:
    nets = Copies()
    one, other = (nets(None, Arch(name="a"))(**FACTS) for _ in range(2))
    assert len(built) == 1
    assert torch.equal(one.weight, other.weight)
    one.requires_grad_(False)
    with torch.no_grad():
        one.weight.zero_()
    third = nets(None, Arch(name="a"))(**FACTS)
    assert third.weight.requires_grad
    assert torch.equal(third.weight, other.weight)


def test_other_arguments_and_facts_are_other_networks(built: list) -> None:
    nets = Copies()
    nets(None, Arch(name="a"))(**FACTS)
    nets(None, Arch(name="a", args={"deep": 2}))(**FACTS)
    nets(None, Arch(name="a"))(**{**FACTS, "num_classes": 4})
    assert len(built) == 3


def test_the_oldest_is_let_go(built: list) -> None:
    nets = Copies(keep=2)
    for name in "abaca":
        nets(None, Arch(name=name))(**FACTS)
    assert [name for name, _ in built] == ["a", "b", "c"]
    nets(None, Arch(name="b"))(**FACTS)
    assert [name for name, _ in built] == ["a", "b", "c", "b"]


def test_a_network_that_cannot_be_copied_is_built(built: list) -> None:
    nets = Copies()
    one, other = (nets(None, Arch(name="stubborn"))(**FACTS) for _ in range(2))
    assert one is not other
    assert len(built) == 3
