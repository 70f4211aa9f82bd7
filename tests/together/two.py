"""Train one cell on several processes of gloo, without the launcher."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist


def main(rank: int, size: int, store: str, folders: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    from kdbench.engine.cell import CellTrainer
    from kdbench.engine.together.group import Group
    from kdbench.engine.together.sharing import Together
    from kdbench.registry import Registry

    registry = Registry.load()
    for folder in folders:
        CellTrainer(Path(folder), registry, sharing=Together(Group(rank, size))).run()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
