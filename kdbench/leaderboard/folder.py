"""Board folders: ``leaderboards/<board>`` with records, ``board.yaml`` and the generated files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.errors import KdbenchError, RecordError, did_you_mean
from kdbench.leaderboard.build import left_over, render_board, write_forms
from kdbench.leaderboard.curves import copy_curve, read_board_curves
from kdbench.leaderboard.mixing import mixture
from kdbench.leaderboard.rows import part
from kdbench.leaderboard.text import NOTE
from kdbench.leaderboard.thrift import Thrift
from kdbench.results.content import KEY, content_sha256
from kdbench.results.store import (
    RESULT,
    RunFolder,
    atomic_write_bytes,
    parse_record,
    read_limited,
    refuse_link,
)

if TYPE_CHECKING:
    from kdbench.leaderboard.board import Board
    from kdbench.results.schema import Record

_RECORD_NAME = re.compile(r"[0-9a-f]{64}\.json\Z")
#: Largest generated file that is compared, in bytes.
_MAX_FORM_BYTES = 256 * 1024 * 1024
#: Longest text of each key, in characters.
_KEYS = {"title": 200, "description": 2000, "notes": NOTE, "references": 200}
#: Keys that are lists, with the most texts in each.
_LISTS = {"notes": 40, "references": 8}


@dataclass(frozen=True)
class BoardInfo:
    """Content of ``board.yaml``; without `references` the usual ones are taken."""

    title: str
    description: str = ""
    notes: tuple[str, ...] = ()
    references: tuple[str, ...] | None = None


def read_info(folder: Path) -> BoardInfo:
    """Return ``board.yaml``, or the folder's name as the title where there is none. Raises KdbenchError."""
    path = folder / "board.yaml"
    if not os.path.lexists(path):
        return BoardInfo(folder.resolve().name)
    from kdbench.matrix import document

    refuse_link(path)
    try:
        content = document.parse(read_limited(path, 64 * 1024).decode("utf-8-sig"), str(path)).data
    except UnicodeDecodeError as error:
        raise KdbenchError(f"{path}: not YAML: it is not UTF-8 text") from error
    if not isinstance(content, dict):
        raise KdbenchError(f"{path}: expected the keys {', '.join(_KEYS)}")
    for key, value in content.items():
        if key not in _KEYS:
            raise KdbenchError(f"{path}: unknown key {key!r:.60}{did_you_mean(str(key), _KEYS)}")
        texts = value if key in _LISTS else [value]
        if not isinstance(texts, list) or len(texts) > _LISTS.get(key, 1):
            raise KdbenchError(f"{path}: {key}: expected a list of at most {_LISTS[key]} texts")
        if not all(isinstance(text, str) and len(text) <= _KEYS[key] for text in texts):
            raise KdbenchError(f"{path}: {key}: expected a text of at most {_KEYS[key]} characters")
    return BoardInfo(
        content.get("title") or folder.resolve().name,
        content.get("description", ""),
        tuple(content.get("notes", ())),
        tuple(content["references"]) if "references" in content else None,
    )


def read_records(folder: Path, problems: list[str] | None = None, *, signed: bool = False) -> list[Record]:
    """Read and validate ``records/*.json`` in the order of names; `signed`: each must carry its digest.

    Each problem is appended to `problems`; without that list the first one is raised as RecordError.
    """
    found: list[Record] = []
    records = folder / "records"
    names = sorted(os.listdir(records)) if records.is_dir() else []
    thrift = Thrift()
    for name in names:
        try:
            refuse_link(records)
            found.append(thrift(_read_one(records / name, signed)))
        except RecordError as error:
            if problems is None:
                raise
            problems.append(str(error))
    return found


def _read_one(path: Path, signed: bool) -> Record:
    if not _RECORD_NAME.match(path.name):
        raise RecordError(f"{path}: expected a record named <cell id>.json")
    refuse_link(path)
    record = parse_record(read_limited(path), path)
    if f"{record.cell_id}.json" != path.name:
        raise RecordError(f"{path}: cell_id is {record.cell_id[:12]}..., not the name of the file")
    _check_identity(record, path)
    if signed and record.content_sha256 is None:
        raise RecordError(
            f"{path}: carries no {KEY}, so an edit would not show; copy it again from its run folder: "
            f"`kdbench leaderboard build {path.parent.parent} --from RUN_DIR`"
        )
    return record


def _check_identity(record: Record, path: Path) -> None:
    """The identity is what the cell id vouches for, so what tables show must not contradict it."""
    from kdbench.matrix.identity import cell_id

    if cell_id(record.identity) != record.cell_id:
        raise RecordError(f"{path}: cell_id is not the sha256 of the identity")
    identity = record.identity
    said = (record.protocol, record.labels.seed, record.labels.method)
    meant = (identity.get("protocol"), identity.get("seed"), part(record, "method").get("name"))
    if said != meant:
        raise RecordError(f"{path}: protocol, seed and method are not those of the identity")


@dataclass(frozen=True)
class Collected:
    """A record of a run folder with the bytes of its file and the cell's folder.

    Attributes:
        given: the digest was given here, for the file has none; `data` has it.
    """

    record: Record
    data: bytes
    folder: Path
    given: bool = False


def collect(run_folder: Path, *, signed: bool = False) -> list[Collected]:
    """Read and validate every record of a run folder.

    With `signed` each must carry a digest of its content; else those that carry none are given it.

    Raises RecordError for the first that is not valid, not finite, edited, or in another cell's folder.
    """
    run = RunFolder(run_folder)
    folders = run.cell_folders()
    if not folders:
        raise RecordError(f"{run.path}: holds no records (expected cells/<cell id>/{RESULT})")
    found = []
    for cell in folders:
        path = cell / RESULT
        data = read_limited(path)
        record = parse_record(data, path)
        if record.cell_id != cell.name:
            raise RecordError(f"{path}: cell_id is not the name of the folder")
        _check_identity(record, path)
        given = record.content_sha256 is None
        if given and signed:
            raise RecordError(
                f"{path}: carries no {KEY}: it was made by an older kdbench, or edited; run its cell again"
            )
        if given:
            content = json.loads(data)
            content[KEY] = record.content_sha256 = content_sha256(content)
            data = (json.dumps(content, indent=2) + "\n").encode()
        found.append(Collected(record, data, cell, given))
    return found


def write_records(board: Path, records: Sequence[Collected]) -> None:
    """Write the bytes of records to ``records/<cell id>.json``, and curves to ``curves/``.

    Raises OSError.
    """
    refuse_link(board / "records")
    (board / "records").mkdir(parents=True, exist_ok=True)
    for one in records:
        atomic_write_bytes(board / "records" / f"{one.record.cell_id}.json", one.data)
        copy_curve(one.folder, one.record, board)


def copy_records(run_folder: Path, board: Path) -> tuple[int, int]:
    """Copy the records of a run folder to a board, byte for byte but for a digest where they lack one.

    Returns how many were copied, and how many of them were given a digest. Raises RecordError.
    """
    found = collect(run_folder)
    write_records(board, found)
    return len(found), sum(one.given for one in found)


@dataclass(frozen=True)
class Loaded:
    """A board that was read: its folder, how many records it has, the board itself."""

    folder: Path
    records: int
    board: Board


def load_folder(folder: Path) -> Loaded:
    """Read a board's records and ``board.yaml``. Raises KdbenchError where one is not valid or there is none."""
    from kdbench.leaderboard.board import make_board

    records = read_records(folder, signed=True)
    if not records:
        raise KdbenchError(f"{folder}: holds no records (expected records/<cell id>.json)")
    if problem := mixture(records):
        raise KdbenchError(f"{folder}: holds {problem}")
    info = read_info(folder)
    board = make_board(records, **_told(info))
    return Loaded(folder, len(records), board)


def build_folder(folder: Path) -> int:
    """Build a board from its records; return how many there are. Raises KdbenchError, OSError."""
    loaded = load_folder(folder)
    write_forms(loaded.board, folder)
    return loaded.records


def _told(info: BoardInfo) -> dict[str, Any]:
    return {
        "title": info.title,
        "description": info.description,
        "notes": info.notes,
        "references": info.references,
    }


def check_folder(folder: Path) -> list[str]:
    """Return a line for each record that is invalid or has no digest, and each file that is not what they give."""
    problems: list[str] = []
    records = read_records(folder, problems, signed=True)
    if not records and not problems:
        return [f"{folder}: holds no records (expected records/<cell id>.json)"]
    if problems:
        return problems
    read_board_curves(folder, (r.cell_id for r in records), problems)
    if problem := mixture(records):
        return [f"{folder}: holds {problem}"]
    try:
        info = read_info(folder)
        expected = render_board(records, **_told(info))
    except KdbenchError as error:
        return [*problems, str(error)]
    for name, content in expected.items():
        path = folder / name
        if not os.path.lexists(path):
            problems.append(f"{path}: missing; run `kdbench leaderboard build {folder}`")
            continue
        try:
            refuse_link(path)
            found = read_limited(path, _MAX_FORM_BYTES)
        except RecordError as error:
            problems.append(str(error))
            continue
        if found != content:
            problems.append(
                f"{path}: line {_first_difference(found, content)} is not what the records give; "
                f"run `kdbench leaderboard build {folder}`"
            )
    for path in left_over(folder, expected):
        problems.append(f"{path}: no plot of this board; run `kdbench leaderboard build {folder}`")
    return problems


def _first_difference(a: bytes, b: bytes) -> int:
    """Number of the first line that differs, from 1."""
    left, right = a.split(b"\n"), b.split(b"\n")
    pairs = zip(left, right, strict=False)
    return next((n for n, (x, y) in enumerate(pairs, 1) if x != y), min(len(left), len(right)) + 1)


def board_folders(root: Path) -> list[Path]:
    """Return the folders under `root` that have records, sorted. Raises RecordError for one that is a link."""
    if not root.is_dir():
        return []
    found = sorted(p for p in root.iterdir() if (p / "records").is_dir())
    for path in found:
        refuse_link(path)
    return found
