"""One contender trains one cell in this process: ``python -m peers.process FOLDER CONTENDER``.

The folder has the cell and the first weights; ``result.json`` is left there, and the trained weights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .clock import Clock, own_peak_mb
from .contenders import CONTENDERS, TEACHER, Contender
from .material import SPEC
from .spec import Spec

RESULT, TRAINED = "result.json", "trained.safetensors"


def main(folder: Path, name: str) -> None:
    """Train, and write what was measured."""
    spec = Spec.model_validate_json((folder / SPEC).read_text())
    torch.set_num_threads(spec.threads)
    if spec.device != "cpu":
        torch.backends.cudnn.benchmark = True  # as the peers' own scripts have it; kdbench sets its own
    contender: Contender = TEACHER if name == "teacher" else CONTENDERS[name]
    with Clock(spec.device) as clock:
        outcome = contender.load()(spec, folder, clock)
    result: dict[str, Any] = {
        "epochs": clock.times(),
        "losses": outcome.losses,
        "top1": outcome.top1,
        "peak_mb": own_peak_mb(spec.device),
        "loaders_mb": clock.loaders_mb,
        "others": clock.others,
        "threads": torch.get_num_threads(),
    }
    save_file({key: value.contiguous() for key, value in outcome.weights.items()}, folder / TRAINED)
    (folder / RESULT).write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
