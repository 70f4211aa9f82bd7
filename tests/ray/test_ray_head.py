"""A head that is not there, or is no head: told in a line, before Ray would tell it in many."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from kdbench.api import KdbenchError
from kdbench_launchers.ray import cluster
from kdbench_launchers.ray.options import Options


@contextmanager
def answering(what: bytes) -> Iterator[str]:
    """Give the address of something that answers once."""
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.recv(100)
                connection.sendall(what)

        pool.submit(answer)
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_something_else_at_the_address() -> None:
    with answering(b"HTTP/1.0 400 Bad Request") as address:
        line = f"^no Ray cluster at {address}: what answers there is something else$"
        with pytest.raises(KdbenchError, match=line), cluster.connected(Options(address=address)):
            pass


def test_a_head_at_the_address() -> None:
    with answering(bytes(3) + b"\x04" + bytes(5)) as address:
        cluster._reach(address)


def test_auto_leads_to_a_head_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_found", lambda: "127.0.0.1:9")
    line = r"^no Ray cluster at 127\.0\.0\.1:9: "
    with pytest.raises(KdbenchError, match=line), cluster.connected(Options(address="auto")):
        pass


def test_a_head_may_be_away_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        head = cluster._Head(address)
        clock[0] = 100.0
        head.check()
    for clock[0] in (110.0, 129.0):
        head.check()
    clock[0] = 140.0
    with pytest.raises(KdbenchError, match=f"^Ray's head at {address} is gone"):
        head.check()
