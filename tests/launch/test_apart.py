"""Functions in a process of their own: what comes back, and what is left when either side dies."""

import os
import signal
import subprocess
import sys
import time

import pytest

from kdbench.errors import KdbenchError, RecordError
from kdbench.launch.apart import apart
from kdbench.results.holder import _born

#: A parent whose other process writes its number and then never ends.
PARENT = """
import sys, time
from pathlib import Path
from kdbench.launch.apart import apart
from test_apart import hang

if __name__ == "__main__":
    try:
        apart("this", hang, sys.argv[1])
    except KeyboardInterrupt:
        sys.exit(130)
"""


class Odd(Exception):
    """Cannot be sent: it is made of two things and told of one."""

    def __init__(self, one, two):
        super().__init__(one)


def hang(path):
    with open(f"{path}.new", "w") as file:
        file.write(str(os.getpid()))
    os.replace(f"{path}.new", path)
    time.sleep(600)


def fail(kind):
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "left":
        os._exit(7)
    if kind == "odd":
        raise Odd(1, 2)
    raise {"record": RecordError, "os": OSError, "bug": ZeroDivisionError}[kind](
        *[28, "no space", "f"][: 3 if kind == "os" else 1]
    )


def test_answer_comes_from_another_process():
    assert apart("this", divmod, 7, 2) == (3, 1)
    assert apart("this", os.getpid) != os.getpid()


@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [
        ("record", RecordError, "28"),
        ("os", OSError, "no space"),
        ("odd", RuntimeError, "Odd: 1"),
        (
            "killed",
            KdbenchError,
            r"this: its process ended without an answer \(SIGKILL, perhaps for want of memory\)",
        ),
        ("left", KdbenchError, r"\(code 7\)"),
    ],
)
def test_failure_is_told_as_if_it_were_here(kind, error, text):
    with pytest.raises(error, match=text):
        apart("this", fail, kind)


def test_bug_tells_its_traceback():
    with pytest.raises(RuntimeError, match=r"in fail\n(.*\n)*ZeroDivisionError: 28"):
        apart("this", fail, "bug")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_the_parent_leaves(tmp_path, how):
    (tmp_path / "parent.py").write_text(PARENT)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    said = tmp_path / "pid"
    line = [sys.executable, str(tmp_path / "parent.py"), str(said)]
    parent = subprocess.Popen(line, env=env, stderr=subprocess.PIPE, text=True)
    while not said.exists():
        assert parent.poll() is None, parent.stderr.read()
        time.sleep(0.01)
    parent.send_signal(how)
    assert parent.wait(30) == (130 if how == signal.SIGINT else -how)
    assert (
        "Traceback" not in parent.stderr.read()
    )  # it ends when the other process has, which has it open too
    assert _born(int(said.read_text())) is None
