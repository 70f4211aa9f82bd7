"""Leases: locks between processes of several machines, by nothing but files of a shared folder.

A lease is a file ``<name>-<number>``. Who wants it writes a file of its own and links it to the next number:
`link` succeeds for one taker only, also over NFS, where `flock` may hold on one machine and not on another. The
holder renews the file's time; a lease whose time stands still has expired, and the next number may be taken. The
taker removes the earlier number before it does anything else, so that a holder that was thought dead and is not
finds its file gone (:meth:`Lease.check`) and stops. The numbers are the fencing tokens of Gray and Cheriton's
leases (SOSP 1989); what is between the look and the write is in :mod:`kdbench.results.fence`.

Times are compared only with each other, as the file server gives them; how long nothing changed is measured by
the taker's own monotonic clock. No clock of any machine has to be right.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

from kdbench.errors import KdbenchError
from kdbench.results.holder import (
    EXPIRY_S,
    MOST_S,
    NAME,
    Holder,
    alive,
    myself,
    newest_holder,
    numbers,
    read_holder,
)

#: Signs of life in the time after which a holder counts as gone.
BEATS = 6
#: What `link` answers where a file system has no hard links.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class LeaseLost(KdbenchError):
    """Another process took over what this one was working on: it writes nothing more."""


def expiry_s() -> float:
    """Return the seconds after which a silent holder counts as gone. Raises KdbenchError."""
    text = os.environ.get("KDBENCH_LEASE_S", "").strip()
    try:
        seconds = float(text) if text else EXPIRY_S
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < MOST_S:
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
        self._number = 0
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
            temp.write_text(myself(self._token, self._expiry))
            now_ns = temp.stat().st_mtime_ns
            while (number := self._next(now_ns)) is not None:
                if self._link(temp, number):
                    self._file, self._number = self._path(number), number
                    self._sweep(now_ns)
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
            if alive(holder) or what != first:
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
    def inherited(self) -> bool:
        """Whether it was taken from a holder that is gone, which may have left anything behind."""
        return self._number > 1

    @property
    def lost(self) -> bool:
        """Whether a renewal found that another process took over. Costs nothing; :meth:`check` is exact."""
        return self._gone

    def check(self) -> None:
        """Look at the file before something is written for good. Raises LeaseLost."""
        mine = None if self._file is None else read_holder(self._file)
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
            self._put(temp, mine)
        except FileExistsError:
            return False
        earlier = [n for n in numbers(self._folder, self._name) if n != number]
        if max(earlier, default=0) > number or self._changed(
            earlier
        ):  # what was looked at is not what there is
            mine.unlink(missing_ok=True)
            return False
        for n in earlier:
            self._path(n).unlink(missing_ok=True)
        return True

    def _put(self, temp: Path, mine: Path) -> None:
        """Make the lease, which is not there. Raises FileExistsError where it is, OSError."""
        try:
            os.link(temp, mine)
        except OSError as error:
            # over NFS the answer to a link that was made may be lost, and the second attempt fails
            if temp.stat().st_nlink > 1:
                return
            if error.errno not in _NO_LINKS:
                raise
            # as exclusive, but empty for a moment: an empty lease expires like any other
            with mine.open("xb") as file:
                file.write(temp.read_bytes())

    def _changed(self, earlier: list[int]) -> bool:
        """Return whether the lease that was judged made way for another one, which nobody judged."""
        judged = self._judged
        if judged is None:
            return False
        now = read_holder(self._path(judged.number))
        return bool(earlier) if now is None else now.token != judged.token

    def _sweep(self, now_ns: int) -> None:
        """Remove what killed takers left: files that are far older than any take lasts."""
        for path in self._folder.glob(f"{self._name}.*.tmp"):
            with contextlib.suppress(OSError):
                if now_ns - path.stat().st_mtime_ns > 10 * max(self._expiry, EXPIRY_S) * 1e9:
                    path.unlink()

    def _silent(self, holder: Holder) -> bool:
        """Return whether it is worth asking the file server for its time: nothing changed since the last look."""
        lives = alive(holder)
        if lives is not None:
            return not lives
        what = (holder.number, holder.token, holder.beat_ns)
        if self._seen is None or self._seen[0] != what:
            self._seen = what, time.monotonic()
            return False
        return True

    def _over(self, holder: Holder, now_ns: int) -> bool:
        if not self._silent(holder):
            return False
        if alive(holder) is False:
            return True
        if self._seen is None:  # it was seen dead, and now nobody can look
            return False
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
                mine = read_holder(file)
                if mine is None:
                    file.stat()  # a handle that is stale is no file that is gone
                    continue
                if mine.token == self._token:
                    os.utime(file)
                    continue
            except FileNotFoundError:
                pass
            except OSError:
                # a server that does not answer may come back; what is written is checked anyway
                continue
            if not self._ended.is_set():
                self._gone = True
            return
