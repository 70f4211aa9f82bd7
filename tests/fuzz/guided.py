"""Fuzzing guided by coverage, with atheris: ``python -m tests.fuzz --engine atheris`` starts this per target.

atheris' library ends its process, so each target has one of its own: ``python -m tests.fuzz.guided TARGET ...``.
"""

from __future__ import annotations

import importlib.util
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).resolve().parent
#: What is instrumented: coverage of anything else (torch above all) guides nobody and takes minutes.
_OURS = ["kdbench", "kdbench_datasets", "yaml", "safetensors"]


def available() -> bool:
    """Whether atheris is installed: it has wheels for few versions of Python, and none for some systems."""
    return importlib.util.find_spec("atheris") is not None


def run_guided(name: str, runs: int, seed: int, keep: Path) -> tuple[int, str]:
    """Run a target in a process of its own; return how many inputs it read and what went wrong, or ``""``."""
    keep.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.fuzz.guided", name, f"-runs={runs}", f"-seed={seed + 1}"]
    command += ["-timeout=20", "-rss_limit_mb=4096", f"-artifact_prefix={keep.resolve()}/{name}-"]
    got = subprocess.run(command, cwd=_HERE.parents[1], capture_output=True, text=True, check=False)
    text = got.stdout + got.stderr
    done = re.findall(r"Done (\d+) runs", text)
    return max(map(int, done), default=0), "" if got.returncode == 0 and done else text[-3000:]


def main() -> None:
    """Feed one target for as long as libFuzzer's options say."""
    sys.path[:0] = [str(_HERE.parent), str(_HERE.parents[1] / "plugins")]
    import atheris

    with atheris.instrument_imports(include=_OURS):
        from tests.fuzz import engine
        from tests.fuzz.targets import TARGETS

    target = next(t for t in TARGETS if t.name == sys.argv[1])
    root = Path(tempfile.mkdtemp(prefix="kdbench-fuzz-"))

    def one(data: bytes) -> None:
        outcome = engine.Outcome(target.name)
        engine.try_one(target, data, outcome, root)
        if outcome.found:
            raise AssertionError(outcome.found[0][1])

    corpus = Path(tempfile.mkdtemp(prefix="kdbench-corpus-"))
    rng = random.Random(0)
    for k in range(50):
        (corpus / str(k)).write_bytes(target.make(rng))
    atheris.Setup([sys.argv[0], *sys.argv[2:], str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
