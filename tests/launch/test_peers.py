"""How the processes of a cell find one another."""

from __future__ import annotations

import json
import socket
import struct
import threading

from kdbench.launch.peers import Peers, Seat


class Store:
    """What the processes have in common, with a stranger who is there first and hangs up."""

    def __init__(self) -> None:
        self.line, self.there = "", threading.Event()

    def set(self, key: str, value: str) -> None:
        self.line = value
        host, port, _ = json.loads(value)
        stranger = socket.create_connection((host, port))
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stranger.close()
        self.there.set()

    def get(self, key: str) -> str:
        assert self.there.wait(10)
        return self.line


def test_a_stranger_who_hangs_up_keeps_nobody_from_meeting() -> None:
    store, met = Store(), []

    def come(rank: int) -> None:
        peers = Peers.__new__(Peers)
        peers.seat, peers._connections = Seat(rank, 2, "", here=True), {}
        peers._hear = lambda number, lines: None  # type: ignore[method-assign]
        peers._connect(store)
        met.append(rank)
        for connection in peers._connections.values():
            connection.close()

    follower = threading.Thread(target=come, args=(1,))
    follower.start()
    try:
        come(0)
    finally:
        follower.join(10)
    assert sorted(met) == [0, 1]
