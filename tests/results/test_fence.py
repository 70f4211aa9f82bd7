"""Nothing is written into a folder that another process took over, at whichever moment it did."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kdbench.results import fence
from kdbench.results.lease import LeaseLost
from kdbench.results.store import atomic_write_bytes, put_record_aside, remove_unfinished


class Owner:
    """Whether the folder is still ours."""

    lost = False

    def check(self) -> None:
        if self.lost:
            raise LeaseLost("another process took over")


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    owner = Owner()
    fence.guard(tmp_path, owner.check)
    yield owner
    fence.unguard(tmp_path)


@pytest.mark.parametrize("name", ["result.json", "route/epoch-0001.safetensors"])
def test_what_was_lost_is_not_written(tmp_path: Path, owner: Owner, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    atomic_write_bytes(path, b"mine")
    owner.lost = True
    with pytest.raises(LeaseLost):
        atomic_write_bytes(path, b"late")
    assert path.read_bytes() == b"mine"
    assert not list(tmp_path.rglob("*.tmp"))
    fence.unguard(tmp_path)
    atomic_write_bytes(path, b"another")
    assert path.read_bytes() == b"another"


def test_other_folders_are_not_asked_for(tmp_path: Path, owner: Owner) -> None:
    owner.lost = True
    (tmp_path / "a" / "b").mkdir(parents=True)
    atomic_write_bytes(tmp_path / "a" / "b" / "c", b"")
    (tmp_path.parent / "beside").mkdir()
    atomic_write_bytes(tmp_path.parent / "beside" / "c", b"")


def test_record_is_not_put_aside_by_who_lost_it(tmp_path: Path, owner: Owner) -> None:
    (tmp_path / "result.json").write_text("{}")
    owner.lost = True
    with pytest.raises(LeaseLost):
        put_record_aside(tmp_path)
    assert (tmp_path / "result.json").exists()


def test_who_is_stopped_after_the_look_finds_its_file_gone(
    tmp_path: Path, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    asked = fence.ask

    def stopped(path: Path) -> None:
        asked(path)
        monkeypatch.setattr(fence, "ask", asked)
        owner.lost = True
        fence.unguard(tmp_path)  # what follows is another process
        remove_unfinished(tmp_path)
        atomic_write_bytes(path, b"theirs")

    monkeypatch.setattr(fence, "ask", stopped)
    with pytest.raises(FileNotFoundError):
        atomic_write_bytes(path, b"late")
    assert path.read_bytes() == b"theirs"


def test_who_lost_the_folder_removes_nothing_of_the_next_one(tmp_path: Path, owner: Owner) -> None:
    theirs = tmp_path / ".result.json.0123456789ab.tmp"
    theirs.touch()
    owner.lost = True
    with pytest.raises(LeaseLost):
        remove_unfinished(tmp_path, owner.check)
    assert theirs.exists()
    owner.lost = False

    def taken_while_looking() -> None:
        (tmp_path / ".result.json.ba9876543210.tmp").touch()

    remove_unfinished(tmp_path, taken_while_looking)
    assert [p.name for p in tmp_path.iterdir()] == [".result.json.ba9876543210.tmp"]
