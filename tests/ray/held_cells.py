"""A matrix whose cells wait where a test wants them to, on a Ray that knows their methods."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from commands import Started, alive, wait_until
from held_methods import install
from matrices import STUDENT, TEACHER, write_matrix
from ray_cluster import RayCluster

COMMAND = ("--launcher", "ray", "--workers", 2)


@contextmanager
def held_cluster(folder: Path) -> Iterator[RayCluster]:
    """A Ray with a head and no other node."""
    ray = RayCluster(**install(folder / "packages"), GATE=str(folder))
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
