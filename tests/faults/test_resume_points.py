"""Cut in a phase and between two: methods with banks, generators and several optimizers, on both data paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ledger
import pytest
from fault_cases import EVERY
from gang_world import World, outcome

from kdbench.engine.cell import CellTrainer, Hooks
from kdbench.engine.gang import Gang
from kdbench.engine.progress import Interrupted

#: A bank; students and optimizers of their own; a generator without data; two phases; routes of a teacher.
METHODS = ["crd", "ffl", "dfad", "ab", "mlkd"]
FEW = {("crd", "resident"), ("ffl", "resident"), ("dfad", "resident")}
STORAGE = {
    "name": "digits",
    "label": "digits",
    "limit_train": 80,
    "limit_test": 40,
    "revision": "digits-v1",
}


class Cut(Hooks):
    """Stops a cell after so many steps of this life."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def should_stop(self) -> bool:
        self._left -= 1
        return self._left < 0


def settled(name: str, faults: int, fault: str, same: bool) -> None:
    found = ledger.Losses(differing=[] if same else [name])
    cuts = [{"fault": fault, "moment": f"{name}, cut {n + 1}"} for n in range(faults)]
    ledger.note(cuts, run=f"{fault}: {name}", **ledger.noted(found))
    assert same


SLOW = pytest.mark.faults
ALONE = [
    pytest.param(name, storage, marks=() if (name, storage) in FEW else SLOW)
    for name in METHODS
    for storage in ("resident", "stream")
]


@pytest.mark.parametrize(("name", "storage"), ALONE)
def test_cut_at_every_step(world: World, tmp_path: Path, name: str, storage: str) -> None:
    over = {"dataset": {**STORAGE, "storage": storage}}
    folder = world.folder(tmp_path, name, **over)
    cuts = 0
    for _ in range(100):
        # in small runs each life is of some steps, so that it ends within a phase and between two; a life over a
        # stream begins with its readers, which takes longer than a step
        fine = 0 if storage == "resident" else 1
        hooks = Cut(fine if EVERY or name == "dfad" else 2 + cuts % 3)
        try:
            CellTrainer(folder, world.registry, hooks).run()
        except Interrupted:
            cuts += 1
            continue
        break
    assert cuts
    same = outcome(folder) == world.alone(name, **over)
    settled(name, cuts, f"cut of a step, {storage} images", same)


@SLOW
@pytest.mark.parametrize("storage", ["resident", "stream"])
def test_gang_cut_at_every_step(world: World, tmp_path: Path, storage: str) -> None:
    """All are stopped at once, as they are by SIGTERM; in the next life they begin in another order."""
    over = {"dataset": {**STORAGE, "storage": storage}}
    names = ["crd", "dfad", "ab", "kd"]
    folders = {name: world.folder(tmp_path, name, **over) for name in names}
    left, cuts = list(names), 0
    while left:
        assert cuts < 200
        ended: dict[Path, Any] = {}

        def note(folder: Path, error: Any, ended: dict[Path, Any] = ended) -> bool:
            ended[folder] = error
            return True

        hooks = Cut((2 if EVERY else 4) * len(left))
        Gang([folders[n] for n in left], world.registry, lambda folder, hooks=hooks: hooks, note).run()
        assert all(e is None or isinstance(e, Interrupted) for e in ended.values())
        cuts += sum(isinstance(e, Interrupted) for e in ended.values())
        left = [n for n in reversed(left) if ended.get(folders[n], "not begun") is not None]
    assert cuts >= 3
    for name in names:
        same = outcome(folders[name]) == world.alone(name, **over)
        settled(name, cuts if name == names[0] else 0, f"cut of a gang, {storage} images", same)
