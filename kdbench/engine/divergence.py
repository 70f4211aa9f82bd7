"""When a run has diverged, at which step, and what did it: named scalars and weights that are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.engine.trace import is_batchnorm

#: Rows that wait on the device before they are reduced to one.
WINDOW = 256
#: Names that a message lists.
LISTED = 8


class Diverged(Exception):
    """A loss, or a weight after its update, is no longer finite."""


@dataclass(frozen=True)
class Bad:
    """A scalar that was not finite: its name, the step (from 1 over the whole run), and what it was."""

    name: str
    step: int
    value: str


@dataclass
class _Group:
    """Scalars that come together. Row i of the epoch was made by call ``calls[i]`` at step ``steps[i]``."""

    steps: list[int] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    waiting: list[Tensor] = field(default_factory=list)
    #: (n,) index of the first bad row of each scalar or -1, and the value there
    first: Tensor | None = None
    value: Tensor | None = None


class Terms:
    """The named scalars of an epoch: means, and the first step at which each was not finite.

    Everything stays on the device until :meth:`means` or :meth:`bad` is asked, so a step never waits. What a
    step adds for the search is one small copy; every :data:`WINDOW` rows are reduced by a few kernels.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.reset()

    def reset(self) -> None:
        """Forget everything: an epoch starts."""
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self._groups: dict[tuple[str, ...], _Group] = {}
        self._earlier: list[Bad] = []
        self._calls = 0

    def add(self, values: Mapping[str, Any], step: int) -> None:
        """Take in scalars of a step, which counts from 1 over the whole run.

        Raises ValueError for a tensor of more than one element.
        """
        row: list[Tensor] = []
        for name, value in values.items():
            v = self._scalar(name, value)
            row.append(v)
            if name in self.sums:
                self.sums[name] += v
                self.counts[name] += 1
            else:
                self.sums[name] = v.clone()
                self.counts[name] = 1
        if not row:
            return
        group = self._groups.setdefault(tuple(values), _Group())
        # a copy: the tensors are the method's, which may write into them later
        group.waiting.append(torch.stack(row))
        group.steps.append(step)
        group.calls.append(self._calls)
        self._calls += 1
        if len(group.waiting) == WINDOW:
            _reduce(group)

    def means(self) -> dict[str, float]:
        """Return the mean of each scalar over the times it was added."""
        return {k: float(v) / self.counts[k] for k, v in self.sums.items()}

    def bad(self) -> list[Bad]:
        """Return the scalars that were not finite, each at its first time, in the order in which they came."""
        found: list[tuple[int, int, Bad]] = []
        for names, group in self._groups.items():
            if group.waiting:
                _reduce(group)
            if group.first is None or group.value is None:
                continue
            pairs = zip(names, group.first.tolist(), group.value.tolist(), strict=True)
            for position, (name, row, value) in enumerate(pairs):
                if row >= 0:
                    bad = Bad(name, group.steps[row], str(value))
                    found.append((group.calls[row], position, bad))
        out = {b.name: b for b in self._earlier}
        for _, _, b in sorted(found, key=lambda f: f[:2]):
            out.setdefault(b.name, b)
        return list(out.values())

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint within an epoch must keep."""
        bad = [[b.name, b.step, b.value] for b in self.bad()]
        return {"means": self.sums, "counts": self.counts, "bad": bad}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state` gave; ``bad`` may be missing, in checkpoints of older versions."""
        self.reset()
        self.sums = {k: v.to(self.device) for k, v in state["means"].items()}
        self.counts = dict(state["counts"])
        self._earlier = [Bad(name, step, value) for name, step, value in state.get("bad", [])]

    def _scalar(self, name: str, value: Any) -> Tensor:
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(f"'{_short(name)}' must be a scalar, it has shape {tuple(value.shape)}")
            v = value.detach().to(self.device, torch.float32, non_blocking=True)
            return v if v.dim() == 0 else v.reshape(())
        return torch.full((), float(value), dtype=torch.float32, device=self.device)


def _reduce(group: _Group) -> None:
    """Merge the waiting rows into the group's first bad rows, without waiting for the device."""
    rows = torch.stack(group.waiting)
    offset = len(group.steps) - len(group.waiting)
    group.waiting = []
    bad = ~torch.isfinite(rows)
    index = bad.int().argmax(0)  # of equal values the first
    value = rows.gather(0, index[None])[0]
    first = torch.where(bad.any(0), index + offset, -1)
    if group.first is not None and group.value is not None:
        known = group.first >= 0
        first, value = torch.where(known, group.first, first), torch.where(known, group.value, value)
    group.first, group.value = first, value


def told(bad: Sequence[Bad], where: str) -> str:
    """Return one line on scalars that were not finite, in the order in which they came; `where` is the epoch."""
    first, rest = bad[0], bad[1:]
    text = f"diverged at step {first.step} ({where}): {_kind(first.name)} was {first.value} first"
    parts: list[str] = []
    for step in dict.fromkeys(b.step for b in rest[:LISTED]):
        names = ", ".join(f"'{_short(b.name)}'" for b in rest[:LISTED] if b.step == step)
        parts.append(names if step == first.step else f"{names} at step {step}")
    if len(rest) > LISTED:
        parts.append(f"{len(rest) - LISTED} more")
    return f"{text}; then {', '.join(parts)}" if parts else text


def _short(name: str) -> str:
    return name.removeprefix("loss/")


def _kind(name: str) -> str:
    if name == "loss":
        return "the sum of the terms"
    return f"term '{_short(name)}'" if name.startswith("loss/") else f"logged value '{name}'"


def check_terms(terms: Terms, step: int, where: str) -> dict[str, float]:
    """Return the means of an epoch that ended at `step`. Raises Diverged when a scalar was not finite."""
    bad = terms.bad()
    if bad:
        raise Diverged(told(bad, where))
    means = terms.means()
    name = next((k for k, v in means.items() if not math.isfinite(v)), None)
    if name is not None:
        raise Diverged(
            f"diverged by step {step} ({where}): the sum of '{_short(name)}' over steps overflowed"
        )
    return means


def check_weights(
    nets: Mapping[str, nn.Module], trained: Sequence[nn.Parameter], step: int, where: str
) -> None:
    """Raise Diverged when a trained weight, or a running statistic in use, is not finite after an epoch.

    Args:
        nets: networks, and the method, by name.
        trained: parameters of the optimizers; others may hold what they like.
        step: last step of the epoch.
        where: the epoch, in words.
    """
    tensors = dict(_watched(nets, {id(p) for p in trained}))
    if not tensors:
        return
    # smallest and largest pass a nan on, and need one fast pass and no copy of the weights
    ends = torch.stack([torch.stack(t.detach().aminmax()).float() for t in tensors.values()]).tolist()
    for name, values in zip(tensors, ends, strict=True):
        value = next((v for v in values if not math.isfinite(v)), None)
        if value is not None:
            raise Diverged(f"diverged by step {step} ({where}): every term was finite, but {name} is {value}")


def check_metrics(results: Mapping[str, Mapping[str, float]], step: int) -> None:
    """Raise Diverged when the networks that go on record, trained up to `step`, give no finite numbers."""
    for name, metrics in results.items():
        for key, value in metrics.items():
            if not math.isfinite(value):
                raise Diverged(
                    f"diverged by step {step} (the last): every term and weight was finite, "
                    f"but {key} of '{name}' is {value}"
                )


def _watched(nets: Mapping[str, nn.Module], trained: set[int]) -> Iterator[tuple[str, Tensor]]:
    seen: set[int] = set()
    for name, net in nets.items():
        for path, p in net.named_parameters():
            if id(p) in trained and id(p) not in seen and p.numel():
                seen.add(id(p))
                yield f"'{path}' of {name}", p
        for path, module in net.named_modules():
            if id(module) in seen or not is_batchnorm(module) or not module.training:
                continue
            seen.add(id(module))
            for key in ("running_mean", "running_var"):
                statistic = getattr(module, key)
                if statistic is not None:
                    yield f"'{path}.{key}' of {name}", statistic
