"""Steps of a cell that reads its teacher from a table, against the same cell with the teacher online.

Epoch by epoch in turn in one process, so that what else the machine does hits both alike. The fill is told apart:
it is paid once for all methods and seeds.
"""

import json
import statistics
import time

import pytest
import torch
from matrices import write_matrix

from kdbench.engine.cell import CellTrainer
from kdbench.engine.loop import Loop
from kdbench.engine.optim import build_optimizers
from kdbench.engine.phases import optimizers_of
from kdbench.launch.plan import Planner
from kdbench.matrix import load_matrix
from kdbench.registry import Registry
from kdbench.results.store import RunFolder

#: Pair, images of an epoch, epochs, and the least ratio: what the teacher leaves of a step says what can be won.
PAIRS = [
    ("timm:test_resnet", "timm:test_efficientnet", 640, 8, 1.1),
    ("resnet56", "resnet20", 256, 5, 1.2),
]
BATCH = 64


@pytest.fixture
def one_thread(monkeypatch, tmp_path):
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_loop(folder, registry, teacher, student, images, epochs, cache):
    """A kd cell whose teacher has random weights: what it says does not matter to how long it takes."""
    folder.mkdir()
    path = write_matrix(
        folder / "m.yaml",
        name="cache",
        datasets=[{"name": "digits", "limit_train": images, "limit_test": 64}],
        pairs=[{"teacher": teacher, "student": student}],
        recipe={
            "base": "quick",
            "epochs": epochs,
            "batch_size": BATCH,
            "val_fraction": 0.0,
            "schedule": {"name": "constant"},
            "augment": {"padding": 1},
            "teacher_cache": cache,
        },
    )
    plan = Planner(registry, load_matrix(str(path)), RunFolder(folder / "run"), ()).plan()
    cell = next(c for c in plan.cells if c.file.labels.role == "student")
    cell.folder.mkdir(parents=True)
    (cell.folder / "cell.json").write_text(json.dumps(cell.file.model_dump(mode="json")))
    trainer = CellTrainer(cell.folder, registry)
    trainer._load_teacher, trainer._describe_teachers = lambda k, net: None, lambda run: None
    run, method = trainer._setup()
    return trainer, run, Loop(run, method, cell.folder, evaluate=dict)


def epoch(loop, seconds):
    began = time.perf_counter()
    for batch in loop.run.task_data.streams["train"].epoch(len(seconds)):
        loop.run.batch = batch
        loop.method.step(batch, loop.run)
    seconds.append(time.perf_counter() - began)


@pytest.mark.parametrize(("teacher", "student", "images", "epochs", "least"), PAIRS)
def test_cached_against_online(benchmark, tmp_path, one_thread, teacher, student, images, epochs, least):
    registry = Registry.load()
    loops = {}
    for cache in ("off", "fp16"):
        made = make_loop(tmp_path / cache, registry, teacher, student, images, epochs, cache)
        loops[cache] = made
        run, loop = made[1:]
        phase = loop.phases[0]
        run.optimizers = build_optimizers(
            optimizers_of(phase, loop.method, run), run.recipe, epochs=epochs, steps_per_epoch=images // BATCH
        )
        loop._set_modes()
    seconds = {cache: [] for cache in loops}

    def train():
        for _ in range(epochs):
            for cache, (_, _, loop) in loops.items():
                epoch(loop, seconds[cache])

    benchmark.pedantic(train, rounds=1)
    cached = loops["fp16"][1]
    assert cached.answered == cached.taught == epochs * (images // BATCH)
    assert loops["off"][1].answered == 0
    ratios = [o / c for o, c in zip(seconds["off"], seconds["fp16"], strict=True)][1:]
    ratio = statistics.median(ratios)
    steps = images // BATCH
    benchmark.extra_info |= {
        "ratio": ratio,
        "online_step_ms": 1e3 * statistics.median(seconds["off"]) / steps,
        "cached_step_ms": 1e3 * statistics.median(seconds["fp16"]) / steps,
        "fill_s": loops["fp16"][0]._fill_s,
    }
    print(f"\n{teacher} -> {student}: online / cached {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    assert ratio > least
    for _, run, _ in loops.values():
        run.close()
