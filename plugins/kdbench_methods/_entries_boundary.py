"""Entries of the methods about decision boundaries."""

from __future__ import annotations

from kdbench.hooks import MethodEntry, Needs

METHODS = (
    MethodEntry(
        name="bss",
        target="kdbench_methods.bss:BSS",
        summary="Boundary supporting samples: images moved to the teacher's decision boundary as further data.",
        paper="Heo, Lee, Yun, Choi, AAAI 2019, arXiv:1805.05532",
        version="1",
        tags=("logits", "adversarial"),
        needs=Needs(min_batch=2, capabilities=frozenset({"distillable", "supervised"})),
    ),
)
