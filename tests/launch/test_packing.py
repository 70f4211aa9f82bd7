"""Slots of a GPU from what is seen of its cells; no GPU is needed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kdbench.launch.packing import MOST, Packing


class Machine:
    """GPUs on which cells run epochs at speeds that a test gives."""

    def __init__(
        self,
        packing: Packing,
        speed: Callable[[int], float],
        *,
        gpus: int = 1,
        memory_mb: float | None = 1000.0,
        total_mb: float = 80_000.0,
        busy: float | None = None,
    ) -> None:
        self.packing, self.speed, self.gpus = packing, speed, gpus
        self.memory, self.total, self.busy = memory_mb, total_mb, busy
        self.now, self.running, self.count = 0.0, {}, 0
        self.seen: list[int] = []

    def run(self, rounds: int = 40) -> list[int]:
        """Let each cell of a round train an epoch; returns the numbers of slots, each once."""
        for _ in range(rounds):
            room = self.packing.slots * self.gpus
            while len(self.running) < room:
                self.start(len(self.running) % self.gpus)
            if not self.seen or self.seen[-1] != self.packing.slots:
                self.seen.append(self.packing.slots)
            self.epoch()
            while len(self.running) > self.packing.slots * self.gpus:
                self.end()
        return self.seen

    def start(self, gpu: int) -> None:
        self.count += 1
        self.running[f"c{self.count}"] = gpu
        self.packing.started(f"c{self.count}", gpu)

    def end(self) -> None:
        cell = list(self.running)[-1]
        del self.running[cell]
        self.packing.ended(cell)

    def epoch(self) -> None:
        together = len(self.running) // self.gpus or 1
        self.now += 1000.0 / self.speed(together)
        free = self.total - together * (self.memory or 0.0)
        gpu = {"memory_mb": self.memory, "free_mb": free, "busy": self.busy}
        for cell in list(self.running):
            row = {"images_per_s": 100.0, "train_s": 10.0, "steps": 10}
            self.packing.see({"event": "epoch", "cell_id": cell, "row": row, "gpu": gpu}, self.now)


def thin(together: int) -> float:
    """Cells that share a GPU without noticing each other."""
    return 100.0


def thick(together: int) -> float:
    """Cells that fill the GPU alone."""
    return 100.0 / together


def test_a_number_is_taken_as_it_is() -> None:
    packing = Packing(3)
    assert Machine(packing, thick).run() == [3]
    assert (packing.settled, packing.why) == (True, "as asked")


def test_grows_step_by_step_up_to_the_most() -> None:
    packing = Packing()
    assert Machine(packing, thin).run() == [1, 2, 3, 4]
    assert packing.slots == MOST
    assert packing.why == "the most that is tried"


@pytest.mark.parametrize("gpus", [1, 2])
def test_a_cell_that_brings_nothing_is_taken_back(gpus: int) -> None:
    packing = Packing()
    assert Machine(packing, thick, gpus=gpus).run() == [1, 2, 1]
    assert packing.settled
    assert packing.why == "2 together do 1.00 times as much as 1"


def test_grows_as_long_as_the_throughput_rises() -> None:
    speeds = {1: 100.0, 2: 80.0, 3: 55.0, 4: 40.0}  # together 100, 160, 165
    packing = Packing()
    assert Machine(packing, speeds.__getitem__).run() == [1, 2, 3, 2]
    assert packing.why == "3 together do 1.03 times as much as 2"


def test_memory_bounds_it() -> None:
    packing = Packing()
    assert Machine(packing, thin, memory_mb=30_000.0).run() == [1, 2]
    assert packing.why == "another cell takes 30000 MiB, and 20000 are free"


def test_a_cell_that_fits_only_just_is_not_tried() -> None:
    assert Machine(Packing(), thin, memory_mb=39_000.0).run() == [1]


def test_unknown_memory_is_no_free_memory() -> None:
    packing = Packing()
    assert Machine(packing, thin, memory_mb=None).run() == [1]
    assert packing.why == "the memory of a cell is not known"


@pytest.mark.parametrize(("busy", "expected"), [(None, 4), (60.0, 4), (99.0, 1)])
def test_a_busy_gpu_gets_no_further_cell(busy: float | None, expected: int) -> None:
    packing = Packing()
    Machine(packing, thin, busy=busy).run()
    assert packing.slots == expected


def test_cells_are_judged_only_in_full_company() -> None:
    """Epochs beside a cell that has gone, or has just come, say nothing of this number of slots."""
    packing = Packing()
    machine = Machine(packing, thin)
    machine.start(0)
    for _ in range(2):
        machine.epoch()
    machine.end()
    machine.start(0)
    for _ in range(2):
        machine.epoch()
    assert packing.slots == 1
    machine.epoch()
    assert packing.slots == 2


def test_a_cell_that_starved_ends_the_attempts() -> None:
    packing = Packing()
    machine = Machine(packing, thin)
    machine.run(4)
    assert packing.slots == 2
    packing.starved()
    assert (packing.slots, packing.settled) == (1, True)
    machine.run(20)
    assert packing.slots == 1


def test_the_wall_clock_counts_and_not_the_cells_own() -> None:
    """Cells of a gang take turns: by their own clocks they are as fast as alone."""
    packing = Packing()
    machine = Machine(packing, thick)  # rows always say 100 images per second
    machine.run()
    assert packing.slots == 1
