"""A network without what comes after one of its features, for methods that put something else there."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from kdbench.api import Handle, Tap


def without(net: nn.Module, paths: Iterable[str]) -> nn.Module:
    """Return `net` with the modules at `paths` replaced by Identity; it shares all that is left.

    `net` is not changed: only the modules on the way to a path are copied, not their parameters.
    """
    tree: dict[str, list[str]] = {}
    for path in paths:
        child, _, rest = path.partition(".")
        tree.setdefault(child, []).append(rest)
    out = copy.copy(net)
    out._modules = dict(net._modules)
    for child, rests in tree.items():
        module = net.get_submodule(child)
        out._modules[child] = nn.Identity() if "" in rests else without(module, rests)
    return out


def on(handle: Handle, net: nn.Module) -> Handle:
    """Return a handle as `handle` on another network with the same paths."""
    other = copy.copy(handle)
    other.net = net
    return other


def unused_modules(handle: Handle, tap: Tap, x: Tensor) -> list[str]:
    """Return paths of modules that the tapped feature of images `x` does not need and that can be left out.

    Found by the gradient: a module is unused when none of its parameters is in the graph of the feature
    (frozen ones count as used). Those without which the forward pass would fail, or give another feature,
    stay. Training flags are put back, and BatchNorm statistics do not change.
    """
    net = handle.net
    modes = [(m, m.training) for m in net.modules()]
    net.eval()
    try:
        named = dict(net.named_parameters())
        learning = [name for name, p in named.items() if p.requires_grad]
        if not learning:
            return []
        with torch.enable_grad():
            feature = handle(x, (tap,)).feats[tap]
            grads = torch.autograd.grad(feature.sum(), [named[n] for n in learning], allow_unused=True)
        used = named.keys() - {name for name, g in zip(learning, grads, strict=True) if g is None}
        left, out, tried = list(_largest_unused(net, used)), [], -1
        while len(out) > tried:
            tried = len(out)
            # a layer that changes the width can go once the layers after it are gone
            for path in list(left):
                if _same(on(handle, without(net, [*out, path])), tap, x, feature):
                    out.append(path)
                    left.remove(path)
        return out
    finally:
        for module, training in modes:
            module.training = training


def _largest_unused(net: nn.Module, used: set[str], prefix: str = "") -> Iterator[str]:
    for name, child in net.named_children():
        path = prefix + name
        names = {f"{path}.{p}" for p, _ in child.named_parameters()}
        if names and not names & used:
            yield path
        else:
            yield from _largest_unused(child, used, path + ".")


def _same(handle: Handle, tap: Tap, x: Tensor, feature: Tensor) -> bool:
    try:
        with torch.no_grad():
            return torch.equal(handle(x, (tap,)).feats[tap], feature)
    except Exception:  # whatever an architecture says when a part is missing
        return False
