"""Agreement of a student with its teacher."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import kdbench_tasks
from kdbench.api import Batch, DataError, KdbenchError
from kdbench_tasks.agreement import evaluate


class Columns(nn.Module):
    """Logits are some columns of the input."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.columns = slice(start, stop)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(x[:, self.columns])


def run(teacher: nn.Module | None) -> SimpleNamespace:
    return SimpleNamespace(teachers=[] if teacher is None else [SimpleNamespace(net=teacher)])


STUDENT, TEACHER = Columns(0, 2), Columns(2, 4)


def test_by_hand():
    p = torch.tensor([[0.9, 0.1, 0.6, 0.4], [0.2, 0.8, 0.7, 0.3], [0.5, 0.5, 0.5, 0.5]])
    p[2, 0] += 1e-6
    p[2, 2] += 1e-6
    split = [Batch(p[:2].log()), Batch(p[2:].log())]
    got = evaluate(run(TEACHER), STUDENT, split)
    assert got["agreement"] == pytest.approx(200 / 3)
    q, t = p[:, :2].double(), p[:, 2:].double()
    assert got["kl_to_teacher"] == pytest.approx((t * (t / q).log()).sum(1).mean().item(), abs=1e-5)


def test_a_network_agrees_with_itself():
    split = [Batch(torch.randn(8, 4))]
    got = evaluate(run(STUDENT), STUDENT, split)
    assert got == pytest.approx({"agreement": 100, "kl_to_teacher": 0}, abs=1e-9)


def test_flags_come_back_and_nothing_random_happens():
    student, teacher = Columns(0, 2).train(), Columns(2, 4).train()
    teacher.drop.eval()
    split = [Batch(torch.randn(32, 4))]
    assert evaluate(run(teacher), student, split) == evaluate(run(teacher), student, split)
    assert student.training
    assert student.drop.training
    assert teacher.training
    assert not teacher.drop.training


def test_errors():
    with pytest.raises(KdbenchError, match="no teacher"):
        evaluate(run(None), STUDENT, [Batch(torch.randn(2, 4))])
    with pytest.raises(DataError, match="without images"):
        evaluate(run(TEACHER), STUDENT, [])


def test_the_entry_needs_a_teacher():
    entry = kdbench_tasks.kdbench_evaluators()[0]
    assert entry.name == "teacher-agreement"
    assert entry.needs_teacher
    module, attribute = entry.target.split(":")
    assert getattr(sys.modules[module], attribute) is evaluate


def test_asking_for_entries_imports_only_the_hooks():
    program = (
        "import sys, kdbench_architectures, kdbench_datasets, kdbench_launchers, kdbench_tasks\n"
        "kdbench_tasks.kdbench_tasks(), kdbench_tasks.kdbench_evaluators()\n"
        "kdbench_datasets.kdbench_datasets()\n"
        "kdbench_launchers.kdbench_launchers()\n"
        "kdbench_architectures.kdbench_architectures()\n"
        "mine = sorted(m for m in sys.modules if m.startswith('kdbench') and '.' in m)\n"
        "sys.exit('' if mine == ['kdbench.hooks'] and 'torch' not in sys.modules else str(mine))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
