"""Weights of teachers: every file is checked before it is believed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import make_record
from safetensors.torch import save_file
from torch import nn

from kdbench.engine.checkpoint import weights_bytes
from kdbench.engine.teachers import load_cell_weights, load_checkpoint, route_loaders, unwrap
from kdbench.errors import KdbenchError
from kdbench.results.artifacts import route_path


def net(seed: int = 0, classes: int = 2) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, classes))


def equal(a: nn.Module, b: nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(v, theirs[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_checkpoint_is_loaded_and_hashed(tmp_path: Path, suffix: str) -> None:
    source, target, path = net(1), net(2), tmp_path / f"teacher{suffix}"
    if suffix == ".safetensors":
        save_file(source.state_dict(), path)
    else:
        torch.save(source.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_checkpoint(target, path, digest.upper()) == digest
    assert equal(target, source)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_wrapped_state_dicts(tmp_path: Path, key: str) -> None:
    source, target, path = net(1), net(2), tmp_path / "teacher.pt"
    inner = {f"module.{k}": v for k, v in source.state_dict().items()}
    torch.save({key: inner, "epoch": 3, "args": {"lr": 0.1}}, path)
    load_checkpoint(target, path, None)
    assert equal(target, source)


def test_unwrap_of_something_else_is_empty() -> None:
    assert unwrap([1, 2]) == {}
    assert unwrap({"epoch": 1}) == {}


def refused(path: Path, match: str, sha256: str | None = None) -> None:
    target = net(2)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(KdbenchError, match=match) as e:
        load_checkpoint(target, path, sha256)
    assert str(path) in str(e.value)
    assert "\n" not in str(e.value)
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


def test_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "none.pt", "cannot read the checkpoint .No such file")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("content", [b"", b"garbage" * 100])
def test_corrupt_file(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"t{suffix}"
    path.write_bytes(content)
    refused(path, "not a checkpoint that can be read")


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("t.pth", b"", r"\(the file is empty\)"),
        ("t.pth", b"edge\n" * 30, r"\(it starts with b'edge\\nedg', which no file of torch.save does\)"),
        ("t.pth", b"\x80\x02e.", r"\((\w+: \S+|[^)]* [^)]*)\)"),
        ("t.safetensors", b"edge\n" * 30, r"\([^)]* [^)]*\)"),
    ],
)
def test_what_was_found_instead(tmp_path: Path, name: str, content: bytes, found: str) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, f"not a checkpoint that can be read {found}$")


def test_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    whole = weights_bytes(net(1))
    path.write_bytes(whole[:-10])
    refused(path, "not a checkpoint that can be read")


def test_wrong_digest(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_file(net(1).state_dict(), path)
    refused(path, "the matrix expects " + "0" * 64, "0" * 64)


def test_wrong_shape_names_tensor_and_both_shapes(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_file(net(1, classes=7).state_dict(), path)
    refused(path, r"'3.weight' has shape \(7, 16\), the architecture needs \(2, 16\)")


def test_missing_and_unknown_tensors(tmp_path: Path) -> None:
    state = net(1).state_dict()
    path = tmp_path / "t.safetensors"
    save_file({k: v for k, v in state.items() if k != "1.running_mean"}, path)
    refused(path, "no tensor '1.running_mean'; is it a checkpoint of this architecture")
    save_file({**state, "4.weight": torch.zeros(1)}, path)
    refused(path, "unknown tensor '4.weight'")


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.target,)


def test_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path, target = tmp_path / "t.pt", tmp_path / "pwned"
    torch.save({"state_dict": net(1).state_dict(), "hook": Bomb(target)}, path)
    refused(path, "not a checkpoint that can be read")
    assert not target.exists()


def cell(folder: Path, weights: bytes, digest: str | None = None, **changes: Any) -> Path:
    folder.mkdir()
    sha = digest or hashlib.sha256(weights).hexdigest()
    record = make_record(teacher=None, method="vanilla", **({"weights_sha256": sha} | changes))
    (folder / "result.json").write_text(json.dumps(record))
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_weights_of_a_cell(tmp_path: Path) -> None:
    source, target = net(1), net(2)
    record = load_cell_weights(target, cell(tmp_path / "c", weights_bytes(source)))
    assert equal(target, source)
    assert record["deployables"]["student"]["last"]["top1"] == 72.0


def test_weights_that_are_not_those_of_the_record(tmp_path: Path) -> None:
    folder = cell(tmp_path / "c", weights_bytes(net(1)), digest="0" * 64)
    with pytest.raises(
        KdbenchError, match=r"model\.safetensors: the weights are not those of the cell's record"
    ):
        load_cell_weights(net(2), folder)


def test_weights_that_are_gone(tmp_path: Path) -> None:
    folder = cell(tmp_path / "c", weights_bytes(net(1)))
    (folder / "model.safetensors").unlink()
    with pytest.raises(KdbenchError, match="cannot read the checkpoint"):
        load_cell_weights(net(2), folder)


def test_a_teacher_that_failed(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    record = make_record(teacher=None, status="diverged")
    (folder / "result.json").write_text(json.dumps(record))
    with pytest.raises(KdbenchError, match=f"teacher cell {record['cell_id'][:12]} is diverged, not done"):
        load_cell_weights(net(2), folder)


def test_route_is_loaded_lazily_and_missed_early(tmp_path: Path) -> None:
    for epoch in (2, 4):
        path = route_path(tmp_path, epoch)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(weights_bytes(net(epoch)))
    first, second = route_loaders(tmp_path, [2, 4])
    target = net(0)
    target.load_state_dict(dict(second()))
    assert equal(target, net(4))
    target.load_state_dict(dict(first()))
    assert equal(target, net(2))
    with pytest.raises(KdbenchError, match=r"epoch-0003\.safetensors: the teacher's route was not kept"):
        route_loaders(tmp_path, [2, 3])


def test_equal_weights_give_equal_bytes_whatever_their_layout() -> None:
    a, b = net(1), net(1)
    b = b.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert weights_bytes(a) == weights_bytes(b)
    assert weights_bytes(a) != weights_bytes(net(2))


class Opens:
    """What a malicious pickle holds: unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("form", ["pickle", "zip", "legacy", "inside"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".ckpt", ""])
def test_no_pickle_is_executed_whatever_the_file_is_called(tmp_path: Path, form: str, suffix: str) -> None:
    touched, path = tmp_path / "touched", tmp_path / f"teacher{suffix}"
    code: Any = {**net(1).state_dict(), "more": Opens(touched)} if form == "inside" else Opens(touched)
    if form == "pickle":
        path.write_bytes(pickle.dumps(code))
    else:
        torch.save(code, path, _use_new_zipfile_serialization=form != "legacy")
    refused(path, "not a checkpoint that can be read")
    assert not touched.exists()
    if form == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(io.BytesIO(path.read_bytes()), weights_only=False)
    assert touched.exists()  # it was a live one


@pytest.mark.parametrize("length", [2**63, 2**40])
def test_headers_of_safetensors_that_promise_too_much(tmp_path: Path, length: int) -> None:
    path = tmp_path / "teacher.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}" + b"\0" * 8)
    refused(path, "not a checkpoint that can be read")
    header = b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 16)
    refused(path, "not a checkpoint that can be read")


def test_what_is_hashed_is_what_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is swapped between two readings would pass for the one whose digest is known."""
    path, other = tmp_path / "teacher.pt", tmp_path / "other.pt"
    torch.save(net(1).state_dict(), path)
    torch.save(net(2).state_dict(), other)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    load = torch.load

    def swap(source: Any, **more: Any) -> Any:
        os.replace(other, path)
        return load(source, **more)

    monkeypatch.setattr(torch, "load", swap)
    target = net(3)
    load_checkpoint(target, path, digest)
    assert equal(target, net(1))


def test_a_route_that_is_damaged_is_told_in_one_line(tmp_path: Path) -> None:
    path = route_path(tmp_path, 1)
    path.parent.mkdir()
    path.write_bytes(b"damaged")
    (loader,) = route_loaders(tmp_path, [1])
    with pytest.raises(KdbenchError, match=r"epoch-0001\.safetensors: not a checkpoint"):
        loader()


def test_a_pipe_for_a_checkpoint_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "teacher.pt")
    refused(tmp_path / "teacher.pt", "not a regular file")
