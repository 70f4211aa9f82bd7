"""Leases between processes and, by holders that no process of this machine is, between machines."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kdbench.errors import KdbenchError
from kdbench.results import holder
from kdbench.results import lease as leases
from kdbench.results.holder import newest_holder
from kdbench.results.lease import Lease, LeaseLost

#: Seconds after which a silent holder of these tests has expired.
EXPIRY = 0.3

HOLD = """
import sys, time
from pathlib import Path
from kdbench.results.lease import Lease
assert Lease(Path(sys.argv[1])).take()
print("held", flush=True)
time.sleep(60)
"""

RACE = """
import os, sys, time
from pathlib import Path
from kdbench.results import lease as leases
folder, counter = Path(sys.argv[1]), Path(sys.argv[2])
leases.alive = lambda holder: None  # as if each were on a machine of its own
sys.stdin.readline()
for _ in range(int(sys.argv[3])):
    lease = leases.Lease(folder, expiry=20.0)
    while not lease.take():
        pass
    n = int(counter.read_text())  # not atomic: two holders at once lose a count
    time.sleep(0.0005)
    lease.check()
    counter.write_text(str(n + 1))
    lease.close()
"""


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no holder be a process of this machine."""
    monkeypatch.setattr(leases, "alive", lambda holder: None)


def silent(folder: Path, number: int = 1, age_s: float = 0.0, token: str = "other") -> Path:
    """Leave a lease whose holder never gives a sign of life again."""
    path = folder / f".lease-{number}"
    path.write_text(json.dumps({"token": token, "host": "node7", "pid": 12, "expiry_s": EXPIRY}))
    when = path.stat().st_mtime - age_s
    os.utime(path, (when, when))
    return path


def test_one_holder_until_it_lets_go(tmp_path: Path) -> None:
    one, two = Lease(tmp_path), Lease(tmp_path)
    assert one.take()
    assert one.take()
    assert not two.take()
    assert not two.settle()
    one.check()
    one.close()
    assert list(tmp_path.iterdir()) == []
    assert two.take()
    two.close()


def test_holder_is_told(tmp_path: Path) -> None:
    assert newest_holder(tmp_path / "none") is None
    one = Lease(tmp_path)
    assert one.take()
    found = Lease(tmp_path).holder()
    assert found is not None
    assert found.pid == os.getpid()
    assert str(found).startswith(f"process {os.getpid()} on ")
    one.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_death_on_this_machine_is_seen_at_once(tmp_path: Path, how: signal.Signals) -> None:
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    mine = Lease(tmp_path)
    assert not mine.take()
    child.send_signal(how)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and not buried
    assert mine.take()
    mine.check()
    child.wait()
    mine.close()


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("age_s", [0.0, 100.0, -100.0], ids=["fresh", "old", "of the future"])
def test_silence_expires_whatever_the_clocks_say(tmp_path: Path, age_s: float) -> None:
    silent(tmp_path, age_s=age_s)
    mine = Lease(tmp_path, expiry=EXPIRY)
    assert not mine.take()  # an old time alone is no proof: somebody may have set the clock
    assert mine.wait()
    assert [p.name for p in tmp_path.iterdir()] == [".lease-2"]
    mine.close()


@pytest.mark.usefixtures("elsewhere")
def test_signs_of_life_keep_it(tmp_path: Path) -> None:
    one, two = (Lease(tmp_path, expiry=EXPIRY) for _ in range(2))
    assert one.take()
    assert not two.settle()
    one.check()
    one.close()


@pytest.mark.usefixtures("elsewhere")
def test_holder_that_was_thought_dead_stops(tmp_path: Path) -> None:
    late, taker = (Lease(tmp_path, expiry=EXPIRY) for _ in range(2))
    assert late.take()
    late._ended.set()  # it sleeps: no sign of life
    assert taker.wait()
    with pytest.raises(LeaseLost, match=rf"process {os.getpid()} on .* took over; nothing is written"):
        late.check()
    assert late.lost
    late.close()  # and lets the lease of the other alone
    taker.check()
    taker.close()


@pytest.mark.usefixtures("elsewhere")
def test_renewal_finds_that_it_is_lost(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    mine = Lease(tmp_path, expiry=EXPIRY)
    assert mine.take()
    (renewer,) = set(threading.enumerate()) - before
    (tmp_path / ".lease-1").unlink()
    renewer.join(10)
    assert mine.lost


@pytest.mark.usefixtures("elsewhere")
def test_a_stale_handle_is_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, looks = Lease(tmp_path, expiry=EXPIRY), threading.Semaphore(0)

    def stale(path: Path) -> None:
        looks.release()

    read = leases.read_holder
    monkeypatch.setattr(leases, "read_holder", stale)
    assert mine.take()
    assert looks.acquire(timeout=10)
    monkeypatch.setattr(leases, "read_holder", read)
    before = (tmp_path / ".lease-1").stat().st_mtime_ns
    end = time.monotonic() + 10
    while (tmp_path / ".lease-1").stat().st_mtime_ns == before:  # it is renewed again
        assert time.monotonic() < end
        time.sleep(0.01)
    assert not mine.lost
    mine.close()


@pytest.mark.usefixtures("elsewhere")
def test_lease_taken_while_another_was_judged_is_let_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A taker stalls between judging a dead lease and taking over; meanwhile it was released and taken anew."""
    silent(tmp_path, age_s=100.0)
    slow, quick = Lease(tmp_path, expiry=EXPIRY), Lease(tmp_path, expiry=EXPIRY)
    link = os.link

    def stall(source: Path, target: Path) -> None:
        if str(target).endswith("-2"):
            monkeypatch.setattr(os, "link", link)
            (tmp_path / ".lease-1").unlink()
            assert quick.take()
        link(source, target)

    assert not slow.take()
    slow._seen = (slow._seen[0], slow._seen[1] - 10.0) if slow._seen else None
    monkeypatch.setattr(os, "link", stall)
    assert not slow.take()
    quick.check()
    assert [p.name for p in tmp_path.iterdir()] == [".lease-1"]
    quick.close()


@pytest.mark.usefixtures("elsewhere")
def test_link_whose_answer_was_lost_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    mine = Lease(tmp_path)
    assert mine.take()
    mine.check()
    mine.close()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"pid": "x", "token": 3}', b"\xff" * 5000])
def test_broken_file_expires_like_any_other(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holder, "EXPIRY_S", EXPIRY)
    (tmp_path / ".lease-4").write_bytes(content)
    mine = Lease(tmp_path, expiry=EXPIRY)
    assert not mine.take()
    assert mine.wait()
    mine.close()


def test_waiting_ends_when_it_is_told_to(tmp_path: Path) -> None:
    one = Lease(tmp_path)
    assert one.take()
    assert not Lease(tmp_path).wait(lambda: True)
    one.close()


def test_several_machines_never_hold_it_together(tmp_path: Path) -> None:
    """Four processes add to a counter without any other lock; a lost count would tell of two holders."""
    (tmp_path / "shared").mkdir()
    counter = tmp_path / "counter"
    counter.write_text("0")
    silent(tmp_path / "shared", age_s=100.0)
    line = [sys.executable, "-c", RACE, str(tmp_path / "shared"), str(counter), "40"]
    racers = [subprocess.Popen(line, stdin=subprocess.PIPE, text=True) for _ in range(4)]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    assert [racer.wait(60) for racer in racers] == [0] * 4
    assert counter.read_text() == "160"
    assert list((tmp_path / "shared").iterdir()) == []


def test_seconds_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDBENCH_LEASE_S", "12.5")
    assert leases.expiry_s() == 12.5
    for text in ("soon", "-1", "0", "nan"):
        monkeypatch.setenv("KDBENCH_LEASE_S", text)
        with pytest.raises(KdbenchError, match=f"KDBENCH_LEASE_S={text}: expected seconds"):
            leases.expiry_s()


@pytest.mark.usefixtures("elsewhere")
def test_lease_that_began_anew_is_no_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A taker stalls; what it judged was taken over and released, and the numbers began anew."""
    silent(tmp_path, number=5, age_s=100.0)
    slow, quick = Lease(tmp_path, expiry=EXPIRY), Lease(tmp_path, expiry=EXPIRY)
    link = os.link

    def stall(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        (tmp_path / ".lease-5").unlink()
        assert quick.take()
        link(source, target)

    assert not slow.take()
    slow._seen = (slow._seen[0], slow._seen[1] - 10.0) if slow._seen else None
    monkeypatch.setattr(os, "link", stall)
    assert not slow.take()
    quick.check()
    assert [p.name for p in tmp_path.iterdir()] == [".lease-1"]
    quick.close()


@pytest.mark.usefixtures("elsewhere")
def test_nobody_renews_what_another_holds_under_the_same_name(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    mine = Lease(tmp_path, expiry=EXPIRY)
    assert mine.take()
    (renewer,) = set(threading.enumerate()) - before
    other = tmp_path / "other"
    other.write_text(json.dumps({"token": "other", "host": "node7", "pid": 12}))
    os.utime(other, (1e9, 1e9))
    other.rename(tmp_path / ".lease-1")
    renewer.join(10)
    assert mine.lost
    assert (tmp_path / ".lease-1").stat().st_mtime == 1e9
    mine.close()
    assert (tmp_path / ".lease-1").exists()


def test_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    one, two = Lease(tmp_path), Lease(tmp_path)
    assert one.take()
    assert not two.take()
    one.check()
    with pytest.raises(FileExistsError):
        two._put(tmp_path / ".lease-1", tmp_path / ".lease-1")
    one.close()
    assert list(tmp_path.iterdir()) == []


def test_files_of_killed_takers_go_when_they_are_old(tmp_path: Path) -> None:
    old, young = (tmp_path / f".lease.{name}.tmp" for name in ("old", "young"))
    for path in (old, young):
        path.touch()
    when = old.stat().st_mtime - 20 * holder.EXPIRY_S
    os.utime(old, (when, when))
    one = Lease(tmp_path)
    assert one.take()
    one.close()
    assert list(tmp_path.iterdir()) == [young]


def told(tmp_path: Path, **fields: object) -> holder.Holder:
    """Return the holder of a lease that this process made, with other fields."""
    path = tmp_path / ".lease-1"
    path.write_text(json.dumps({**json.loads(holder.myself("t", 1.0)), **fields}))
    found = newest_holder(tmp_path)
    assert found is not None
    return found


def test_who_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert holder.alive(told(tmp_path)) is True
    # a machine that was started again gives out the same numbers
    assert holder.alive(told(tmp_path, machine="another boot")) is None
    assert holder.alive(told(tmp_path, machine="")) is None
    assert holder.alive(told(tmp_path, born=1)) is False
    assert holder.alive(told(tmp_path, pid=2**40)) is False

    def forbidden(pid: int, number: int) -> None:
        raise PermissionError

    found = told(tmp_path)
    monkeypatch.setattr(holder, "_born", lambda pid: None)
    monkeypatch.setattr(os, "kill", forbidden)
    assert holder.alive(found) is None  # of another user, whose processes the machine may hide


def test_who_cannot_look_takes_nobody_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = told(tmp_path)

    def full(*arguments: object, **more: object) -> str:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(Path, "read_text", full)
    assert holder.alive(found) is None
    with pytest.raises(OSError, match="Too many open files"):  # nobody could tell that it lives
        holder.myself("t", 1.0)


@pytest.mark.parametrize("seconds", ["NaN", "-1", "1e300", "0"])
def test_expiry_of_a_file_is_one_that_ends(tmp_path: Path, seconds: str) -> None:
    (tmp_path / ".lease-1").write_text('{"token": "t", "expiry_s": ' + seconds + "}")
    found = newest_holder(tmp_path)
    assert found is not None
    assert found.expiry_s == holder.EXPIRY_S


def test_numbers_may_grow(tmp_path: Path) -> None:
    path = tmp_path / ".lease-999999999"
    path.write_text(json.dumps({**json.loads(holder.myself("t", 1.0)), "born": 1}))
    one, two = Lease(tmp_path), Lease(tmp_path)
    assert one.take()
    assert one.inherited
    assert not two.take()
    one.close()
