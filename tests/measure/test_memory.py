"""Bytes by hand."""

from __future__ import annotations

import errno

import pytest
import torch

from kdbench.measure import memory
from kdbench.measure.memory import free_bytes, growth_bytes, out_of_memory, tensor_bytes

CPU = torch.device("cpu")
KB = torch.ones(256)


def test_growth_is_the_most_that_lives_at_one_time():
    def call():
        a = KB + 1  # 1 KB
        b = a * 2  # 2 KB
        del a
        c = b + 1  # 2 KB: the first is gone
        return b, c

    assert growth_bytes(call, CPU) == 2 * 1024


def test_views_and_changes_in_place_hold_nothing():
    assert growth_bytes(lambda: KB.view(16, 16).t().add_(0)[3:], CPU) == 0


def test_what_autograd_saves_is_seen():
    x = torch.ones(256, requires_grad=True)

    def kept():
        y = x
        for _ in range(4):
            y = y.exp()
        return y

    def freed():
        with torch.no_grad():
            kept()

    assert growth_bytes(kept, CPU) == 4 * 1024
    assert growth_bytes(freed, CPU) == 2 * 1024


def test_bytes_of_tensors_count_shared_storage_once():
    a = torch.zeros(256)
    assert tensor_bytes([a, a.view(16, 16), a[:8], torch.zeros(2, dtype=torch.int64), 7]) == 1024 + 16


def test_free_memory_is_that_of_the_machine_within_the_group(tmp_path):
    whole = free_bytes(CPU)
    assert whole is None or 2**20 < whole < 2**50
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert memory._left_in_group(tmp_path) == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._left_in_group(tmp_path) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_growth_on_a_gpu_is_allocated_bytes():
    device = torch.device("cuda")
    x = torch.ones(1 << 20, device=device)
    assert growth_bytes(lambda: x + 1, device) == 4 << 20
    assert free_bytes(device) > 2**28


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "no memory"), True),
        (OSError(errno.ENOENT, "no file"), False),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."), True),
        (RuntimeError("shapes"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error, expected):
    assert out_of_memory(error) is expected
