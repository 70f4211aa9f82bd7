"""BatchNorm of frozen teachers: batch statistics without drift of the running ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from kdbench.engine.trace import is_batchnorm


@contextmanager
def batch_statistics(net: nn.Module) -> Iterator[None]:
    """Let BatchNorm layers normalise by the batch, leaving running statistics and step counters as they are.

    Dropout and the like stay in eval mode. With ``track_running_stats`` off, torch neither reads nor writes
    the running statistics; setting momentum to 0 would still count batches.
    """
    layers = [(m, m.training, m.track_running_stats) for m in net.modules() if is_batchnorm(m)]
    try:
        for m, _, _ in layers:
            m.training, m.track_running_stats = True, False
        yield
    finally:
        for m, training, track in layers:
            m.training, m.track_running_stats = training, track
