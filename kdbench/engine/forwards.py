"""One forward pass of a teacher for several cells: who may take it, and how long it is kept."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdbench.engine.batchnorm import batch_statistics
from kdbench.engine.cellspec import TeacherSource
from kdbench.engine.checkpoint import weights_bytes
from kdbench.engine.clock import wait
from kdbench.engine.handle import Captured, NetHandle
from kdbench.engine.taps import Site
from kdbench.engine.twins import Twins


class Seal:
    """Tells whether a teacher is still what it was when it was loaded, and whether two teachers are equal.

    `digest` is equal for networks of equal architecture, weights and input. The seal breaks when a weight is
    written, replaced or moved, a hook or another forward is installed or a mode changed; a teacher with a broken
    seal is its cell's own affair. It holds again when the change is undone, except for writes. Writes past
    torch's count of them (``.data``, a numpy view) are not seen; no method may write into a teacher.
    """

    def __init__(self, handle: NetHandle, source: TeacherSource) -> None:
        self._net = handle.net
        facts = {
            "architecture": source.architecture.model_dump(),
            "size": handle._size,
            "normalisation": None if handle.normalisation is None else vars(handle.normalisation),
            "formats": sorted({str(p.stride()) for p in handle.net.parameters()}),
            "device": str(handle._device),
        }
        sha = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        sha.update(weights_bytes(handle.net))
        self.digest = sha.hexdigest()
        self._stamp = self._now()

    def holds(self) -> bool:
        """Return whether the teacher is unchanged."""
        return self._now() == self._stamp

    def _now(self) -> list[Any]:
        out: list[Any] = []
        for m in self._net.modules():
            out.append(
                (id(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in m.__dict__)
            )
            for t in (*m._parameters.values(), *m._buffers.values()):
                if t is not None:
                    out.append((t.data_ptr(), t._version))
        return out


@dataclass(frozen=True)
class Wish:
    """What a cell reads on a teacher: sites, and whether logits or pooled features too.

    `by_batch` is how its BatchNorm layers normalise: by the batch, or by their running statistics.
    """

    sites: tuple[Site, ...]
    head: bool
    by_batch: bool = False


@dataclass
class _Entry:
    got: Captured
    seconds: float


@dataclass
class Forwards:
    """Forwards of the step that the cells are at, by teacher, images and autocast state.

    They are made by copies of the teachers that no cell can reach, so that what one does to its teacher, seen or
    unseen, never gets to another.

    Args:
        wanted: returns what each cell of the gang reads on a teacher, by its digest.
    """

    wanted: Callable[[str], Iterable[Wish]]
    #: the step that forwards are kept of
    step: Hashable = None
    _known: dict[Hashable, _Entry] = field(default_factory=dict)
    _teachers: dict[str, NetHandle] = field(default_factory=dict)
    #: what was asked for at the call, beyond what was wanted in setup, by teacher
    _asked: dict[tuple[str, str], dict[Hashable, Site]] = field(default_factory=dict)
    #: teachers whose forward does more than compute: it draws random numbers, or writes into its input
    _impure: set[str] = field(default_factory=set)

    def adopt(self, handle: NetHandle, digest: str) -> None:
        """Copy a teacher, as long as nobody has changed it, unless an equal one is known."""
        if digest in self._teachers or digest in self._impure:
            return
        try:
            self._teachers[digest] = handle.duplicate()
        except Exception:  # a network that cannot be copied: each cell asks its own
            self._impure.add(digest)

    def clear(self) -> None:
        """Drop all that is kept, teachers too."""
        self._known.clear()
        self._teachers.clear()

    def shareable(self, digest: str) -> bool:
        """Return whether one forward of the teacher can stand for another."""
        return digest in self._teachers and digest not in self._impure

    def ask(
        self, digest: str, step: Hashable, view: str, x: Tensor, wish: Wish
    ) -> tuple[Captured | None, float]:
        """Return a copy of what a teacher gives for images `x` that are view `view` of the batch of `step`.

        None if it turns out that its forward does more than compute; then nothing has happened. The second value
        is what the forward took, in seconds, if it was made for another cell; else 0. Cells
        whose sites the copy with folded BatchNorm cannot serve have a forward of their own, as they have alone.
        """
        if step != self.step:
            self.step = step
            self._known.clear()
        teacher = self._teachers[digest]
        kind = _kind(teacher, wish)
        key = (digest, view, kind, *_autocast(x.device))
        needed = {s.key: s for s in wish.sites}
        entry = self._known.get(key)
        if entry is None or not _covers(entry.got, needed, wish.head):
            alike = [w for w in self.wanted(digest) if _kind(teacher, w) == kind]
            wanted = {s.key: s for w in alike for s in w.sites}
            asked = self._asked.setdefault((digest, kind), {})
            asked |= {k: site for k, site in needed.items() if k not in wanted}
            head = wish.head or any(w.head for w in alike)
            got, seconds, pure = _forward(teacher, x, wanted | asked, head, by_batch=wish.by_batch)
            if not pure:
                self._impure.add(digest)
                return None, 0.0
            entry = self._known[key] = _Entry(got, seconds)
            given = 0.0
        else:
            given = entry.seconds
        return _copy(entry.got, needed, wish.head), given


def _kind(teacher: NetHandle, wish: Wish) -> str:
    """Return what tells forwards apart that compute otherwise."""
    if wish.by_batch:
        return "batch"
    return "plain" if teacher.frozen.net(wish.sites) is None else "folded"


def _covers(got: Captured, needed: Mapping[tuple[str, int, str], Site], head: bool) -> bool:
    return needed.keys() <= got.raw.keys() and (got.logits is not None or not head)


def _forward(
    handle: NetHandle, x: Tensor, sites: Mapping[Hashable, Site], head: bool, *, by_batch: bool
) -> tuple[Captured, float, bool]:
    x = Twins()(x)  # a forward may write into its input
    version, random = x._version, _random(x.device)
    wait(x.device)
    began = time.perf_counter()
    with batch_statistics(handle.net) if by_batch else nullcontext():
        got = handle.capture(x, sites.values(), frozen=not by_batch, head=head)
    wait(x.device)
    seconds = time.perf_counter() - began
    tensors = [t for t in (got.logits, got.pooled, *got.raw.values()) if t is not None]
    apart = all(t.untyped_storage().data_ptr() != x.untyped_storage().data_ptr() for t in tensors)
    same = all(torch.equal(a, b) for a, b in zip(random, _random(x.device), strict=True))
    if not same:
        torch.set_rng_state(random[0])
        if x.device.type == "cuda":
            torch.cuda.set_rng_state(random[1], x.device)
    return got, seconds, apart and same and x._version == version


def _copy(got: Captured, needed: Mapping[tuple[str, int, str], Site], head: bool) -> Captured:
    """Return copies of what a cell asked for; without `head` and with sites there is nothing of the head."""
    twin = Twins()
    raw = {key: twin(got.raw[key]) for key in needed}
    if not head and needed:
        return Captured(None, raw, None)
    logits, pooled = (None if t is None else twin(t) for t in (got.logits, got.pooled))
    return Captured(logits, raw, pooled)


def _autocast(device: torch.device) -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)


def _random(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states
