"""A short part of the fuzzing in each run of the tests; ``python -m tests.fuzz`` is the long one."""

import itertools
import os
import subprocess
import sys

import pytest

from kdbench.errors import KdbenchError, MatrixError

from . import engine
from .boards import look
from .engine import Target
from .targets import TARGETS

#: Inputs of each target here: those of a tree or a board take a tenth of a second, the others a few milliseconds.
#: Of records, which are signed, few mutants are good.
COUNTS = {"board": 25, "image": 40, "matrix": 60, "image-tree": 40, "record": 1000}


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_inputs_are_read_or_refused(target):
    outcome = engine.run(target, COUNTS.get(target.name, 150), seed=20)
    assert [problem for _, problem in outcome.found] == []
    assert outcome.refused
    # mutants that are all refused would test one line of each parser
    assert outcome.good


def broken(read, **kw):
    def take(data, folder):
        read(folder)

    outcome = engine.run(Target("x", lambda rng: rng.randbytes(3), take, **kw), 2, seed=0)
    return [problem for _, problem in outcome.found]


def fail(error):
    raise error


def test_the_engine_finds_what_it_looks_for(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    cases = {
        "ValueError": lambda folder: fail(ValueError("x")),
        "more than one line": lambda folder: fail(MatrixError("a\nb")),
        "an error without": lambda folder: fail(KdbenchError("")),
        "Escape: open": lambda folder: elsewhere.write_bytes(b""),
        "Escape: os.mkdir": lambda folder: elsewhere.mkdir(),
        "Escape: os.rename": lambda folder: os.rename(folder, elsewhere),
        "Escape: subprocess.Popen": lambda folder: subprocess.run([sys.executable, "-c", ""], check=False),
        "Escape: os.system": lambda folder: os.system("true"),
    }
    for problem, read in cases.items():
        found = broken(read)
        assert found, problem
        assert all(text.startswith(problem) for text in found), (problem, found)
        assert not elsewhere.exists()
    assert broken(lambda folder: fail(MatrixError("a\nb")), lines=True) == []
    assert broken(lambda folder: (folder / "inside").write_bytes(b"x")) == []
    hung = broken(lambda folder: all(True for _ in itertools.repeat(0)), deadline_s=0.05)
    assert hung
    assert all(text.startswith("Hang") for text in hung)


def inputs(target, seed):
    found = []
    engine.run(Target(target.name, target.make, lambda data, folder: found.append(data)), 5, seed)
    return found


def test_equal_seeds_give_equal_inputs():
    for target in TARGETS:
        first, again, other = (inputs(target, seed) for seed in (1, 1, 2))
        assert first == again != other


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.html", "<p><script>kdx()</script>"),
        ("a.html", '<a href="javascript:kdx()">'),
        ("a.html", '<p onclick="x">'),
        ("a.svg", "<!-- kdx -->"),
        ("a.md", "[a](javascript:kdx())"),
        ("a.md", "a\u202eb"),
        ("a.csv", "a,=kdx()\n"),
        ("a.csv", 'a,"-kdx"\n'),
    ],
)
def test_the_boards_oracle_finds_what_it_looks_for(name, content):
    with pytest.raises(AssertionError):
        look(name, content.encode())
    look("a.csv", b"a,-1.5\n")
