"""Students that share a trunk: own last stage and head on another network's earlier stages."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.engine.handle import NetHandle
from kdbench.engine.taps import deliver, feature_info
from kdbench.protocol.types import Feats, NotApplicable, Out, Tap


class _Inject(nn.Module):
    """Takes the place of the trunk's last stage and returns the trunk's feature."""

    value: Tensor | None = None

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return self.value


class BranchHandle(NetHandle):
    """A student whose network uses the trunk modules of another; `from_trunk` skips their computation."""

    trunk_tap: Tap
    _shell: nn.Module
    _inject: _Inject

    def from_trunk(self, feat: Tensor) -> Out:
        raw: dict[tuple[str, int, str], Tensor] = {}
        pooled: list[Tensor] = []
        if self._shell.training != self.net.training:  # containers are copies and miss net.train()
            self._shell.train(self.net.training)
        self._inject.value = feat
        try:
            with self._hooked(self._wanted.values(), raw, pooled, self._shell):
                logits = self._shell(feat)
        finally:
            self._inject.value = None
        feats = Feats({t: deliver(self.net, s, t.fmt, raw[s.key]) for t, s in self._wanted.items()})
        feats.owner = self._owner
        return Out(logits, feats, pooled[0].flatten(1) if pooled else None)


def branch(name: str, own: nn.Module, student: NetHandle, **where: Any) -> BranchHandle:
    """Give `own` the trunk of `student`: all modules that run up to the end of the last stage but one.

    The split is checked: feeding the trunk's feature must reproduce the whole network's logits. Raises
    NotApplicable where the forward pass does more than call modules one after the other.
    """
    if len(student.stages) < 2:
        raise NotApplicable("the architecture has fewer than two stages to share")
    info = feature_info(student.net)
    last_shared = str(info[student.stages[-2]]["module"])
    stage = student.trace.of(last_shared)
    if stage is None:
        raise NotApplicable(f"'{last_shared}' is not a module that runs")
    trunk = _outermost_before(student, stage.start, last_shared)
    for path in [*trunk, last_shared]:
        _replace(own, path, student.net.get_submodule(path))
    handle = BranchHandle(name, own, **where)
    kept = {id(m): m for m in own.modules() if not list(m.children())}
    kept.update({id(p): p for p in (*own.parameters(), *own.buffers())})
    handle._shell = copy.deepcopy(own, kept)
    handle._inject = _Inject()
    for path in trunk:
        _replace(handle._shell, path, nn.Identity())
    _replace(handle._shell, last_shared, handle._inject)
    handle.trunk_tap = Tap(student.stages[-2], fmt="raw")
    _check(handle, student)
    return handle


def _outermost_before(student: NetHandle, start: int, last_shared: str) -> list[str]:
    paths: list[str] = []
    for call in student.trace.calls:
        done_before = call.end < start and call.path
        if done_before and not any(call.path.startswith(p + ".") for p in paths) and call.path not in paths:
            paths.append(call.path)
    return [p for p in paths if not p.startswith(last_shared + ".")]


def _replace(net: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    net.get_submodule(parent)._modules[leaf] = module


def _check(handle: BranchHandle, student: NetHandle) -> None:
    modes = [(m, m.training) for m in handle.net.modules()]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((2, *student._size), generator=generator).to(student._device)
    try:
        handle.net.eval()
        handle._shell.eval()
        with torch.no_grad():
            feat = student(x, [handle.trunk_tap]).feats[handle.trunk_tap]
            same = torch.equal(handle.from_trunk(feat).logits, handle.net(x))
    except Exception as e:
        raise NotApplicable(f"the architecture cannot be split before its last stage: {e}") from e
    finally:
        for module, training in modes:
            module.training = training
    if not same:
        raise NotApplicable("the architecture cannot be split before its last stage: outputs differ")
