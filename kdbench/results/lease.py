"""Leases: locks between processes of several machines, by nothing but files of a shared folder.

A lease is a file ``<name>-<number>``. Who wants it writes a file of its own and links it to the next number:
`link` succeeds for one taker only, also over NFS, where `flock` may hold on one machine and not on another. The
holder renews the file's time; a lease whose time stands still has expired, and the next number may be taken. The
taker removes the earlier number before it does anything else, so that a holder that was thought dead and is not
finds its file gone (:meth:`Lease.check`) and stops. The numbers are the fencing tokens of Gray and Cheriton's
leases (SOSP 1989).

Times are compared only with each other, as the file server gives them; how long nothing changed is measured by
the taker's own monotonic clock. No clock of any machine has to be right.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kdbench.errors import KdbenchError

#: Seconds after which a holder that says nothing counts as gone, where ``KDBENCH_LEASE_S`` does not say.
EXPIRY_S = 60.0
#: Signs of life in that time.
BEATS = 6
NAME = ".lease"


class LeaseLost(KdbenchError):
    """Another process took over what this one was working on: it writes nothing more."""


@dataclass(frozen=True)
class Holder:
    """Who has a lease, as its file says. `beat_ns` is the file server's time of the last sign of life."""

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


def expiry_s() -> float:
    """Return the seconds after which a silent holder counts as gone. Raises KdbenchError."""
    text = os.environ.get("KDBENCH_LEASE_S", "").strip()
    try:
        seconds = float(text) if text else EXPIRY_S
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < 1e6:
        raise KdbenchError(f"KDBENCH_LEASE_S={text}: expected seconds, such as {EXPIRY_S:g}")
    return seconds


class Lease:
    """The right to work on a folder. One object is one taker.

    Args:
        folder: what is leased; it must exist.
        name: start of the names of the lease's files.
        expiry: seconds after which this holder counts as gone when it says nothing.
    """

    def __init__(self, folder: Path, name: str = NAME, expiry: float | None = None) -> None:
        self._folder, self._name = folder, name
        self._expiry = expiry_s() if expiry is None else expiry
        self._file: Path | None = None
        self._token, self._pid = "", os.getpid()
        self._judged: Holder | None = None
        self._seen: tuple[object, float] | None = None
        self._ended = threading.Event()
        self._gone = False

    def take(self) -> bool:
        """Take the lease if it is free, or its holder is gone. Raises OSError."""
        if self.taken:
            return True
        newest = newest_holder(self._folder, self._name)
        if newest is not None and not self._silent(newest):
            return False
        self._token = secrets.token_hex(8)
        temp = self._folder / f"{self._name}.{self._token}.tmp"
        try:
            temp.write_text(json.dumps(_myself(self._token, self._expiry)))
            now_ns = temp.stat().st_mtime_ns
            while (number := self._next(now_ns)) is not None:
                if self._link(temp, number):
                    self._file = self._path(number)
                    threading.Thread(target=self._renew, name="kdbench-lease", daemon=True).start()
                    return True
            return False
        finally:
            temp.unlink(missing_ok=True)

    def wait(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Wait until the lease is taken, or `stop` says so; returns whether it is taken. Raises OSError."""
        pause = 0.02
        while not self.take():
            if stop():
                return False
            time.sleep(pause)
            pause = min(2 * pause, 1.0, self._expiry / BEATS)
        return True

    def settle(self) -> bool:
        """Take the lease, or return False at the first sign that its holder lives. Raises OSError.

        Of a holder on another machine that may take a beat, and :data:`EXPIRY_S` to tell that it is gone.
        """
        first = None
        while not self.take():
            holder = self.holder()
            if holder is None:
                continue
            what = (holder.number, holder.token, holder.beat_ns)
            first = first or what
            if _alive(holder) or what != first:
                return False
            time.sleep(min(0.2, self._expiry / BEATS / 4))
        return True

    def holder(self) -> Holder | None:
        """Return who has it, or None."""
        return newest_holder(self._folder, self._name)

    @property
    def taken(self) -> bool:
        """Whether :meth:`take` succeeded and :meth:`close` was not called."""
        return self._file is not None

    @property
    def lost(self) -> bool:
        """Whether a renewal found that another process took over. Costs nothing; :meth:`check` is exact."""
        return self._gone

    def check(self) -> None:
        """Look at the file before something is written for good. Raises LeaseLost."""
        mine = None if self._file is None else _read(self._file, 0)
        if mine is None or mine.token != self._token:
            self._gone = True
            now = self.holder()
            raise LeaseLost(f"{self._folder}: {now or 'another process'} took over; nothing is written here")

    def close(self) -> None:
        """Let it go, if it is held."""
        self._ended.set()
        if self._file is None or os.getpid() != self._pid:
            return
        with contextlib.suppress(LeaseLost, OSError):
            self.check()
            self._file.unlink(missing_ok=True)
        self._file = None

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._name}-{number}"

    def _next(self, now_ns: int) -> int | None:
        """Return the number to take, or None while somebody has the lease."""
        self._judged = newest_holder(self._folder, self._name)
        if self._judged is None:
            return 1
        return self._judged.number + 1 if self._over(self._judged, now_ns) else None

    def _link(self, temp: Path, number: int) -> bool:
        mine = self._path(number)
        try:
            os.link(temp, mine)
        except OSError as error:
            # over NFS the answer to a link that was made may be lost, and the second attempt fails
            if temp.stat().st_nlink < 2:
                if error.errno == errno.EEXIST:
                    return False
                raise
        judged = self._judged
        numbers = _numbers(self._folder, self._name)
        before = None if judged is None else _read(self._path(judged.number), judged.number)
        changed = judged is not None and before is not None and before.token != judged.token
        if max(numbers, default=0) > number or changed:  # what was looked at is not what there is
            mine.unlink(missing_ok=True)
            return False
        for earlier in numbers:
            if earlier < number:
                self._path(earlier).unlink(missing_ok=True)
        return True

    def _silent(self, holder: Holder) -> bool:
        """Return whether it is worth asking the file server for its time: nothing changed since the last look."""
        alive = _alive(holder)
        if alive is not None:
            return not alive
        what = (holder.number, holder.token, holder.beat_ns)
        if self._seen is None or self._seen[0] != what:
            self._seen = what, time.monotonic()
            return False
        return True

    def _over(self, holder: Holder, now_ns: int) -> bool:
        if not self._silent(holder):
            return False
        if _alive(holder) is False:
            return True
        assert self._seen is not None
        watched = time.monotonic() - self._seen[1]
        old = (now_ns - holder.beat_ns) / 1e9 >= holder.expiry_s
        # the server's clock alone may have been set forward; two beats without a sign confirm it
        return watched >= (2 / BEATS if old else 1.0) * holder.expiry_s

    def _renew(self) -> None:
        while not self._ended.wait(self._expiry / BEATS):
            file = self._file
            if file is None:
                return
            try:
                os.utime(file)
            except FileNotFoundError:
                self._gone = True
                return
            except OSError as error:
                # a server that does not answer may come back; what is written is checked anyway
                if error.errno == errno.ESTALE:
                    self._gone = True
                    return


def newest_holder(folder: Path, name: str = NAME) -> Holder | None:
    """Return who has the lease of a folder, dead or alive; None where nobody has."""
    for number in sorted(_numbers(folder, name), reverse=True):
        if (found := _read(folder / f"{name}-{number}", number)) is not None:
            return found
    return None


def _numbers(folder: Path, name: str) -> list[int]:
    pattern = re.compile(re.escape(name) + r"-(\d{1,9})\Z")
    try:
        return [int(m[1]) for n in os.listdir(folder) if (m := pattern.match(n))]
    except FileNotFoundError:
        return []


def _read(path: Path, number: int) -> Holder | None:
    """Read a lease; opening it makes an NFS client ask its server. None where the file is gone."""
    try:
        with path.open("rb") as file:
            beat = os.fstat(file.fileno()).st_mtime_ns
            data = file.read(4096)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return None
        raise
    known = {"token": "", "host": "", "pid": 0, "machine": "", "born": 0, "expiry_s": EXPIRY_S}
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        read = json.loads(data)
        known |= {k: read[k] for k, v in known.items() if isinstance(read.get(k), (type(v), int))}
    return Holder(number=number, beat_ns=beat, **known)  # type: ignore[arg-type]


def _myself(token: str, expiry: float) -> dict[str, object]:
    pid = os.getpid()
    me = {"token": token, "host": socket.gethostname(), "pid": pid, "machine": _machine()}
    return {**me, "born": _born(pid) or 0, "expiry_s": expiry}


@cache
def _machine() -> str:
    """Return what process numbers are unique in: a boot of a machine, and there a namespace; empty: unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None where it is gone or a corpse."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        # of a killed process the first thread may be gone before the others are
        dead = fields[0] in "ZX" and len(os.listdir(f"/proc/{pid}/task")) < 2
    except (OSError, IndexError):
        return None
    return None if dead else int(fields[19])


def gone(holder: Holder) -> bool:
    """Return whether a holder is surely gone: a process of this machine that is no more."""
    return _alive(holder) is False


def _alive(holder: Holder) -> bool | None:
    """Return whether the holder lives, where it is a process of this machine; None where it cannot be told."""
    if not holder.machine or holder.machine != _machine():
        return None
    return _born(holder.pid) == holder.born
