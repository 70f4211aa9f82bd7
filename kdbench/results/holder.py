"""Who has a lease, as its file says, and whether that process lives."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

#: Seconds after which a holder that says nothing counts as gone, where ``KDBENCH_LEASE_S`` does not say.
EXPIRY_S = 60.0
#: No holder may be silent for longer than this, in seconds.
MOST_S = 1e6
NAME = ".lease"


@dataclass(frozen=True)
class Holder:
    """The content of a lease. `beat_ns` is the file server's time of the last sign of life.

    Attributes:
        machine: what process numbers are unique in, see :func:`_machine`; empty: unknown.
        born: when the process started, in clock ticks since the machine's boot.
    """

    number: int
    token: str
    host: str
    pid: int
    machine: str
    born: int
    expiry_s: float
    beat_ns: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" if self.pid else "another process"


def newest_holder(folder: Path, name: str = NAME) -> Holder | None:
    """Return who has the lease of a folder, dead or alive; None where nobody has. Raises OSError."""
    for number in sorted(numbers(folder, name), reverse=True):
        if (found := read_holder(folder / f"{name}-{number}", number)) is not None:
            return found
    return None


def numbers(folder: Path, name: str = NAME) -> list[int]:
    """Return the numbers of the leases that a folder has: one, or two for a moment, or what killed takers left."""
    pattern = re.compile(re.escape(name) + r"-([1-9]\d{0,17})\Z")
    try:
        return [int(m[1]) for n in os.listdir(folder) if (m := pattern.match(n))]
    except FileNotFoundError:
        return []


def read_holder(path: Path, number: int = 0) -> Holder | None:
    """Read a lease; opening it makes an NFS client ask its server. None where the file is gone. Raises OSError."""
    try:
        with path.open("rb") as file:
            beat = os.fstat(file.fileno()).st_mtime_ns
            data = file.read(4096)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return None
        raise
    known = {
        "token": "",  # nosec B105 - no password
        "host": "",
        "pid": 0,
        "machine": "",
        "born": 0,
        "expiry_s": EXPIRY_S,
    }
    with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
        read = json.loads(data)
        known |= {k: read[k] for k, v in known.items() if isinstance(read.get(k), (type(v), int))}
    if not 0.0 < known["expiry_s"] < MOST_S:  # type: ignore[operator]
        known["expiry_s"] = EXPIRY_S
    return Holder(number=number, beat_ns=beat, **known)  # type: ignore[arg-type]


def myself(token: str, expiry: float) -> str:
    """Return the content of a lease of this process."""
    pid = os.getpid()
    me = {"token": token, "host": socket.gethostname(), "pid": pid, "machine": _machine()}
    return json.dumps({**me, "born": _born(pid) or 0, "expiry_s": expiry})


def alive(holder: Holder) -> bool | None:
    """Return whether the holder lives, where it is a process of this machine; None where it cannot be told."""
    if not holder.machine or holder.machine != _machine():
        return None
    try:
        born = _born(holder.pid)
    except OSError:  # it may live: too many open files, for one
        return None
    if born is None:
        try:
            os.kill(holder.pid, 0)
        except PermissionError:  # of another user, whose processes this machine does not show
            return None
        except (OSError, OverflowError):
            return False
    return born == holder.born


@cache
def _machine() -> str:
    """Return what process numbers are unique in: a boot of a machine, and there a namespace; empty: unknown.

    With the name of the machine, since copies of one that was saved while it ran have its boot in common.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {socket.gethostname()}"
    except OSError:
        return ""


def _born(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None: it is gone or a corpse. Raises OSError."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        # of a killed process the first thread may be gone before the others are
        dead = fields[0] in "ZX" and len(os.listdir(f"/proc/{pid}/task")) < 2
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return None
    return None if dead else int(fields[19])
