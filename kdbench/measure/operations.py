"""Parameters and multiply-accumulate operations of a network."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
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


#: Operators whose outputs count as activations, as in timm's tables.
_ACTIVE = {
    torch.ops.aten.convolution,
    torch.ops.aten.mm,
    torch.ops.aten.addmm,
    torch.ops.aten.bmm,
    torch.ops.aten.baddbmm,
}


class _Outputs(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in _ACTIVE:
            self.elements += out.numel()
        return out


def activations(net: nn.Module, inputs: tuple[Tensor, ...]) -> int | None:
    """Return the elements that convolutions and matrix products put out in one forward pass, or None.

    The count of timm's ``macts``. Fused attention counts as nothing here, so it is only taken apart.
    """
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _Outputs() as outputs:
            copy.deepcopy(net).eval()(*inputs)
        return outputs.elements
    except Exception:  # an exotic operator must not cost the model its row
        return None
