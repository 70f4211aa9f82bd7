"""The terms that ``Method.loss`` returns: which of them anything can learn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdbench.protocol.method import Method


@dataclass
class LossTerms:
    """What was seen of each term, by name."""

    #: terms that had a gradient at least once; a term may be switched off for a while
    learns: set[str] = field(default_factory=set)
    values: dict[str, set[float]] = field(default_factory=dict)

    def add(self, parts: Mapping[str, Tensor]) -> None:
        """Take in what a call returned."""
        for name, value in parts.items():
            if value.requires_grad:
                self.learns.add(name)
            self.values.setdefault(name, set()).add(float(value.detach()))

    def idle(self) -> str:
        """Return the first term that never had a gradient and is no constant, or an empty string."""
        found = (name for name, seen in self.values.items() if name not in self.learns and len(seen) > 1)
        return next(found, "")


def watch_loss(method: Method, terms: LossTerms) -> None:
    """Note what ``method.loss`` returns from here on, where it is called with gradients."""
    original = method.loss

    def loss(*args: Any, **kwargs: Any) -> Mapping[str, Tensor]:
        parts = original(*args, **kwargs)
        # whatever breaks the contract is the engine's to refuse
        if torch.is_grad_enabled() and isinstance(parts, Mapping):
            terms.add({k: v for k, v in parts.items() if isinstance(v, Tensor) and v.numel() == 1})
        return parts

    method.loss = loss  # type: ignore[method-assign]
