"""Locks between processes: exclusion, death of a holder, one measuring while others wait."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kdbench.launch.locks import FileLock, Turnstile

HOLD = """
import sys, time
from pathlib import Path
from kdbench.launch.locks import FileLock
lock = FileLock(Path(sys.argv[1]))
getattr(lock, sys.argv[2])()
print("held", flush=True)
time.sleep(60)
"""


def hold(path: Path, how: str) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(path), how], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


@pytest.mark.parametrize("how", ["exclusive", "shared"])
def test_lock_of_another_process_ends_with_its_death(tmp_path: Path, how: str) -> None:
    path = tmp_path / ".lock"
    child = hold(path, how)
    mine = FileLock(path)
    try:
        assert not mine.try_exclusive()
    finally:
        child.kill()
        child.wait()
    assert mine.try_exclusive()
    mine.close()


def test_shares_go_together(tmp_path: Path) -> None:
    child = hold(tmp_path / ".lock", "shared")
    mine = FileLock(tmp_path / ".lock")
    try:
        mine.shared()  # would block for a minute behind an exclusive holder
        assert not FileLock(tmp_path / ".lock").try_exclusive()
    finally:
        child.kill()
        child.wait()


def test_release_and_close_let_go(tmp_path: Path) -> None:
    one, two = (FileLock(tmp_path / ".lock") for _ in range(2))
    one.exclusive()
    assert not two.try_exclusive()
    one.release()
    assert two.try_exclusive()
    two.close()
    assert one.try_exclusive()
    one.close()


def test_lock_is_not_inherited_by_programs(tmp_path: Path) -> None:
    """A child program must not keep the lock of a parent that died."""
    lock = FileLock(tmp_path / ".lock")
    assert not os.get_inheritable(lock._fd)
    lock.close()


def test_content_of_a_lock_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("x")
    FileLock(tmp_path / ".lock").close()
    assert (tmp_path / ".lock").read_text() == "x"


def test_nobody_trains_while_one_measures(tmp_path: Path) -> None:
    """Three trainers pass the gate before each epoch; the measuring block never overlaps an epoch."""
    training = [0]
    overlaps: list[int] = []
    epochs: list[int] = []
    guard, done = threading.Lock(), threading.Event()

    def train() -> None:
        turnstile = Turnstile(tmp_path, "cuda:0")
        while not done.is_set():
            turnstile.gate()
            with guard:
                training[0] += 1
            time.sleep(0.002)
            with guard:
                training[0] -= 1
                epochs.append(1)
        turnstile._main.close()

    threads = [threading.Thread(target=train) for _ in range(3)]
    for thread in threads:
        thread.start()
    turnstile = Turnstile(tmp_path, "cuda:0")
    turnstile.gate()
    passed = []
    for _ in range(5):
        before = len(epochs)
        with turnstile.alone():
            for _ in range(5):
                overlaps.append(training[0])
                time.sleep(0.002)
        turnstile.gate()
        time.sleep(0.02)
        passed.append(len(epochs) - before)
    done.set()
    turnstile._main.release()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert overlaps == [0] * 25
    assert min(passed) > 0


def test_waiting_to_measure_keeps_new_epochs_from_starting(tmp_path: Path) -> None:
    first, second, third = (Turnstile(tmp_path, "cpu") for _ in range(3))
    first.gate()  # an epoch is under way
    measured, started = threading.Event(), threading.Event()

    def measure() -> None:
        with second.alone():
            measured.set()
            time.sleep(0.05)
            assert not started.is_set()

    def train() -> None:
        third.gate()
        started.set()

    measuring = threading.Thread(target=measure)
    measuring.start()
    for _ in range(200):
        probe = FileLock(next(tmp_path.glob(".intent-*-cpu.lock")))
        waiting = not probe.try_exclusive()
        probe.close()
        if waiting:
            break
        time.sleep(0.005)
    assert waiting
    trainer = threading.Thread(target=train)
    trainer.start()
    time.sleep(0.05)
    assert not measured.is_set()
    assert not started.is_set()
    first._main.release()  # its epoch ends
    measuring.join(10)
    trainer.join(10)
    assert measured.is_set()
    assert started.is_set()


def test_a_trainer_sees_that_another_wants_to_measure(tmp_path: Path) -> None:
    trainer, other = Turnstile(tmp_path, "cpu"), Turnstile(tmp_path, "cpu")
    trainer.gate()
    assert not trainer.wanted()
    trainer._main.release()
    with other.alone():
        assert trainer.wanted()
    assert not trainer.wanted()


def test_measuring_waits_for_a_step_and_not_for_an_epoch(tmp_path: Path) -> None:
    """Trainers of an endless epoch, two slots of one device: both let go after a step, neither starts another."""
    stepping, ended, overlaps = [0], threading.Event(), []
    guard = threading.Lock()

    def train() -> None:
        turnstile = Turnstile(tmp_path, "cuda")
        turnstile.gate()
        while not ended.is_set():
            with guard:
                stepping[0] += 1
            time.sleep(0.001)
            with guard:
                stepping[0] -= 1
            if turnstile.wanted():
                turnstile.gate()
        turnstile._main.close()

    threads = [threading.Thread(target=train) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        with Turnstile(tmp_path, "cuda").alone():
            overlaps.append(stepping[0])
    ended.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert overlaps == [0, 0, 0]


def test_processes_of_two_gpus_do_not_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    first, beside = (Turnstile(tmp_path, "cuda") for _ in range(2))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    second = Turnstile(tmp_path, "cuda")
    with first.alone():
        assert beside.wanted()
        assert not second.wanted()
        second.gate()


def test_the_lock_is_free_after_an_error_while_measuring(tmp_path: Path) -> None:
    one, two = Turnstile(tmp_path, "cpu"), Turnstile(tmp_path, "cpu")
    with pytest.raises(ValueError, match="broken"), one.alone():
        raise ValueError("broken")
    with two.alone():
        pass


def test_devices_do_not_wait_for_each_other(tmp_path: Path) -> None:
    with Turnstile(tmp_path, "cuda:0").alone():
        Turnstile(tmp_path, "cuda:1").gate()
    host = socket.gethostname()
    kinds = [(kind, gpu) for kind in ("intent", "measure") for gpu in (0, 1)]
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [f".{kind}-{host}-cuda-{gpu}.lock" for kind, gpu in kinds]


def test_machines_do_not_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Turnstile(tmp_path, "cuda")
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    with here.alone():
        Turnstile(tmp_path, "cuda").gate()
