"""A teacher's forward for several cells: who may take it, and that it is what the cell's own would be."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import SIZE, Net, make_run
from torch import nn

from kdbench.engine.batchnorm import batch_statistics
from kdbench.engine.cellspec import Arch, TeacherSource
from kdbench.engine.forwards import Forwards, Seal, Wish
from kdbench.engine.handle import NetHandle
from kdbench.engine.taps import Site
from kdbench.protocol.types import NotAsked, Out, Tap

SOURCE = TeacherSource(architecture=Arch(name="net"), source="cell", ref="0" * 64)


@pytest.fixture
def teacher(tmp_path: Path) -> NetHandle:
    handle = make_run(tmp_path).teacher
    handle.want(Tap(0), Tap(1, "pre"))
    return handle


def seal(handle: NetHandle, source: TeacherSource = SOURCE) -> Seal:
    return Seal(handle, source)


def images(seed: int = 0) -> torch.Tensor:
    return torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


class Shared:
    """Forwards of one teacher, and how often its network ran."""

    def __init__(self, handle: NetHandle, wanted: Callable[[], Iterable[Site]] = lambda: ()) -> None:
        self.handle = handle
        self.forwards = Forwards(lambda digest: [Wish(tuple(wanted()), head=False)])
        self.forwards.adopt(handle, "t")
        self.runs = 0
        copied = self.forwards._teachers["t"]
        capture = copied.capture

        def counted(*args: Any, **options: Any) -> Any:
            self.runs += 1
            return capture(*args, **options)

        copied.capture = counted

    def ask(
        self, step: Any, x: torch.Tensor, taps: list[Tap] | None = None, view: str = "", head: bool = True
    ) -> Out:
        sites = self.handle.sites(taps)
        with torch.no_grad():
            got, self.seconds = self.forwards.ask("t", step, view, x, Wish(tuple(sites.values()), head))
        return self.handle.assemble(got, sites)


def own_forward(handle: NetHandle, x: torch.Tensor) -> Out:
    """What a cell gets that asks its own teacher."""
    sites = handle.sites()
    with torch.no_grad():
        return handle.assemble(handle.capture(x, sites.values(), frozen=True), sites)


def same(a: Out, b: Out) -> None:
    assert torch.equal(a.logits, b.logits)
    assert torch.equal(a.pooled, b.pooled)
    assert list(a.feats) == list(b.feats)
    for tap in a.feats:
        assert torch.equal(a.feats[tap], b.feats[tap])
        assert a.feats[tap].stride() == b.feats[tap].stride()


def test_it_is_made_once_a_step_and_is_that_of_the_cell(teacher: NetHandle) -> None:
    shared = Shared(teacher)
    for step in range(2):
        x = images(step)
        own = own_forward(teacher, x)
        same(shared.ask(step, x), own)
        assert shared.seconds == 0.0
        for _ in range(2):
            same(shared.ask(step, x), own)
            assert shared.seconds > 0.0
    assert shared.runs == 2


def test_writes_reach_nobody(teacher: NetHandle) -> None:
    shared, x = Shared(teacher), images()
    own = own_forward(teacher, x)
    for _ in range(3):
        out = shared.ask(0, x)
        same(out, own)
        out.logits.zero_()
        out.pooled.add_(1.0)
        for value in out.feats.values():
            value.fill_(-1.0)
    assert shared.runs == 1


def test_what_the_cells_read_is_taken_at_once(teacher: NetHandle) -> None:
    every = list(teacher.sites().values())
    shared, x = Shared(teacher, lambda: every), images()
    assert list(shared.ask(0, x, []).feats) == []
    assert list(shared.ask(0, x, [Tap(0)]).feats) == [Tap(0)]
    shared.ask(0, x)
    assert shared.runs == 1


def test_what_was_asked_for_late_is_taken_from_then_on(teacher: NetHandle) -> None:
    shared = Shared(teacher)
    for step in range(3):
        x = images(step)
        shared.ask(step, x, [])
        shared.ask(step, x, [Tap(0)])
    assert shared.runs == 2 + 1 + 1  # twice in the first step, when nobody could know


def test_views_and_autocast_states_are_apart(teacher: NetHandle) -> None:
    shared, x = Shared(teacher), images()
    shared.ask(0, x)
    shared.ask(0, images(1), view="strong")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = shared.ask(0, x, [])
    assert out.logits.dtype is torch.bfloat16
    assert shared.runs == 3


def test_forwards_by_batch_statistics_are_apart_and_drift_nowhere(teacher: NetHandle) -> None:
    shared, x = Shared(teacher), images()
    sites = tuple(teacher.sites().values())
    shared.ask(0, x)
    before = {k: v.clone() for k, v in shared.forwards._teachers["t"].net.state_dict().items()}
    with torch.no_grad(), batch_statistics(teacher.net):
        own = teacher.assemble(teacher.capture(x, sites), teacher.sites())
    for times in range(2):
        with torch.no_grad():
            got, seconds = shared.forwards.ask("t", 0, "", x, Wish(sites, True, by_batch=True))
        assert got is not None
        same(teacher.assemble(got, teacher.sites()), own)
        assert (seconds > 0.0) == bool(times)
    assert shared.runs == 2
    after = shared.forwards._teachers["t"].net.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    same(shared.ask(0, x), own_forward(teacher, x))


def test_nobody_reaches_the_teacher_that_answers(teacher: NetHandle) -> None:
    shared, x = Shared(teacher), images()
    own = own_forward(teacher, x)
    teacher.net.fc.weight.data.zero_()
    same(shared.ask(0, x), own)


class Drawing(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + torch.rand(())


class Writing(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.mul_(2.0))


class Uncopied(Net):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("one of its kind")


@pytest.mark.parametrize("net", [Drawing, Writing])
def test_a_forward_that_does_more_than_compute_is_not_shared(tmp_path: Path, net: type[nn.Module]) -> None:
    shared, x = Shared(make_run(tmp_path, net=net).teacher), images()
    assert shared.forwards.shareable("t")
    before = torch.get_rng_state()
    with torch.no_grad():
        assert shared.forwards.ask("t", 0, "", x, Wish((), True)) == (None, 0.0)
    assert not shared.forwards.shareable("t")
    # the cell asks its own teacher now, and finds everything as it was
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(x, images())


def test_a_teacher_that_cannot_be_copied_is_not_shared(tmp_path: Path) -> None:
    forwards = Forwards(lambda digest: ())
    forwards.adopt(make_run(tmp_path, net=Uncopied).teacher, "t")
    assert not forwards.shareable("t")


def test_equal_teachers_have_equal_digests(tmp_path: Path) -> None:
    one, two = (make_run(tmp_path).teacher for _ in range(2))
    digest = seal(one).digest
    assert seal(two).digest == digest
    other = SOURCE.model_copy(update={"architecture": Arch(name="net", args={"width": 3})})
    assert seal(two, other).digest != digest
    with torch.no_grad():
        two.net.fc.bias[0] += 1e-6
    assert seal(two).digest != digest


def _write(net: Net) -> Callable[[], Any] | None:
    with torch.no_grad():
        net.conv1.weight.mul_(1.0)
    return None


def _statistics(net: Net) -> Callable[[], Any] | None:
    net.bn1.running_mean.add_(1.0)
    return None


def _mode(net: Net) -> Callable[[], Any]:
    net.bn1.train()
    return net.bn1.eval


def _replaced(net: Net) -> Callable[[], Any]:
    old = net.act1
    net.act1 = nn.ReLU()
    return lambda: setattr(net, "act1", old)


def _hooked(net: Net) -> Callable[[], Any]:
    return net.conv2.register_forward_hook(lambda *_: None).remove


def _patched(net: Net) -> Callable[[], Any]:
    net.act2.forward = lambda x: x
    return lambda: delattr(net.act2, "forward")


def _parameter(net: Net) -> Callable[[], Any]:
    old = net.fc.weight
    net.fc.weight = nn.Parameter(old.detach().clone())
    return lambda: setattr(net.fc, "weight", old)


@pytest.mark.parametrize("change", [_write, _statistics, _mode, _replaced, _hooked, _patched, _parameter])
def test_a_changed_teacher_is_its_cells_own_affair(
    teacher: NetHandle, change: Callable[[Any], Callable[[], Any] | None]
) -> None:
    stamp = seal(teacher)
    assert stamp.holds()
    with torch.no_grad():
        teacher(images())
    assert stamp.holds()
    undo = change(teacher.net)
    assert not stamp.holds()
    if undo is not None:
        undo()
        assert stamp.holds()


def test_the_head_runs_only_where_somebody_reads_it(teacher: NetHandle) -> None:
    shared, x = Shared(teacher), images()
    ran: list[str] = []
    shared.forwards._teachers["t"].net.fc.register_forward_hook(lambda *_: ran.append("fc"))
    cut = shared.ask(0, x, head=False)
    assert not ran
    assert cut.pooled is None
    with pytest.raises(NotAsked):
        cut.logits.sum()
    assert shared.ask(0, x).logits.shape == (4, 3)
    assert ran == ["fc"]
    again = shared.ask(0, x, head=False)  # the same as before, though the head has run by now
    assert again.pooled is None
    assert shared.runs == 2


def test_what_is_read_before_batchnorm_does_not_change_what_others_get(teacher: NetHandle) -> None:
    own, raw = own_forward(teacher, images()), Tap("conv2")
    for first in (False, True):
        shared, x = Shared(teacher, lambda: teacher.sites([raw, Tap(0)]).values()), images()
        for early in (first, not first):
            if early:
                with torch.no_grad():
                    expected = teacher(x, [raw])
                assert torch.equal(shared.ask(0, x, [raw]).feats[raw], expected.feats[raw])
            else:
                same(shared.ask(0, x), own)
        assert shared.runs == 2
