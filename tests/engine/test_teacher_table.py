"""Tables on disk: what is written is read back; what is cut, damaged or too large is noticed."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.engine import teacher_table
from kdbench.engine.teacher_table import Shape, Tables
from kdbench.errors import KdbenchError

CPU = torch.device("cpu")
SHAPE = Shape(images=10, views=3, width=2, dtype="fp32")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images a part: five parts of a table of ten."""
    monkeypatch.setattr(teacher_table, "PART_ROWS", 6)


def value(index: Any, view: Any, column: int) -> Any:
    return 100.0 * index + 10.0 * view + column


def rows(first: int, last: int) -> Tensor:
    found = [[value(i, v, c) for c in range(2)] for i in range(first, last) for v in range(3)]
    return torch.tensor(found)


class Compute:
    """Gives the rows, and remembers for which images it was asked."""

    def __init__(self, scale: float = 1.0) -> None:
        self.asked: list[tuple[int, int]] = []
        self.scale = scale

    def __call__(self, first: int, last: int) -> list[Tensor]:
        self.asked.append((first, last))
        return [self.scale * rows(first, last)]


def fill(folder: Path, compute: Any, shape: Shape = SHAPE, stop: Any = lambda: None) -> Any:
    tables = Tables(folder, {"logits": shape}, CPU)
    with tables.alone():
        return tables.fill(compute, lambda done: None, stop)["logits"]


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_what_was_filled_is_read_by_image_and_view(tmp_path: Path, dtype: str) -> None:
    shape = Shape(10, 3, 2, dtype)
    fill(tmp_path, Compute(), shape)
    found = Tables(tmp_path, {"logits": shape}, CPU).open()
    assert found is not None
    index, view = torch.tensor([9, 0, 4, 4]), torch.tensor([2, 0, 1, 2])
    expected = torch.stack([value(index, view, 0), value(index, view, 1)], 1)
    got = found["logits"].read(index, view)
    assert torch.equal(got, expected)  # whole numbers below 2048 are exact in fp16
    assert got.dtype == torch.float32
    got.zero_()
    assert torch.equal(found["logits"].read(index, view), expected)  # a copy, that a method may write into


def test_values_come_back_in_the_dtype_of_the_teacher(tmp_path: Path) -> None:
    table = fill(tmp_path, lambda a, b: [rows(a, b).bfloat16()])
    assert table.read(torch.tensor([1]), torch.tensor([1])).dtype == torch.bfloat16


def test_nothing_is_computed_twice(tmp_path: Path) -> None:
    first, second = Compute(), Compute()
    fill(tmp_path, first)
    fill(tmp_path, second)
    assert first.asked == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]
    assert second.asked == []


class Cut(Exception):
    pass


def cut_after(parts: int) -> Any:
    left = [parts]

    def stop() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Cut

    return stop


def test_cut_fill_goes_on_where_it_was(tmp_path: Path) -> None:
    with pytest.raises(Cut):
        fill(tmp_path, Compute(), stop=cut_after(3))
    assert Tables(tmp_path, {"logits": SHAPE}, CPU).open() is None
    again = Compute()
    table = fill(tmp_path, again)
    assert again.asked == [(6, 8), (8, 10)]
    assert torch.equal(table._rows, rows(0, 10))


def test_cut_fill_does_not_trust_a_damaged_part(tmp_path: Path) -> None:
    with pytest.raises(Cut):
        fill(tmp_path, Compute(), stop=cut_after(3))
    part = tmp_path / "logits.part"
    data = bytearray(part.read_bytes())
    data[SHAPE.bytes_of(2) + 1] ^= 1  # within the second part
    part.write_bytes(data)
    again = Compute()
    table = fill(tmp_path, again)
    assert again.asked == [(2, 4), (4, 6), (6, 8), (8, 10)]
    assert torch.equal(table._rows, rows(0, 10))


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def lose_note(path: Path) -> None:
    path.with_suffix(".json").unlink()


def spoil_note(path: Path) -> None:
    path.with_suffix(".json").write_text('{"shape": 3')


def other_shape(path: Path) -> None:
    note = json.loads(path.with_suffix(".json").read_text())
    note["shape"]["width"] = 1
    path.with_suffix(".json").write_text(json.dumps(note))


@pytest.mark.parametrize("harm", [shorten, flip, lose_note, spoil_note, other_shape])
def test_damaged_table_is_noticed_and_made_anew(tmp_path: Path, harm: Any) -> None:
    fill(tmp_path, Compute())
    harm(tmp_path / "logits.rows")
    assert Tables(tmp_path, {"logits": SHAPE}, CPU).open() is None
    again = Compute()
    assert torch.equal(fill(tmp_path, again)._rows, rows(0, 10))
    assert len(again.asked) == 5


def test_number_that_does_not_fit_is_told(tmp_path: Path) -> None:
    shape = Shape(10, 3, 2, "fp16")
    with pytest.raises(KdbenchError, match=r"teacher_cache: fp16: a number .* does not fit; use fp32"):
        fill(tmp_path, Compute(scale=1e3), shape)
    with pytest.raises(KdbenchError, match=r"\(nan\) does not fit; use off"):
        fill(tmp_path, Compute(scale=float("nan")), shape)


def test_values_of_another_shape_are_told(tmp_path: Path) -> None:
    with pytest.raises(KdbenchError, match=r"logits have shape \(6, 1\), expected \(6, 2\)"):
        fill(tmp_path, lambda a, b: [rows(a, b)[:, :1]])


def test_too_small_a_disk_is_told_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    compute = Compute()
    with pytest.raises(KdbenchError, match=r"tables need 240 bytes and 100 bytes are free: .*KDBENCH_CACHE"):
        fill(tmp_path, compute)
    assert compute.asked == []


def test_disk_that_fills_up_is_told_in_one_line(tmp_path: Path) -> None:
    def full(first: int, last: int) -> list[Tensor]:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(KdbenchError, match="tables need 240 bytes: free some space") as e:
        fill(tmp_path, full)
    assert "\n" not in str(e.value)


def test_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    tables = Tables(tmp_path / "file" / "key", {"logits": SHAPE}, CPU)
    with pytest.raises(KdbenchError, match="cannot write teacher tables"), tables.alone():
        pass


def _fill_and_count(folder: Path, barrier: Any, results: Any) -> None:
    torch.set_num_threads(1)
    compute = Compute()
    teacher_table.PART_ROWS = 6
    barrier.wait()
    table = fill(folder, compute)
    results.put((len(compute.asked), table._rows.tolist()))


def test_two_processes_fill_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_fill_and_count, args=(tmp_path, barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    got = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(count for count, _ in got) == [0, 5]
    assert all(values == rows(0, 10).tolist() for _, values in got)
