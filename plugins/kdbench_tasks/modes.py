"""Evaluation mode that leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(*nets: nn.Module) -> Iterator[None]:
    """Put networks in eval mode without gradient; afterwards every module has its own training flag again.

    The flags are kept per module: a network in training mode may have frozen BatchNorm layers in eval mode.
    """
    flags = [(module, module.training) for net in nets for module in net.modules()]
    try:
        for net in nets:
            net.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in flags:
            module.training = training
