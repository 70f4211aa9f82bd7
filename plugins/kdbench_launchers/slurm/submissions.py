"""The job arrays of a run folder: what was submitted, how far it is, and what was told of it."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdbench.api import KdbenchError
from kdbench_launchers.node import endings, read_events


@dataclass
class Submission:
    """One job array: its name in Slurm, its id (None: perhaps never submitted) and the cells of each task.

    Attributes:
        told: cells of which nothing more is to come from this submission.
    """

    folder: Path
    groups: list[list[str]]
    job_id: str | None = None
    told: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def open(self) -> bool:
        """Whether there is anything left to tell."""
        return any(cell not in self.told for group in self.groups for cell in group)

    def events(self, task: int) -> list[dict[str, Any]]:
        """Return what a task noted."""
        return read_events(self.events_path(task))

    def events_path(self, task: int) -> Path:
        """Return the file in which a task notes its events."""
        return self.folder / f"task-{task}.jsonl"

    def task_id(self, task: int) -> str:
        """Return a task as Slurm names it."""
        return f"{self.job_id}_{task}" if len(self.groups) > 1 else f"{self.job_id}"

    def save(self) -> None:
        """Write what is known; whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "submission.json"
        fresh = path.with_suffix(".new")
        with fresh.open("w", encoding="utf-8") as f:
            json.dump({"job_id": self.job_id, "groups": self.groups}, f)
            f.flush()
            os.fsync(f.fileno())
        fresh.replace(path)

    def tell(self, cells: Iterable[str]) -> None:
        """Note that nothing more is to come of these cells."""
        new = [cell for cell in cells if cell not in self.told]
        if new:
            with (self.folder / "told.txt").open("a", encoding="utf-8") as f:
                f.writelines(cell + "\n" for cell in new)
            self.told.update(new)
        if not self.open:
            (self.folder / "closed").touch()


def home(run: Path) -> Path:
    """Return where a run folder keeps its submissions."""
    return run / "slurm"


def fresh(run: Path, groups: Sequence[Sequence[str]]) -> Submission:
    """Return a submission under a name that no other has, and note that it is about to be made."""
    name = f"kdbench-{run.name}-{secrets.token_hex(4)}"
    submission = Submission(home(run) / name, [list(group) for group in groups])
    submission.save()
    return submission


def open_submissions(run: Path) -> list[Submission]:
    """Return the submissions of which there is still something to tell, in the order of their making.

    Raises KdbenchError for one that the file system does not give: its cells would be submitted twice.
    """
    found = []
    for path in home(run).glob("*/submission.json"):
        if (path.parent / "closed").exists():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            told = path.parent / "told.txt"
            submission = Submission(
                path.parent,
                content["groups"],
                content["job_id"],
                set(told.read_text(encoding="utf-8").split()) if told.exists() else set(),
            )
            found.append((path.stat().st_mtime, submission))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            continue
        except OSError as e:
            text = f"{path}: {e.strerror}, so nobody knows which jobs run; try again later"
            raise KdbenchError(text) from e
    return [submission for _, submission in sorted(found, key=lambda pair: pair[0])]


def unreported(run: Path) -> bool:
    """Return whether cells finished that no parent process took note of."""
    for submission in open_submissions(run):
        for task in range(len(submission.groups)):
            if set(endings(submission.events(task))) - submission.told:
                return True
    return False
