"""A matrix whose cells wait where a test wants them to, on a Ray that knows their methods."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from commands import Started, alive, records, wait_until
from fake_distributions import Distributions
from matrices import STUDENT, TEACHER, write_matrix
from ray_cluster import RayCluster

ENTRIES = """
from kdbench.hooks import MethodEntry, Needs, hookimpl


@hookimpl
def kdbench_methods():
    alone = Needs(teachers=0)
    return [
        MethodEntry(name="master", target="held_in_ray:Master", version="1", needs=alone),
        MethodEntry(name="pupil", target="held_in_ray:Pupil", version="1"),
        MethodEntry(name="crasher", target="held_in_ray:Crasher", version="1"),
    ]
"""
#: In the second epoch a cell waits while there is a file `hold-NAME`, and says so with `held-NAME-PROCESS`.
#: When it is asked to save it says so with `asked-NAME`.
METHODS = """
import os
import signal
import time
from pathlib import Path

from kdbench.api import Method, MethodParams, Needs

gate = Path(os.environ["GATE"])


class Master(Method):
    needs = Needs(teachers=0)
    name = "master"

    def loss(self, S, T, batch, run):
        while run.epoch and (gate / f"hold-{self.name}").exists():
            held = gate / f"held-{self.name}-{os.getpid()}"
            if not held.exists():
                self.tell_when_asked()
                held.touch()
            time.sleep(0.02)
        return {"task": run.task.loss(S, batch)}

    def tell_when_asked(self):
        save = signal.getsignal(signal.SIGTERM)

        def asked(*arguments):
            (gate / f"asked-{self.name}").touch()
            save(*arguments)

        signal.signal(signal.SIGTERM, asked)


class Pupil(Master):
    needs = Needs()
    name = "pupil"


class Crasher(Master):
    needs = Needs()
    name = "crasher"

    def loss(self, S, T, batch, run):
        print("last words", flush=True)
        os._exit(7)
"""
COMMAND = ("--launcher", "ray", "--workers", 2)


@contextmanager
def held_cluster(folder: Path) -> Iterator[RayCluster]:
    """A Ray with a head and no other node."""
    site = Distributions(folder / "packages")
    (site.path / "held_in_ray.py").write_text(METHODS)
    site.add("held", ENTRIES)
    # in front of the packages that the tests themselves run with
    paths = [str(site.path), *filter(None, [os.environ.get("PYTHONPATH")])]
    ray = RayCluster(PYTHONPATH=os.pathsep.join(paths), GATE=str(folder))
    try:
        ray.start()
        yield ray
    finally:
        ray.close()


class Held:
    """Cells that wait in their second epoch until they are let go."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder, self.run = folder, folder / "runs" / "held"
        self._seen: list[Path] = []
        for name in names:
            (folder / f"hold-{name}").touch()

    def matrix(self, *methods: str, **options: Any) -> Path:
        """Write the matrix and return its path."""
        return write_matrix(
            self.folder / "held.yaml",
            name="held",
            methods=list(methods),
            pairs=[{"teacher": TEACHER, "student": STUDENT}],
            teacher_method="master",
            launcher_options={"ray": {"poll_s": 0.1, **options}},
        )

    def wait(self, name: str, command: Started) -> int:
        """Wait for a cell to be held in a process that was not seen yet; return that process."""

        def new() -> list[Path]:
            return [path for path in self.folder.glob(f"held-{name}-*") if path not in self._seen]

        wait_until(lambda: new() or not alive(command.pid), name)
        assert alive(command.pid), command.stderr
        self._seen += new()
        return int(self._seen[-1].name.rpartition("-")[2])

    def let_go(self, name: str) -> None:
        """Let a cell go on, now and in later tries."""
        (self.folder / f"hold-{name}").unlink()


def results(run: Path) -> dict[str, Any]:
    """Return what must not depend on what went wrong."""
    done = {cell: r for cell, r in records(run).items() if r["status"] == "done"}
    return {c: (r["weights_sha256"], r["deployables"], r["cost"]["steps"]) for c, r in done.items()}
