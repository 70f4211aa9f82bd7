"""Ctrl-C, and SIGTERM, as a wish to leave."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def asked_to_stop(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` for every SIGINT and SIGTERM that comes during the block."""

    def handle(number: int, frame: Any) -> None:
        act()

    old: dict[int, Callable[..., Any] | int | None] = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        old[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
