"""Batches that are made once for several cells: the same images for all, and nobody's writes for any."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch

from kdbench.engine.clock import TurnClock
from kdbench.engine.exchange import Exchange, Hand, Lead
from kdbench.protocol.types import Batch


class Counted:
    """A stream of four batches that counts what it makes."""

    def __init__(self) -> None:
        self.made: list[tuple[int, int]] = []
        self.starts: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return 4

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        self.starts.append((epoch, start))
        for step in range(start, 4):
            self.made.append((epoch, step))
            x = torch.full((2, 1, 2, 2), float(10 * epoch + step))
            yield Batch(x, torch.tensor([0, 1]), torch.tensor([step, step]), (x + 0.5,), {"more": x.clone()})


@pytest.fixture
def stream() -> Counted:
    return Counted()


def hand() -> Hand:
    return Hand(TurnClock(torch.device("cpu")))


def test_cells_abreast_get_one_batch(stream: Counted) -> None:
    lead = Lead(stream)
    for epoch in range(2):
        for step in range(4):
            first, seconds = lead.get((epoch, step))
            assert seconds == 0.0  # on the clock of the cell that had it made
            for _ in range(2):
                again, seconds = lead.get((epoch, step))
                assert again is first
                assert seconds > 0.0
            assert first.x.eq(10 * epoch + step).all()
    assert stream.starts == [(0, 0), (1, 0)]
    assert len(stream.made) == 8


def test_a_cell_that_is_elsewhere_begins_a_reading_of_its_own(stream: Counted) -> None:
    lead = Lead(stream)
    for at in [(0, 0), (2, 3), (0, 1), (0, 2)]:
        assert lead.get(at)[0].x.eq(10 * at[0] + at[1]).all()
    assert stream.starts == [(0, 0), (2, 3), (0, 1)]


def test_writes_stay_with_their_cell(stream: Counted) -> None:
    batch, _ = Lead(stream).get((1, 2))
    one, two = hand(), hand()
    mine = one.give(batch, (1, 2), ("weak",), 0.0)
    mine.x.zero_()
    mine.views[0].zero_()
    mine.y.zero_()
    mine.index.zero_()
    mine.extra["more"].zero_()
    theirs = two.give(batch, (1, 2), ("weak",), 0.5)
    assert theirs.x.eq(12.0).all()
    assert theirs.views[0].eq(12.5).all()
    assert theirs.y.tolist() == [0, 1]
    assert theirs.index.tolist() == [2, 2]
    assert theirs.extra["more"].eq(12.0).all()
    assert two.clock.take() == 0.5


def test_images_are_known_until_they_are_written_into(stream: Counted) -> None:
    lead, mine = Lead(stream), hand()
    made = lead.get((0, 1))[0]
    batch = mine.give(made, (0, 1), ("weak",), 0.0)
    assert mine.find(batch.x) == ((0, 1), "", made.x)
    assert mine.find(batch.x.detach()) == ((0, 1), "", made.x)
    assert mine.find(batch.views[0]) == ((0, 1), "weak", made.views[0])
    assert mine.find(made.x) is None
    assert mine.find(batch.x.detach().requires_grad_()) is None
    assert mine.find(batch.x.transpose(2, 3)) is None
    assert mine.find(batch.x.clone()) is None
    assert mine.find(batch.x[:1]) is None
    batch.x.add_(1.0)
    assert mine.find(batch.x) is None
    assert mine.find(batch.x.detach()) is None
    assert mine.find(batch.views[0])[:2] == ((0, 1), "weak")
    old = batch.views[0]
    mine.give(lead.get((0, 2))[0], (0, 2), ("weak",), 0.0)
    assert mine.find(old) is None


def test_the_first_to_ask_makes_it(stream: Counted) -> None:
    exchange = Exchange()
    other = Counted()
    assert exchange.lead((), lambda: stream).stream is stream
    assert exchange.lead((), lambda: other).stream is stream
    assert exchange.lead(("strong",), lambda: other).stream is other
    assert exchange.split("val", lambda: [1]) == [1]
    assert exchange.split("val", lambda: [2]) == [1]
    assert copy.deepcopy({"cell": exchange})["cell"] is exchange
