"""Assistants: networks of the architecture that the pair names between teacher and student."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdbench.api import Method, Needs, NotApplicable
from kdbench.engine.build import check_needs, make_run, make_task
from kdbench.engine.cellspec import Arch, CellFile, Data
from kdbench.engine.context import CellRun
from kdbench.matrix import Recipe
from kdbench.protocol.types import DataInfo, TaskData
from kdbench.registry import Registry
from kdbench.results.schema import Labels

INFO = DataInfo("tiny", 3, tuple("abc"), 32, (0.5,) * 3, (0.2,) * 3, 8, 8, revision="1")


def make(assistant: str | None = "resnet20", seed: int = 0) -> CellRun:
    names = {"matrix": "m", "task": "classification", "dataset": "tiny", "student": "resnet8"}
    cell = CellFile(
        cell_id="0" * 64,
        protocol=1,
        identity={},
        labels=Labels(**names, method="x", variant="x", recipe="r", seed=seed),
        task="classification",
        method="x",
        params={},
        student=Arch(name="resnet8"),
        assistant=Arch(name=assistant) if assistant else None,
        teachers=[],
        dataset=Data(name="tiny", label="tiny", storage="resident", revision="1"),
        recipe=Recipe.model_validate({"epochs": 1, "optimizer": {"name": "sgd", "lr": 0.1}}),
        seed=seed,
    )
    registry, data = Registry.load(), TaskData(streams={}, splits={}, info=INFO)
    task = make_task(registry, "classification")
    return make_run(registry, cell, INFO, task, data, torch.device("cpu"), Path(), probing=True)


def test_an_assistant_is_a_student_of_the_third_architecture() -> None:
    run = make()
    handle = run.new_assistant()
    assert run.students["assistant"] is handle
    assert len(handle.blocks()) == 9  # ResNet-20; the student, ResNet-8, has 3
    assert len(run.student.blocks()) == 3
    assert all(p.requires_grad for p in handle.net.parameters())
    assert handle(torch.zeros(2, 3, 32, 32)).logits.shape == (2, 3)


def test_its_weights_follow_the_cells_seed() -> None:
    nets = [make(seed=s).new_assistant(seed=k).net for s, k in ((0, 0), (0, 0), (1, 0), (0, 1))]
    one, same, other, further = (n.fc.weight.detach() for n in nets)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one, further)


def test_the_student_has_the_same_weights_with_and_without_an_assistant() -> None:
    one, other = make("resnet20"), make(None)
    one.new_assistant()
    assert torch.equal(one.student.net.fc.weight, other.student.net.fc.weight)
    assert torch.equal(one.rng.get_state(), other.rng.get_state())


def test_a_pair_without_one() -> None:
    run = make(None)
    with pytest.raises(NotApplicable, match="needs a pair with an assistant"):
        run.new_assistant()
    with pytest.raises(NotApplicable, match="needs a pair with an assistant"):
        check_needs(Needs(teachers=0, assistants=1), run)
    check_needs(Needs(teachers=0), run)
    check_needs(Needs(teachers=0, assistants=1), make())


def test_only_in_setup_and_once_a_name() -> None:
    run = make()
    run.new_assistant()
    with pytest.raises(ValueError, match="named 'assistant' exists already"):
        run.new_assistant()
    late = make()
    late.lock()
    with pytest.raises(RuntimeError, match=r"new_assistant\(\) belongs in setup"):
        late.new_assistant()


def test_needs_are_told_in_words() -> None:
    assert Needs(assistants=1).describe() == ["an assistant"]
    assert Needs().describe() == Method.needs.describe() == []
