"""From a tap to a place in a network, on any architecture with ``feature_info``."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from kdbench.engine.trace import Call, Trace, is_activation, is_batchnorm, is_norm
from kdbench.errors import did_you_mean
from kdbench.protocol.types import NotApplicable, Tap

_SKIP_PATH = re.compile(r"(downsample|shortcut|skip|identity)")


@dataclass(frozen=True)
class Site:
    """Where and how a tap is read.

    Attributes:
        module: path of the hooked module; `nth` call of it in one forward.
        side: its ``output`` or its ``input``.
        clone: whether a later operation overwrites the value in place.
        kind: ``stage-end`` (an activation ends the stage), ``next-norm`` (pre-activation net), ``linear``
            (no activation follows) or ``module`` (a tap by path).
        bn: path of the BatchNorm on the main branch before the activation.
        layout: of the raw value: ``nchw``, ``nhwc``, ``tokens`` or ``other``.
        shape: of the raw value, for a batch of 2.
    """

    module: str
    nth: int
    side: Literal["output", "input"]
    clone: bool
    kind: Literal["stage-end", "next-norm", "linear", "module"]
    bn: str | None
    layout: Literal["nchw", "nhwc", "tokens", "other"]
    shape: tuple[int, ...]

    @property
    def key(self) -> tuple[str, int, str]:
        """What tells its raw value from others of one forward."""
        return self.module, self.nth, self.side


def feature_info(net: nn.Module) -> list[dict[str, Any]]:
    """Return timm's ``feature_info`` as a list of dicts; empty where the network has none."""
    info = getattr(net, "feature_info", None) or []
    return [dict(entry) for entry in getattr(info, "info", info)]


def resolution_stages(info: Sequence[dict[str, Any]]) -> tuple[int, ...]:
    """Return the indices of the resolution stages: no stem; four evenly spaced blocks of isotropic models."""
    n = len(info)
    if n > 4 and len({entry.get("reduction") for entry in info}) == 1:
        return tuple(int((k + 1) * n / 4 + 0.5) - 1 for k in range(4))
    if n > 1:
        heads = [re.sub(r"[\d.]+", "", str(entry["module"]).rsplit(".", 1)[-1]) for entry in info[:2]]
        roots = [str(entry["module"]).split(".")[0].rstrip("0123456789") for entry in info[:2]]
        stem = roots[0] != roots[1] or (heads[0] != heads[1] and bool(heads[0]))
        if stem:
            return tuple(range(1, n))
    return tuple(range(n))


def resolve(net: nn.Module, tr: Trace, tap: Tap) -> Site:
    """Find the site of a tap. Raises NotApplicable with the reason."""
    info = feature_info(net)
    channels = None
    if isinstance(tap.at, int):
        if not info:
            raise NotApplicable("the architecture has no feature_info, so its stages are unknown")
        if not -len(info) <= tap.at < len(info):
            raise NotApplicable(f"stage {tap.at} does not exist: feature_info has {len(info)} entries")
        entry = info[tap.at]
        path, channels = str(entry["module"]), entry.get("num_chs")
    else:
        path = tap.at
    stage = tr.of(path)
    if stage is None:
        paths = [name for name, _ in net.named_modules()]
        why = "never runs" if path in paths else f"is not a module{did_you_mean(path, paths, limit=1)}"
        raise NotApplicable(f"tap {tap.at!r}: '{path}' {why}")
    if stage.out is None:
        raise NotApplicable(f"tap {tap.at!r}: '{path}' does not return a tensor")
    act = _ending_activation(tr, stage)
    if tap.when == "pre" and act is not None:
        if act.inp is None:
            raise NotApplicable(f"tap {tap.at!r}: activation '{act.path}' has no tensor input")
        return _site(net, act, "input", "stage-end", _main_bn(tr, act), channels)
    following = None if act is not None else _next_norm_act(tr, stage)
    if tap.when == "pre" and following is not None:
        norm, norm_act = following
        return _site(
            net, norm_act, "input", "next-norm", norm.path if is_batchnorm(norm.module) else None, channels
        )
    kind: Literal["stage-end", "next-norm", "linear", "module"] = "linear"
    bn = None
    if act is not None:
        kind, bn = "stage-end", _main_bn(tr, act)
    elif following is not None:
        kind, bn = "next-norm", following[0].path if is_batchnorm(following[0].module) else None
    if isinstance(tap.at, str) and act is None:
        kind = "module"
    return _site(net, stage, "output", kind, bn, channels)


def _site(net: nn.Module, call: Call, side: Any, kind: Any, bn: str | None, channels: int | None) -> Site:
    value = call.out if side == "output" else call.inp
    assert value is not None
    return Site(
        module=call.path,
        nth=call.nth,
        side=side,
        clone=value.overwritten_later,
        kind=kind,
        bn=bn,
        layout=_layout(net, value.shape, channels),
        shape=value.shape,
    )


def _ending_activation(tr: Trace, stage: Call) -> Call | None:
    found = None
    for call in tr.calls:
        # "before its end" and not "inside": some stages end in an Identity that passes the activation on
        before = call.end <= stage.end
        if before and is_activation(call.module) and call.out is not None and call.out.same(stage.out):
            found = call
    return found


def _next_norm_act(tr: Trace, stage: Call) -> tuple[Call, Call] | None:
    for norm in tr.calls:
        after = norm.start > stage.end
        if not (after and is_norm(norm.module) and norm.inp is not None and norm.inp.same(stage.out)):
            continue
        for act in tr.calls:
            if not is_activation(act.module) or act.start < norm.start or act.inp is None:
                continue
            if act.path.startswith(norm.path + ".") or act.inp.same(norm.out):
                return norm, act
        return None
    return None


def _main_bn(tr: Trace, act: Call) -> str | None:
    """Return the last BatchNorm before the activation on the main branch of its block, with equal channels."""
    parent = act.path.rpartition(".")[0]
    holder = tr.of(parent) if parent else None
    if holder is not None and is_batchnorm(holder.module):
        return parent
    prefix = parent + "." if parent else ""
    found = None
    for call in tr.calls:
        if not (is_batchnorm(call.module) and call.path.startswith(prefix) and call.end < act.start):
            continue
        if _SKIP_PATH.search(call.path[len(prefix) :]):
            continue
        if act.inp is not None and getattr(call.module, "num_features", None) in act.inp.shape[1:]:
            found = call.path
    return found


def _layout(net: nn.Module, shape: tuple[int, ...], channels: int | None) -> Any:
    if len(shape) == 3:
        return "tokens"
    if len(shape) != 4:
        return "other"
    nhwc = getattr(net, "output_fmt", None) == "NHWC"
    if channels is not None and (shape[1] == channels) != (shape[3] == channels):
        nhwc = shape[3] == channels
    return "nhwc" if nhwc else "nchw"


def grid_of(net: nn.Module, n_tokens: int) -> tuple[int, int]:
    """Return (H, W) of a token sequence without its prefix. Raises NotApplicable when it is not a grid."""
    grid = getattr(getattr(net, "patch_embed", None), "grid_size", None)
    if grid is not None and grid[0] * grid[1] == n_tokens:
        return int(grid[0]), int(grid[1])
    side = math.isqrt(n_tokens)
    if n_tokens < 1 or side * side != n_tokens:
        raise NotApplicable(f"{n_tokens} tokens do not form a square grid")
    return side, side


def _prefix(net: nn.Module, n_tokens: int) -> int:
    """Return how many of the tokens are no patches: some nets (CaiT, XCiT) add theirs after the blocks only."""
    prefix = int(getattr(net, "num_prefix_tokens", 0))
    for drop in (prefix, 0):
        try:
            grid_of(net, n_tokens - drop)
        except NotApplicable:
            continue
        return drop
    return prefix


def deliver(net: nn.Module, site: Site, fmt: str, value: Tensor) -> Tensor:
    """Turn a raw value into the format that the tap asked for."""
    if fmt == "raw" or site.layout == "other":
        return value
    if site.layout == "tokens":
        tokens = value[:, _prefix(net, value.shape[1]) :]
        if fmt == "tokens":
            return tokens
        h, w = grid_of(net, tokens.shape[1])
        return tokens.transpose(1, 2).reshape(value.shape[0], tokens.shape[2], h, w)
    maps = value.permute(0, 3, 1, 2) if site.layout == "nhwc" else value
    return maps.flatten(2).transpose(1, 2) if fmt == "tokens" else maps
