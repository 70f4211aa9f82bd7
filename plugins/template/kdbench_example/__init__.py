"""An example plug-in for kdbench. This module lists its methods and imports no torch."""

from __future__ import annotations

from kdbench.hooks import MethodEntry, Needs, hookimpl


@hookimpl
def kdbench_methods() -> list[MethodEntry]:
    """Return the methods of this plug-in."""
    return [
        MethodEntry(
            name="centred-mse",
            target="kdbench_example.centred_mse:CentredMSE",
            summary="Squared error of centred logits: softened targets in the limit of high temperature.",
            paper="Hinton, Vinyals, Dean, NeurIPS workshop 2014, arXiv:1503.02531, section 2.1",
            version="1",
            tags=("logits",),
            needs=Needs(capabilities=frozenset({"distillable", "supervised"})),
        )
    ]
