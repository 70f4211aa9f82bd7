"""Processes that train one cell together: how they find one another, and how they learn that one is gone.

Collectives of torch wait for a process that died until they time out. So every process keeps a connection to the
leading one, which tells at once: whoever's connection closes without a farewell is lost, and then all end.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import tempfile
import threading
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

from kdbench.errors import KdbenchError

#: Tells a worker, beside its environment, how many processes it is to be.
PROCESSES = "_KDBENCH_PROCESSES"
#: Within which all must have come, and how long a collective may wait: liveness is not torch's affair here.
MEETING, PATIENCE = timedelta(minutes=10), timedelta(days=30)
#: Seconds that the leading process has to end by itself once another has failed; many errors come to all.
GRACE_S = 1.0
#: Seconds after which a process that failed leaves, even if nobody heard of it.
HEARD_S = 30.0


@dataclass(frozen=True)
class Seat:
    """A process's place: its number, how many there are, where they meet, whether all are on this machine."""

    rank: int
    size: int
    meeting: str
    here: bool


@dataclass(frozen=True)
class Loss:
    """Why a cell cannot go on: what became of another of its processes."""

    status: str
    type: str
    message: str
    traceback: str | None = None


def seat_of_environment(environment: MutableMapping[str, str] = os.environ) -> Seat | None:
    """Return this process's seat as ``torchrun`` gives it, or None for one that is alone.

    Where each process has a GPU, it sees that one from now on; this must be called before CUDA is used.
    Raises KdbenchError for variables that are not what torchrun sets.
    """
    try:
        size = int(environment.get("WORLD_SIZE", "1"))
        if size < 2 or "RANK" not in environment:
            return None
        rank = int(environment["RANK"])
        local, beside = (
            int(environment.get(k, d)) for k, d in (("LOCAL_RANK", rank), ("LOCAL_WORLD_SIZE", size))
        )
    except ValueError as e:
        raise KdbenchError(f"RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE must be numbers: {e}") from e
    if not 0 <= rank < size:
        raise KdbenchError(f"RANK is {rank}, and WORLD_SIZE is {size}: expected 0 to {size - 1}")
    take_gpu(local, environment)
    return Seat(rank, size, "env://", here=beside == size)


def spread(size: int) -> Seat:
    """Become `size` processes by forking; each gets its seat. No thread may run yet, and CUDA not be in use."""
    folder = Path(tempfile.mkdtemp(prefix="kdbench-"))
    meeting = f"file://{folder / 'meeting'}"
    # all are on this machine, whatever its name resolves to
    names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    for key in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if names:
            os.environ.setdefault(key, names[0])
    rank = next((k for k in range(1, size) if os.fork() == 0), 0)
    take_gpu(rank)
    return Seat(rank, size, meeting, here=True)


def take_gpu(number: int, environment: MutableMapping[str, str] = os.environ) -> None:
    """Let this process see one of its visible GPUs only, if there are several."""
    visible = [v for v in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if v]
    if not visible:
        from kdbench.launch.system import has_gpu_driver

        if has_gpu_driver():
            environment["CUDA_VISIBLE_DEVICES"] = str(number)
    elif number < len(visible):
        environment["CUDA_VISIBLE_DEVICES"] = visible[number]


class Peers:
    """The other processes of a cell, met.

    Args:
        seat: of this process.
        device: where the cell runs; decides the backend.
        lost: called in a thread when another process is lost or failed, unless this one :meth:`claim`-ed the
            end of the cell within :data:`GRACE_S`; must end the process.
        over: called in a thread with an exit code when the leading process has nothing to do here; likewise.

    Raises KdbenchError when they do not come together.
    """

    def __init__(
        self, seat: Seat, device: str, lost: Callable[[Loss], None], over: Callable[[int], None]
    ) -> None:
        from kdbench.engine.together.group import Group

        self.seat, self._lost, self._over = seat, lost, over
        self.loss: Loss | None = None
        self._told, self._claimed, self._heard = threading.Event(), threading.Event(), threading.Event()
        self._ended = False
        self._lock = threading.Lock()
        self._connections: dict[int, socket.socket] = {}
        self._meet(device)
        self.group = Group(seat.rank, seat.size)

    def claim(self) -> bool:
        """Take it on this thread to write how the cell ended; false when another thread has."""
        with self._lock:
            first = not self._claimed.is_set()
            self._claimed.set()
            return first

    def cause(self) -> Loss | None:
        """Return what became of another process, after an error that says that one cannot be reached."""
        self._told.wait(HEARD_S / 3)
        return self.loss

    def fail(self, loss: Loss) -> None:
        """Tell the leading process that this one failed, and wait until it has written that down."""
        self._say({"failed": vars(loss)})
        self._heard.wait(HEARD_S)

    def dismiss(self, code: int) -> None:
        """Send the others away with an exit code: the cell is done already, or another's."""
        self._ended = True
        self._say({"over": code})
        self.tidy()

    def leave(self) -> None:
        """Part with the others, who know that this one did nothing wrong."""
        import torch.distributed as dist

        self._ended = True
        self._say({"farewell": True})
        with contextlib.suppress(Exception):
            dist.destroy_process_group()
        self.tidy()

    def tidy(self) -> None:
        """Remove the file at which the processes met; nobody needs it any more."""
        if self.seat.rank == 0 and self.seat.meeting.startswith("file://"):
            path = Path(self.seat.meeting.removeprefix("file://"))
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                path.parent.rmdir()

    def _meet(self, device: str) -> None:
        import torch.distributed as dist

        seat = self.seat
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        try:
            store, _, _ = next(dist.rendezvous(seat.meeting, seat.rank, seat.size, timeout=MEETING))
            store.set_timeout(MEETING)
            self._connect(dist.PrefixStore("kdbench", store))
            dist.init_process_group(
                backend, store=store, rank=seat.rank, world_size=seat.size, timeout=PATIENCE
            )
        except (RuntimeError, OSError, ValueError) as e:
            text = str(e).splitlines()[0][:200]
            raise KdbenchError(f"the {seat.size} processes of the cell did not meet: {text}") from e

    def _connect(self, store: Any) -> None:
        rank, size = self.seat.rank, self.seat.size
        if rank:
            host, port, token = json.loads(store.get("line"))
            connection = socket.create_connection((host, port), timeout=MEETING.total_seconds())
            connection.sendall(json.dumps([token, rank]).encode() + b"\n")
            self._listen(0, connection, connection.makefile("rb"))
            return
        token = secrets.token_hex(16)
        host = "127.0.0.1" if self.seat.here else socket.gethostname()
        with socket.create_server(("127.0.0.1" if self.seat.here else "", 0)) as server:
            server.settimeout(MEETING.total_seconds())
            store.set("line", json.dumps([host, server.getsockname()[1], token]))
            while len(self._connections) < size - 1:
                connection, _ = server.accept()
                connection.settimeout(MEETING.total_seconds())
                lines = connection.makefile("rb")
                # of a stranger who looks which ports are open
                with contextlib.suppress(ValueError, TypeError, OSError):
                    given, number = json.loads(lines.readline(1024))
                    if given == token and number in range(1, size):
                        self._listen(number, connection, lines)
                        continue
                connection.close()

    def _listen(self, number: int, connection: socket.socket, lines: BinaryIO) -> None:
        connection.settimeout(None)
        self._connections[number] = connection
        threading.Thread(target=self._hear, args=(number, lines), daemon=True).start()

    def _hear(self, number: int, lines: BinaryIO) -> None:
        """Take in the one message of another process: it failed, or leaves; without one it is lost."""
        try:
            said = json.loads(lines.readline())
        except (OSError, ValueError):
            said = {}
        if "farewell" in said:
            return
        if "over" in said:
            self._over(int(said["over"]))
            return
        self._heard.set()
        if self._ended:
            return
        if "failed" in said:
            self._lose(Loss(**said["failed"]))
            return
        who = f"process {number} of the {self.seat.size} of this cell"
        message = f"{who} ended without a word: killed, or for want of memory; --rerun failed goes on"
        self._lose(Loss("crashed", "ProcessLost", message))

    def _lose(self, loss: Loss) -> None:
        self.loss = self.loss or loss
        self._told.set()
        if self._claimed.wait(GRACE_S) or not self.claim():
            return
        self.tidy()
        self._lost(self.loss)

    def _say(self, what: dict[str, Any]) -> None:
        for connection in self._connections.values():
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(what).encode() + b"\n")
