"""The measuring process, and what is told when it dies."""

from __future__ import annotations

import os
import signal

import pytest

from kdbench.errors import KdbenchError
from kdbench.launch import speed
from kdbench.results.speed import SpeedSettings

SETTINGS = SpeedSettings(
    models=["resnet20"], modes=["infer"], batch_sizes=[1], precisions=["fp32"], image_size=32, num_classes=10,
    rounds=1, max_seconds=0.1, device="auto",
)  # fmt: skip


def _dies(connection, settings, disable):
    connection.send(("doing", "warming up resnet20"))
    os.kill(os.getpid(), signal.SIGKILL)


def _leaves(connection, settings, disable):
    os._exit(7)


def test_a_sheet_comes_back():
    told = []
    sheet = speed.measure_in_process(SETTINGS, told=told.append)
    assert sheet.settings.device in ("cpu", "cuda")
    assert sheet.rows[0].status == "done"
    assert told[0] == "building resnet20"


@pytest.mark.parametrize(
    ("child", "expected"),
    [
        (_dies, "was killed by SIGKILL while warming up resnet20, perhaps for want of memory"),
        (_leaves, "ended with code 7 while starting"),
    ],
)
def test_a_death_is_told_with_what_it_did_last(monkeypatch, child, expected):
    monkeypatch.setattr(speed, "_child", child)
    with pytest.raises(KdbenchError, match=expected):
        speed.measure_in_process(SETTINGS)
