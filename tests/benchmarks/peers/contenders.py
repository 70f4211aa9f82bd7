"""Who takes part."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

#: Whom the ratios of a table refer to.
REFERENCE = "torchdistill"


@dataclass(frozen=True)
class Contender:
    """A way to train the cell.

    Attributes:
        function: ``module:function`` in this package, called with (spec, folder, clock).
        package: what must be installed, apart from kdbench's own requirements.
        recipe: changes of kdbench's recipe; what it changes is not the same arithmetic as the others'.
    """

    summary: str
    function: str
    package: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def missing(self) -> str | None:
        """Why it cannot take part here, or None."""
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            return "not installed: pip install 'kdbench[peers]'"
        if self.recipe.get("precision") == "bf16" and not bf16_in_hardware():
            return "this processor has no bf16"
        return None

    def load(self) -> Callable[..., Any]:
        """Import and return its function."""
        module, name = self.function.split(":")
        train: Callable[..., Any] = getattr(import_module(f".{module}", __package__), name)
        if not self.recipe:
            return train
        return lambda *given: train(*given, recipe=self.recipe)


CONTENDERS = {
    "kdbench": Contender("kdbench, fp32", "kdbench_cell:train"),
    "plain": Contender("a loop as papers' repositories have it", "plain:train"),
    "torchdistill": Contender(
        "torchdistill's DistillationBox", "torchdistill_box:train", package="torchdistill"
    ),
    "timm": Contender("timm's LogitDistillationTask", "timm_task:train"),
    "kdbench-bf16": Contender(
        "kdbench, bf16 and channels_last",
        "kdbench_cell:train",
        recipe={"precision": "bf16", "channels_last": True},
    ),
}
#: Trains the teacher for comparisons of accuracy; no contender.
TEACHER = Contender("the teacher alone", "kdbench_cell:train_teacher")


def bf16_in_hardware() -> bool:
    """Whether the device that would train multiplies bf16 numbers itself: a GPU, or a CPU with AVX-512 or AMX."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpu = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(cpu.get("avx512_bf16") or cpu.get("amx_bf16"))
