"""Cells in a gang against the same cells one after another in one process. Goals: see `PAIRS` and `MIXED`.

``pytest --benchmark-only tests/benchmarks/test_bench_gang.py [--benchmark-json FILE]``; under 15 minutes on one
core. Images are synthetic, 32x32, 100 classes; batch 64, fp32, one thread; teachers have random weights: what
they say does not matter to how long it takes. Both sides run the engine as a worker does, and what is compared
are steps of training, those of setting up and of measuring aside: a real cell has thousands of steps. The first
step of each cell warms up. Weights must come out equal bit for bit, or the comparison is none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peers.contenders import CONTENDERS
from peers.rounds import measure
from peers.spec import PAIRS as PEERS
from peers.spec import spec_of
from torch.utils._pytree import tree_leaves

from kdbench.engine.cell import CellTrainer, Hooks
from kdbench.engine.checkpoint import load_state
from kdbench.engine.gang import Gang, Member
from kdbench.engine.progress import Interrupted
from kdbench.registry import Registry
from kdbench.results.schema import TeacherRef

BATCH, STEPS, ROUNDS = 64, 3, 2
#: Eight that read the teacher's logits of one view only.
LOGITS = ("kd", "kd temperature=8", "dkd", "dist", "ctkd", "wsld", "kd-ls", "timm-logit")
MIXED = ("vanilla", "kd", "ab", "ofd", "fitnet", "at", "sp", "crd")
#: How many times as long torchdistill must take for the eight cells, in fp32, as the gang in bf16.
BESIDE = 3.5
#: teacher, student, methods, goal
PAIRS = {
    "logits wrn_40_2": ("wrn_40_2", "wrn_16_2", LOGITS, 1.6),
    "logits resnet32x4": ("resnet32x4", "resnet8x4", LOGITS, 2.0),
    "mixed wrn_40_2": ("wrn_40_2", "wrn_16_2", MIXED, 1.3),
}


@pytest.fixture(autouse=True)
def one_thread():
    threads, before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def random_teachers(monkeypatch):
    """Leave teachers as they were made: their weights are seeded, so they are equal in all cells."""

    def load(self: CellTrainer, k: int, net: torch.nn.Module) -> None:
        source = self.cell.teachers[k]
        self.teacher_refs.append(
            TeacherRef(source="pretrained", ref=source.ref, architecture=source.architecture.name)
        )

    monkeypatch.setattr(CellTrainer, "_load_teacher", load)


def write_cell(where: Path, variant: str, teacher: str, student: str, recipe: dict[str, Any]) -> Path:
    steps = STEPS + 1
    method, *changes = variant.split()
    content = {
        "cell_id": hashlib.sha256(variant.encode()).hexdigest(),
        "protocol": 1,
        "identity": {},
        "labels": {
            "matrix": "gang",
            "task": "classification",
            "dataset": "synthetic",
            "student": student,
            "method": method,
            "variant": variant,
            "recipe": "r",
            "seed": 0,
        },
        "task": "classification",
        "method": method,
        "params": {key: float(value) for key, value in (c.split("=") for c in changes)},
        "student": {"name": student},
        "teachers": []
        if method == "vanilla"
        else [{"architecture": {"name": teacher}, "source": "checkpoint", "ref": "none"}],
        "dataset": {
            "name": "synthetic",
            "label": "synthetic",
            "args": {"num_classes": 100, "image_size": 32, "n_train": steps * BATCH, "n_test": 100},
            "storage": "resident",
            "revision": f"synthetic-v1-k100-s32-n{steps * BATCH}-t100-r0",
        },
        "recipe": {
            "epochs": 4,
            "batch_size": BATCH,
            "val_fraction": 0.0,
            "optimizer": {"name": "momentum", "lr": 0.05},
            **recipe,
        },
        "seed": 0,
        "threads": 1,
    }
    folder = where / content["cell_id"]
    folder.mkdir(parents=True)
    (folder / "cell.json").write_text(json.dumps(content))
    return folder


class Enough(Hooks):
    """Stops the cell, which then saves its state, after its steps."""

    trainer: CellTrainer

    def should_stop(self) -> bool:
        loop = self.trainer.loop
        return loop is not None and loop.at.global_step > STEPS


class Meter:
    """Adds up the seconds of the turns in which a cell takes a step that counts."""

    def __init__(self, timer: Callable[[], float]) -> None:
        self.seconds = 0.0
        self.turns = 0
        self._timer = timer

    def __call__(self, trainer: CellTrainer, turn: Callable[[], Any]) -> Any:
        loop = trainer.loop
        counts = loop is not None and loop.at.global_step > 0
        began = self._timer()
        try:
            return turn()
        finally:
            if counts:
                self.seconds += self._timer() - began
                self.turns += 1


class MeteredGang(Gang):
    meter: Meter

    def _begin(self, folder: Path) -> Member | None:
        member = super()._begin(folder)
        assert member is not None
        member.hooks.trainer = member.trainer  # type: ignore[attr-defined]
        return member

    def _turn(self, member: Member) -> None:
        self.meter(member.trainer, lambda: super(MeteredGang, self)._turn(member))


def run_alone(folders: list[Path], registry: Registry) -> Meter:
    meter = Meter(time.process_time)
    for folder in folders:
        hooks = Enough()
        trainer = hooks.trainer = CellTrainer(folder, registry, hooks)
        turns = trainer.turns()
        with contextlib.suppress(Interrupted):
            while True:
                meter(trainer, lambda turns=turns: next(turns))
    return meter


def run_gang(
    folders: list[Path], registry: Registry, timer: Callable[[], float] = time.process_time
) -> Meter:
    ended: list[BaseException | None] = []

    def end(folder: Path, error: BaseException | None) -> bool:
        ended.append(error)
        return True

    gang = MeteredGang(folders, registry, lambda folder: Enough(), end)
    gang.meter = Meter(timer)
    assert gang.run() == []
    assert all(isinstance(e, Interrupted) for e in ended), ended
    return gang.meter


def weights(folder: Path) -> list[torch.Tensor]:
    students = load_state(folder / "checkpoint.safetensors")["students"]
    return [t for t in tree_leaves(students) if isinstance(t, torch.Tensor)]


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.usefixtures("random_teachers")
@pytest.mark.parametrize("pair", PAIRS)
def test_gang(benchmark, tmp_path, pair):
    teacher, student, methods, goal = PAIRS[pair]
    registry = Registry.load()
    alone: list[Meter] = []
    shared: list[Meter] = []

    def folders(side: str) -> list[Path]:
        where = tmp_path / f"{side}-{len(alone)}"
        return [write_cell(where, m, teacher, student, {}) for m in methods]

    def before_each_round() -> None:
        made = folders("alone")
        alone.append(run_alone(made, registry))
        alone_folders[:] = made

    def gang() -> None:
        made = folders("gang")
        shared.append(run_gang(made, registry))
        for one, other in zip(alone_folders, made, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True)), one

    alone_folders: list[Path] = []
    benchmark.pedantic(gang, setup=before_each_round, rounds=ROUNDS)
    assert {m.turns for m in (*alone, *shared)} == {len(methods) * STEPS}
    ratios = [a.seconds / g.seconds for a, g in zip(alone, shared, strict=True)]
    ratio = statistics.median(ratios)
    per_step = 1e3 / (len(methods) * STEPS)
    benchmark.extra_info |= {
        "ratio": round(ratio, 3),
        "goal": goal,
        "methods": list(methods),
        "alone_step_ms": round(per_step * statistics.median(m.seconds for m in alone), 1),
        "gang_step_ms": round(per_step * statistics.median(m.seconds for m in shared), 1),
    }
    print(f"\n{pair}: one after another / gang = {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    assert ratio >= goal


@pytest.mark.skipif(
    CONTENDERS["torchdistill"].missing is not None or CONTENDERS["kdbench-bf16"].missing is not None,
    reason="torchdistill is not installed, or the processor has no bf16",
)
@pytest.mark.usefixtures("random_teachers")
@pytest.mark.parametrize("pair", ["logits wrn_40_2", "logits resnet32x4"])
def test_bf16_beside_torchdistill(benchmark, tmp_path, pair):
    """Eight cells in a gang, in bf16, against torchdistill's step in fp32, eight times. By the wall clock."""
    teacher, student, methods, _ = PAIRS[pair]
    registry = Registry.load()
    recipe = {"precision": "bf16", "channels_last": True}
    spec = spec_of(PEERS[f"{teacher}->{student}"], images=4 * BATCH, epochs=3)
    theirs: list[float] = []
    shared: list[Meter] = []

    def before_each_round() -> None:
        where = tmp_path / f"peer-{len(theirs)}"
        theirs.append(measure(spec, ["torchdistill"], where, seeds=[0])["torchdistill"].step_s)

    def gang() -> None:
        where = tmp_path / f"gang-{len(shared)}"
        made = [write_cell(where, m, teacher, student, recipe) for m in methods]
        shared.append(run_gang(made, registry, time.perf_counter))

    benchmark.pedantic(gang, setup=before_each_round, rounds=ROUNDS)
    ours = [m.seconds / m.turns for m in shared]
    ratios = [peer / own for peer, own in zip(theirs, ours, strict=True)]
    benchmark.extra_info |= {
        "ratio": round(statistics.median(ratios), 3),
        "goal": BESIDE,
        "methods": list(methods),
        "torchdistill_step_ms": round(1e3 * statistics.median(theirs), 1),
        "gang_step_ms": round(1e3 * statistics.median(ours), 1),
    }
    print(f"\n{pair}: torchdistill / gang in bf16 = {', '.join(f'{r:.2f}' for r in ratios)}")
    assert statistics.median(ratios) >= BESIDE
