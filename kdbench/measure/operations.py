"""Parameters and multiply-accumulate operations of a network."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def parameters(net: nn.Module) -> int:
    """Return the number of distinct parameters."""
    return sum(p.numel() for p in {id(p): p for p in net.parameters()}.values())


def macs(net: nn.Module, inputs: tuple[Tensor, ...]) -> int | None:
    """Return the multiply-accumulates of one forward pass on `inputs` (a batch of 1), or None.

    torch's counter counts 2 operations per multiply-accumulate of matrix products and convolutions. A copy is
    run, in eval mode, so that the counter leaves nothing behind.
    """
    try:
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            copy.deepcopy(net).eval()(*inputs)
        return int(counter.get_total_flops()) // 2
    except Exception:  # an exotic operator must not cost the cell its result
        return None
