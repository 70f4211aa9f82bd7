"""The log of a process: bounded, whoever prints, and never a reason to fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from kdbench.launch.log import HEAD, LIMIT, TAIL


def run(log: Path, code: str) -> int:
    head = "import os, sys\nfrom pathlib import Path\nfrom kdbench.launch.log import *\n"
    text = f"{head}redirect(Path({str(log)!r})); keep_bounded()\n{code}\nflush(); bound()\n"
    return subprocess.run([sys.executable, "-c", text], check=False).returncode


def test_what_is_short_is_kept_whole(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert run(log, "print('one'); os.write(2, b'two\\n'); print('three \\udc80', file=sys.stderr)") == 0
    assert log.read_text() == "one\ntwo\nthree \\udc80\n"
    assert run(log, "print('four')") == 0
    assert log.read_text().endswith("three \\udc80\nfour\n")


def test_what_is_long_keeps_its_ends(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert run(log, "for n in range(40): print(n, 'x' * (1 << 20))\nprint('last words')") == 0
    data = log.read_bytes()
    assert len(data) <= LIMIT + HEAD
    assert data.startswith(b"0 xxx")
    assert data.endswith(b"x\nlast words\n")
    assert data.count(b"what was printed here is left out") == 1


def test_one_print_and_what_python_does_not_see(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert (
        run(
            log, f"print('y' * {2 * LIMIT})\nfor n in range(2 * {LIMIT} >> 20): os.write(1, b'z' * (1 << 20))"
        )
        == 0
    )
    assert log.stat().st_size < HEAD + TAIL + 100


def test_a_full_disk_and_lost_streams_fail_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\nprint('x' * 100)\nprint('more')"
    assert run(log, full) == 0
    assert log.stat().st_size == 10
    assert run(log, "sys.stdout = sys.stderr = None") == 0
