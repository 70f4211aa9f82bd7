"""One forward pass of a network, written down: which module ran when, on which storage.

Taps are resolved from such a trace instead of per-model tables: an activation *ends* a stage when its output
is the stage's output (same storage, same shape, not modified in between).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

_ACTIVATION_HOMES = ("torch.nn.modules.activation", "timm.layers.activations")
_NOT_ACTIVATIONS = (nn.MultiheadAttention, nn.Softmax, nn.LogSoftmax, nn.Softmax2d)


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an elementwise activation of torch or timm."""
    return type(module).__module__.startswith(_ACTIVATION_HOMES) and not isinstance(module, _NOT_ACTIVATIONS)


def is_batchnorm(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm (timm's BatchNormAct2d is one)."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer over channels."""
    return is_batchnorm(module) or isinstance(module, (nn.GroupNorm, nn.LayerNorm))


@dataclass
class Value:
    """A tensor seen at a hook: storage address, shape and how often it had been modified."""

    ptr: int
    shape: tuple[int, ...]
    version: int
    final_version: int = -1

    @property
    def overwritten_later(self) -> bool:
        return self.final_version != self.version

    def same(self, other: Value | None) -> bool:
        """Whether both are the same unmodified tensor."""
        return (
            other is not None
            and self.ptr == other.ptr
            and self.shape == other.shape
            and self.version == other.version
        )


@dataclass
class Call:
    """One call of one module."""

    path: str
    module: nn.Module
    nth: int
    start: int
    end: int = -1
    inp: Value | None = None
    out: Value | None = None


@dataclass
class Trace:
    """All calls of a forward pass, in order of their start."""

    calls: list[Call] = field(default_factory=list)
    out_shape: tuple[int, ...] = ()

    def of(self, path: str) -> Call | None:
        """Return the last call of a module."""
        return next((c for c in reversed(self.calls) if c.path == path), None)


def trace(net: nn.Module, x: Tensor) -> Trace:
    """Run `net` on `x` in eval mode without gradient and write down every call.

    Leaves training flags, buffers and RNG as they were; no hook stays behind.
    """
    result = Trace()
    alive: list[tuple[Tensor, Value]] = []  # holding tensors keeps their addresses from being reused
    clock = 0
    open_calls: list[Call] = []
    counts: dict[str, int] = {}
    handles: list[Any] = []

    def see(t: Any) -> Value | None:
        if not isinstance(t, Tensor):
            return None
        value = Value(t.data_ptr(), tuple(t.shape), t._version)
        alive.append((t, value))
        return value

    def enter(path: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            nonlocal clock
            nth = counts.get(path, 0)
            counts[path] = nth + 1
            call = Call(path, module, nth, clock, inp=see(args[0]) if args else None)
            clock += 1
            result.calls.append(call)
            open_calls.append(call)

        return hook

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        nonlocal clock
        call = open_calls.pop()
        call.end, call.out = clock, see(out)
        clock += 1

    modes = [(m, m.training) for m in net.modules()]
    try:
        for path, module in net.named_modules():
            handles.append(module.register_forward_pre_hook(enter(path)))
            handles.append(module.register_forward_hook(leave))
        net.eval()
        with torch.no_grad():
            out = net(x)
        result.out_shape = tuple(out.shape) if isinstance(out, Tensor) else ()
        for tensor, value in alive:
            value.final_version = tensor._version
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    return result
