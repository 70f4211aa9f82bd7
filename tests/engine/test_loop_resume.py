"""Cut at any step, resumed, equal bit for bit; damaged and hostile checkpoints."""

from __future__ import annotations

import os
import pickle
import random
import resource
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdbench.engine import checkpoint
from kdbench.engine.checkpoint import load_state, pack, save_state, unpack
from kdbench.engine.progress import Interrupted
from kdbench.errors import KdbenchError
from kdbench.protocol.method import Method
from kdbench.protocol.types import Batch, Opt, Phase

Start = Callable[..., Any]
#: Epochs 4 = 1 + 3; steps per epoch 3 and 2.
STEPS = 3 + 3 * 2


class Toy(Method):
    """All that a state can be: two phases, two optimizers, a bank in a buffer, a peer, three generators."""

    def setup(self, run: Any) -> None:
        self.connector = nn.Linear(3, 3)
        self.register_buffer("bank", torch.zeros(17, 3))
        self.peer = run.new_student("peer")

    def phases(self, run: Any) -> list[Phase]:
        adam = Opt((self.connector,), "adam", {"lr": 0.01})
        main = {"s": Opt((run.student.net, self.peer.net)), "g": adam}
        return [
            Phase("init", 1, optimizers={"g": adam}, evaluate=False),
            Phase("train", 3, optimizers=main, source=self.batches, step=self.alternate),
        ]

    def batches(self, run: Any) -> Any:
        stream = run.task_data.streams["train"]
        return list(stream.epoch(100 + run.epoch))[:2]

    def step(self, batch: Batch | None, run: Any) -> Mapping[str, Tensor]:
        assert batch is not None
        with torch.no_grad():
            logits = run.student(batch.x).logits
        loss = (self.connector(logits) - run.teach(run.teacher, batch.x).logits).square().mean()
        run.optimize(loss)
        self.bank[batch.index] = 0.5 * self.bank[batch.index] + 0.5 * logits
        return {"hint": loss}

    def alternate(self, batch: Batch, run: Any) -> Mapping[str, Tensor]:
        noise = torch.randn(batch.x.shape, generator=run.rng) * (random.random() + np.random.rand())
        student = run.student(batch.x + 0.1 * noise).logits
        peer = self.peer(batch.x).logits
        loss = run.task.loss(run.student(batch.x), batch) + (student - peer).square().mean()
        loss = loss + (student - self.bank[batch.index]).square().mean()
        run.optimize(loss, "s")
        other = self.connector(student.detach()).square().mean()
        if run.step_in_epoch % 2 == 0:
            run.optimize(other, "g")
        self.bank[batch.index] = 0.9 * self.bank[batch.index] + 0.1 * student.detach()
        run.log({"noise": noise.mean()})
        return {"s": loss, "g": other}


def outcome(run: Any, method: Method, at: Any) -> dict[str, Any]:
    timed = ("train_s", "step_ms", "images_per_s", "eval_s")
    return {
        "rows": [{k: v for k, v in row.items() if k not in timed} for row in at.rows],
        "student": run.student.net.state_dict(),
        "peer": run.students["peer"].net.state_dict(),
        "method": method.state_dict(),
        "steps": at.global_step,
        "images": at.images,
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),  # type: ignore[union-attr, index]
        "run": run.rng.get_state(),
    }


def assert_same(a: Any, b: Any, where: str = "") -> None:
    if isinstance(a, Mapping):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def cutter(*steps: int) -> Callable[[], bool]:
    count = iter(range(1, 1000))
    return lambda: next(count) in steps


@pytest.fixture
def undisturbed(start: Start, tmp_path: Path) -> dict[str, Any]:
    run, method, loop = start(Toy, folder=tmp_path / "whole", epochs=4)
    at = loop.train()
    assert at.attempts == 1
    return outcome(run, method, at)


@pytest.mark.parametrize("cut", range(1, STEPS + 1))
def test_cut_and_resume_equals_the_undisturbed_run(
    start: Start, tmp_path: Path, undisturbed: dict[str, Any], cut: int
) -> None:
    _, _, loop = start(Toy, folder=tmp_path / "cut", epochs=4, options={"should_stop": cutter(cut)})
    with pytest.raises(Interrupted):
        loop.train()
    run, method, loop = start(Toy, folder=tmp_path / "cut", epochs=4)
    at = loop.train()
    assert at.attempts == 2
    assert_same(outcome(run, method, at), undisturbed)


def test_cut_at_every_step(start: Start, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    for _ in range(STEPS):
        options = {"should_stop": cutter(1)}
        _, _, loop = start(Toy, folder=tmp_path / "cut", epochs=4, options=options)
        with pytest.raises(Interrupted):
            loop.train()
    run, method, loop = start(Toy, folder=tmp_path / "cut", epochs=4)
    at = loop.train()
    assert at.attempts == STEPS + 1
    assert_same(outcome(run, method, at), undisturbed)


@pytest.mark.parametrize("epochs", [1, 2, 3, 4])
def test_killed_between_two_epochs(
    start: Start, tmp_path: Path, undisturbed: dict[str, Any], epochs: int
) -> None:
    """Killed after the checkpoint of an epoch, the last one included: the weights come back too."""

    class Killed(Exception):
        pass

    def kill(row: dict[str, Any]) -> None:
        if row["epoch"] == epochs:
            raise Killed

    _, _, loop = start(Toy, folder=tmp_path / "cut", epochs=4, options={"on_epoch": kill})
    with pytest.raises(Killed):
        loop.train()
    run, method, loop = start(Toy, folder=tmp_path / "cut", epochs=4)
    at = loop.train()
    assert_same(outcome(run, method, at), undisturbed)


@pytest.mark.parametrize("damage", ["cut", "empty", "noise"])
def test_damaged_checkpoint_is_set_aside(
    start: Start, tmp_path: Path, undisturbed: dict[str, Any], damage: str
) -> None:
    folder = tmp_path / "cut"
    _, _, loop = start(Toy, folder=folder, epochs=4, options={"should_stop": cutter(5)})
    with pytest.raises(Interrupted):
        loop.train()
    path = folder / "checkpoint.safetensors"
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "noise": bytes(range(256)) * 9}[damage])
    broken = path.read_bytes()
    told: list[str] = []
    run, method, loop = start(Toy, folder=folder, epochs=4, options={"note": told.append})
    at = loop.train()
    assert (folder / "checkpoint.damaged").read_bytes() == broken
    assert_same(outcome(run, method, at), undisturbed)
    (line,) = told
    assert line.startswith(f"{path}: not a usable checkpoint (")
    assert line.endswith("; it is put aside as checkpoint.damaged, and the cell begins anew")


def test_a_checkpoint_for_which_memory_is_short_stays(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*arguments: Any, **more: Any) -> Any:
        raise MemoryError

    with pytest.raises(Interrupted):
        start(Toy, folder=tmp_path, epochs=4, options={"should_stop": cutter(2)})[2].train()
    whole = (tmp_path / "checkpoint.safetensors").read_bytes()
    monkeypatch.setattr(checkpoint, "safe_open", short)
    with pytest.raises(MemoryError):
        start(Toy, folder=tmp_path, epochs=4)[2].train()
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == whole


def test_a_checkpoint_that_the_file_system_does_not_give_stays(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Interrupted):
        start(Toy, folder=tmp_path, epochs=4, options={"should_stop": cutter(2)})[2].train()
    whole = path.read_bytes()
    loop = start(Toy, folder=tmp_path, epochs=4)[2]
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    least = os.open(os.devnull, os.O_RDONLY)
    os.close(least)
    resource.setrlimit(resource.RLIMIT_NOFILE, (least, most[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            loop.train()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)
    assert path.read_bytes() == whole


def test_a_checkpoint_behind_epochs_that_were_to_be_kept_is_of_no_use(
    start: Start, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    """As of a teacher that was cut before the matrix had a method that follows its route."""
    with pytest.raises(Interrupted):
        start(Toy, folder=tmp_path, epochs=4, options={"should_stop": cutter(6)})[2].train()
    kept: list[int] = []
    options = {"keep": kept.append, "kept": lambda epochs: set(kept) >= set(range(1, epochs + 1))}
    run, method, loop = start(Toy, folder=tmp_path, epochs=4, options=options)
    at = loop.train()
    assert kept == [1, 2, 3, 4]
    assert_same(outcome(run, method, at), undisturbed)


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.target,)


def test_a_pickle_is_never_executed(start: Start, tmp_path: Path) -> None:
    target, folder = tmp_path / "pwned", tmp_path / "cell"
    folder.mkdir()
    bomb = pickle.dumps(Bomb(target))
    path = folder / "checkpoint.safetensors"
    path.write_bytes(bomb)
    with pytest.raises(KdbenchError, match=r"checkpoint\.safetensors: not a usable checkpoint"):
        load_state(path)
    at = start(Toy, folder=folder, epochs=4)[2].train()
    assert at.total_epochs == 4
    assert (folder / "checkpoint.damaged").read_bytes() == bomb
    assert not target.exists()
    pickle.loads(bomb)
    assert target.exists()  # the bomb was a live one


def test_state_round_trip(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    state = {
        "tensors": [shared, shared[0], shared.t(), torch.tensor(3, dtype=torch.int64), torch.empty(0, 2)],
        "half": torch.ones(2, dtype=torch.bfloat16),
        7: ("a", None, True, 1.5, [1, (2, 3)]),
        "empty": {},
    }
    path = tmp_path / "state.safetensors"
    save_state(path, state)
    back = load_state(path)
    assert list(back) == list(state)
    assert back[7] == state[7]
    assert isinstance(back[7], tuple)
    assert back["empty"] == {}
    assert back["half"].dtype == torch.bfloat16
    for mine, theirs in zip(back["tensors"], state["tensors"], strict=True):
        assert torch.equal(mine, theirs)
        assert mine.dtype == theirs.dtype
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]


def test_a_state_that_cannot_be_saved_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="cannot save a set in a checkpoint"):
        save_state(tmp_path / "s", {"seen": {1}})
    assert list(tmp_path.iterdir()) == []


def test_pack_copies() -> None:
    x = torch.zeros(2)
    tensors, skeleton = pack({"x": x})
    x += 1
    assert unpack(tensors, skeleton)["x"].tolist() == [0, 0]


def test_a_bit_that_changed_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state(
        path, {"weights": torch.ones(100), "half": torch.ones(3, dtype=torch.bfloat16), "none": torch.ones(0)}
    )
    assert load_state(path)["weights"].sum() == 100
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(KdbenchError, match="not as they were written"):
        load_state(path)
