"""How much a training step computes, counted before anything is trained."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence

import torch
from torch import nn

from kdbench.engine.cellspec import Arch
from kdbench.measure.operations import macs
from kdbench.protocol.types import DataInfo

#: A training pass is a forward pass and one for the gradients of each of weights and inputs.
TRAINING = 3

_counted: dict[str, int | None] = {}


def step_macs(
    student: tuple[Arch, nn.Module], teachers: Sequence[tuple[Arch, nn.Module]], info: DataInfo
) -> float | None:
    """Return multiply-accumulates of one image's training step, without what the method adds.

    None where those of a network cannot be counted. Networks are counted once each in this process.
    """
    parts = [_forward(*student, info), *(_forward(*teacher, info) for teacher in teachers)]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return float(TRAINING * known[0] + sum(known[1:]))


def _forward(arch: Arch, net: nn.Module, info: DataInfo) -> int | None:
    size = (1, info.in_chans, info.image_size, info.image_size)
    key = json.dumps([arch.name, arch.args, size, info.num_classes], sort_keys=True, default=str)
    if key not in _counted:
        _counted[key] = _on_meta(net, size)
    return _counted[key]


def _on_meta(net: nn.Module, size: tuple[int, ...]) -> int | None:
    """Count without computing; a network that needs values of its tensors is run on the CPU."""
    try:
        shadow = copy.deepcopy(net).to("meta")
    except Exception:  # what a module of a plug-in raises must not cost the plan
        return None
    found = macs(shadow, (torch.empty(size, device="meta"),))
    return macs(net, (torch.zeros(size),)) if found is None else found
