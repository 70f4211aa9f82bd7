"""Optimizers and schedules of a phase, made by timm's factories."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.optim import Optimizer

from kdbench.errors import KdbenchError, did_you_mean
from kdbench.matrix.recipe import Recipe
from kdbench.protocol.types import Opt


@dataclass
class Driven:
    """A named optimizer with its schedule (None: constant)."""

    optimizer: Optimizer
    schedule: Any | None
    params: list[nn.Parameter]

    def set_epoch(self, epoch: int) -> None:
        """Set the learning rate of an epoch of the phase, counted from 0."""
        if self.schedule is not None:
            self.schedule.step(epoch)

    def set_update(self, update: int) -> None:
        """Set the learning rate of a step of the phase, for schedules that move per step."""
        if self.schedule is not None:
            self.schedule.step_update(update)

    def align(self) -> None:
        """Give gradients the strides of their parameters: fused optimizers read both as flat memory."""
        for p in self.params:
            if p.grad is not None and not _same_layout(p, p.grad):
                p.grad = torch.empty_like(p).copy_(p.grad)

    def load(self, state: Mapping[str, Any]) -> None:
        """Take the state of an optimizer of the same kind, whatever the strides in which it was kept."""
        self.optimizer.load_state_dict(dict(state))
        for p, kept in self.optimizer.state.items():
            for key, value in kept.items():
                like = isinstance(value, Tensor) and value.shape == p.shape
                if like and not _same_layout(p, value):
                    kept[key] = torch.empty_like(p, dtype=value.dtype).copy_(value)

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])


def build_optimizers(
    named: Mapping[str, Opt], recipe: Recipe, *, epochs: int, steps_per_epoch: int
) -> dict[str, Driven]:
    """Make the optimizers of a phase. Raises KdbenchError for a name that timm does not know."""
    return {name: _build(name, opt, recipe, epochs, steps_per_epoch) for name, opt in named.items()}


def trainable(items: Sequence[Any]) -> list[nn.Parameter]:
    """Return the distinct parameters of modules and parameters, in order."""
    seen: dict[int, nn.Parameter] = {}
    for param in _parameters(items):
        seen.setdefault(id(param), param)
    return list(seen.values())


def _parameters(items: Sequence[Any]) -> Iterator[nn.Parameter]:
    for item in items:
        if isinstance(item, nn.Module):
            yield from item.parameters()
        elif isinstance(item, nn.Parameter):
            yield item
        else:
            raise TypeError(f"Opt.params takes modules and parameters, not {type(item).__name__}")


def _build(name: str, opt: Opt, recipe: Recipe, epochs: int, steps: int) -> Driven:
    params = trainable(opt.params)
    if not params:
        raise ValueError(f"optimizer '{name}' has no parameters")
    spec = recipe.optimizer
    kind = spec.name if opt.kind == "recipe" else opt.kind
    kw: dict[str, Any] = _recipe_arguments(recipe) if opt.kind == "recipe" else {}
    kw.update(opt.kw)
    lr = float(kw.pop("lr", spec.lr))
    decay = float(kw.pop("weight_decay", 0.0))
    groups: Any = params
    if recipe.filter_bias_and_bn and decay:
        holder = nn.ParameterList(params)
        groups = param_groups_weight_decay(holder, decay)
    if _fusable(kind, kw, params):
        kw["fused"] = True
    if recipe.compile in ("graph", "auto") and all(p.is_cuda for p in params) and _takes(kind, "capturable"):
        kw.setdefault("capturable", True)
    try:
        optimizer = create_optimizer_v2(groups, opt=kind, lr=lr, weight_decay=decay, **kw)
    except (AssertionError, ValueError, TypeError) as e:
        near = did_you_mean(kind, list_optimizers()) if kind not in list_optimizers() else ""
        raise KdbenchError(f"optimizer '{kind}': {e}{near}") from e
    schedule = _schedule(optimizer, recipe, epochs, steps) if opt.schedule == "recipe" else None
    return Driven(optimizer, schedule, params)


def _same_layout(a: Tensor, b: Tensor) -> bool:
    if a.stride() == b.stride():
        return True
    return all(n == 1 or i == j for n, i, j in zip(a.shape, a.stride(), b.stride(), strict=True))


def _fusable(kind: str, kw: Mapping[str, Any], params: Sequence[nn.Parameter]) -> bool:
    """Return whether torch has one kernel for the whole update of these parameters."""
    if kw.keys() & {"fused", "foreach", "capturable", "differentiable"}:
        return False
    if not all(p.dtype == torch.float32 and p.device.type in ("cpu", "cuda") for p in params):
        return False
    return _takes(kind, "fused")


def _takes(kind: str, key: str) -> bool:
    try:
        found = get_optimizer_class(kind, bind_defaults=False)
    except (AssertionError, ValueError):  # not known, or not here: told where it is made
        return False
    return key in inspect.signature(found.__init__).parameters  # type: ignore[misc]


def _recipe_arguments(recipe: Recipe) -> dict[str, Any]:
    spec = recipe.optimizer
    out: dict[str, Any] = {"weight_decay": spec.weight_decay, "momentum": spec.momentum}
    out |= {"betas": spec.betas} if spec.betas is not None else {}
    return out | ({"eps": spec.eps} if spec.eps is not None else {})


def _schedule(optimizer: Optimizer, recipe: Recipe, epochs: int, steps: int) -> Any | None:
    spec = recipe.schedule
    if spec.name == "constant" and not spec.warmup_epochs:
        return None
    scale = epochs / recipe.epochs
    # milestones are epochs of the recipe (or shares of it); a phase that gets a share of the epochs gets the
    # same share of the schedule
    milestones = [round(m * epochs if isinstance(m, float) else m * scale) for m in spec.milestones]
    warmup = min(epochs - 1, round(spec.warmup_epochs * min(1.0, scale)))
    # timm's multistep decays one tick before a milestone; the field's (and torch's) decays at it
    tick = 1.0 if spec.per == "epoch" else 1.0 / steps
    if spec.name == "constant":
        names: dict[str, Any] = {"sched": "multistep", "decay_milestones": [epochs + 1], "decay_rate": 1.0}
    elif spec.name == "multistep":
        names = {
            "sched": "multistep",
            "decay_milestones": [m + tick for m in milestones],
            "decay_rate": spec.gamma,
        }
    elif spec.name == "linear":
        names = {"sched": "poly", "decay_rate": 1.0}
    elif spec.name == "step":
        names = {"sched": "step", "decay_epochs": max(1, round((spec.every_epochs or 1) * scale))}
        names["decay_rate"] = spec.gamma
    else:
        names = {"sched": spec.name}
    schedule, _ = create_scheduler_v2(
        optimizer,
        **names,
        num_epochs=epochs,
        min_lr=spec.min_lr,
        warmup_epochs=warmup,
        warmup_lr=spec.warmup_lr,
        step_on_epochs=spec.per == "epoch",
        updates_per_epoch=steps,
    )
    return schedule
