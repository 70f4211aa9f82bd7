"""Records and their neighbours on disk: ``runs/<matrix>/cells/<cell id>/{result.json, curves.jsonl, ...}``.

Every file that others read is written to a temporary file in the same folder, synced and renamed, so a reader
sees the old content or the new one and never a part.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.errors import KdbenchError, RecordError
from kdbench.redact import hidden
from kdbench.results import fence
from kdbench.results.content import KEY, content_sha256, refuse_edited

if TYPE_CHECKING:
    from kdbench.results.schema import Record

#: Largest ``result.json`` that is read, in bytes.
MAX_RECORD_BYTES = 4 * 1024 * 1024
#: Largest ``curves.jsonl`` that is read, in bytes: a hundred thousand epochs.
MAX_CURVES_BYTES = 64 * 1024 * 1024
RESULT = "result.json"
CURVES = "curves.jsonl"
_CELL_ID = re.compile(r"[0-9a-f]{64}\Z")
_TEMPORARY = re.compile(r"\A\..*\.[0-9a-f]{12}\.tmp\Z")


def atomic_write_bytes(path: str | Path, data: bytes, *, durable: bool = True, new: bool = False) -> None:
    """Replace the file `path` by `data`, completely or not at all; its folder must exist.

    With `new` nothing is replaced: FileExistsError is raised where there is such a file, whoever made it when.

    With `durable` it also outlasts a loss of power, which costs waiting for the disk. Raises OSError, or LeaseLost
    where another process has the folder by now; the temporary file is removed and the old content stays.
    """
    path = Path(path)
    temp = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temp, "xb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        fence.ask(path)
        if new:
            _link(temp, path)
        else:
            os.replace(temp, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temp.unlink()
        if isinstance(error, OSError) and error.filename is None:  # a write knows no name
            error.filename = str(path)
        raise
    if durable:
        _sync_folder(path.parent)


def _link(temp: Path, path: Path) -> None:
    """Give `temp` the name `path`, which no file has. Raises FileExistsError, OSError."""
    try:
        os.link(temp, path)
    except FileExistsError:
        if temp.stat().st_nlink < 2:  # over NFS it may be told of a link that was made
            raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.replace(temp, path)
        return
    temp.unlink()


def remove_unfinished(folder: str | Path, check: Callable[[], None] = lambda: None) -> None:
    """Remove the temporary files of writers that were killed, or that lost the folder.

    `check` raises where the caller lost it meanwhile: then nothing is removed, as another one may be writing.
    """
    folder = Path(folder)
    found = [*folder.glob(".*.tmp"), *folder.glob("route/.*.tmp")]
    check()  # files of a later owner are none of those that were found before
    for path in found:
        if _TEMPORARY.search(path.name):
            path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the rename durable, where the system can open a folder (Windows cannot)."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def atomic_write_json(path: str | Path, obj: Any, *, new: bool = False) -> None:
    """Write `obj` as indented UTF-8 JSON, see :func:`atomic_write_bytes`.

    Raises ValueError for NaN and infinite numbers, TypeError for what JSON cannot hold, OSError.
    """
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False)
    # A lone surrogate (an undecodable byte of a file name) becomes the escape that JSON has for it.
    atomic_write_bytes(path, (text + "\n").encode("utf-8", "backslashreplace"), new=new)


def read_limited(path: Path, limit: int = MAX_RECORD_BYTES) -> bytes:
    """Return the content of a regular file of at most `limit` bytes. Raises RecordError."""
    try:
        found = os.stat(path)  # before it is opened: a pipe would wait for its writer
        if not stat.S_ISREG(found.st_mode):
            raise RecordError(f"{path}: not a regular file")
        with open(path, "rb") as file:
            # a buffer of the limit would take longer than all else
            data = file.read(min(limit, found.st_size) + 1)
            if found.st_size < len(data) <= limit:
                data += file.read(limit + 1 - len(data))
    except FileNotFoundError:
        raise RecordError(f"{path}: no such file") from None
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}") from error
    if len(data) > limit:
        raise RecordError(f"{path}: larger than {limit // 1024} KiB, the limit of such a file")
    return data


def refuse_unread(error: KdbenchError) -> None:
    """Raise `error` where a file could not be read for the file system, so that nobody knows what is in it."""
    if isinstance(error.__cause__, OSError):
        raise error


def refuse_link(path: Path) -> None:
    """Raise RecordError for a link: in somebody's pull request it could point anywhere on this machine."""
    if path.is_symlink():
        raise RecordError(f"{path}: is a link, expected a plain file or folder")


def parse_record(data: bytes, where: str | Path) -> Record:
    """Validate the bytes of a record, its digest included where it carries one.

    Raises RecordError: one line with `where` and the first problem.
    """
    from pydantic import ValidationError
    from pydantic_core import from_json

    from kdbench.results.schema import Record

    try:
        record = Record.model_validate_json(data)
    except ValidationError as error:
        raise RecordError(f"{where}: {_first_problem(error)}") from error
    _refuse_infinite(record, where)
    if record.content_sha256 is not None:
        refuse_edited(from_json(data), where)
    return record


def validate_record(obj: Mapping[str, Any], where: str | Path) -> Record:
    """Validate a record given as a mapping, see :func:`parse_record`."""
    from pydantic import ValidationError

    from kdbench.results.schema import Record

    try:
        record = Record.model_validate(obj)
    except ValidationError as error:
        raise RecordError(f"{where}: {_first_problem(error)}") from error
    _refuse_infinite(record, where)
    refuse_edited(obj, where)
    return record


def _first_problem(error: Any) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    more = error.error_count() - 1
    text = f"{place}: {first['msg']}" if place else str(first["msg"])
    text = " ".join(text.split())
    return text[:300] + (f" (and {more} more problems)" if more else "")


def _refuse_infinite(record: Record, where: str | Path) -> None:
    """The typed fields are finite by their types; the free ones are looked at here."""
    found = record.tuning
    free = [("tuning.space", found.space), ("tuning.params", found.params)] if found is not None else []
    for part, value in [("identity", record.identity), *free]:
        if not _finite(value):
            raise RecordError(f"{where}: {part}: numbers must be finite")


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return value - value == 0.0
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_finite, value))
    return True


def read_record(path: str | Path) -> Record:
    """Read and validate a record. Raises RecordError: one line naming the file and the first problem."""
    path = Path(path)
    return parse_record(read_limited(path), path)


def read_record_dict(path: str | Path) -> dict[str, Any]:
    """Read a record with a light check only: JSON object, schema version, cell id, status.

    For deciding quickly what to skip; imports no pydantic. Raises RecordError.
    """
    path = Path(path)
    try:
        obj = json.loads(read_limited(path))
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: not JSON: {error}") from error
    if not isinstance(obj, dict):
        raise RecordError(f"{path}: expected a JSON object")
    if obj.get("schema_version") != 1:
        raise RecordError(f"{path}: schema_version: expected 1, found {obj.get('schema_version')!r:.40}")
    cell_id = obj.get("cell_id")
    if not isinstance(cell_id, str) or not _CELL_ID.match(cell_id):
        raise RecordError(f"{path}: cell_id: expected 64 hexadecimal digits")
    if not isinstance(obj.get("status"), str):
        raise RecordError(f"{path}: status: expected a text")
    return obj


def read_own_record(folder: Path) -> dict[str, Any]:
    """Read the record in a cell's folder with a light check, and whether it is that cell's and as it was written.

    Raises RecordError.
    """
    path = folder / RESULT
    record = read_record_dict(path)
    refuse_edited(record, path)
    if record["cell_id"] != folder.name:
        raise RecordError(f"{path}: cell_id is that of another cell")
    return record


def write_record(folder: str | Path, record: Record, *, overwrite: bool = False, new: bool = False) -> None:
    """Write ``result.json`` into a cell's folder, which is made if needed; `record` gets its digest.

    Raises RecordError when a finished result (status ``done``) is there and `overwrite` is false, or any record
    and `new` is true, or one that the file system does not give; OSError.
    """
    path = Path(folder) / RESULT
    if path.exists() and not overwrite:
        try:
            finished = read_record_dict(path)["status"] == "done"
        except RecordError as error:
            refuse_unread(error)
            finished = False
        if finished:
            raise RecordError(f"{path}: holds a finished result; it is replaced only on request")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = record.model_dump(mode="json")
    # what exceptions, warnings and the environment say; identity and labels are the matrix's own words
    for part in ("error", "warnings", "environment", "speeds"):
        content[part] = hidden(content[part])
    content[KEY] = record.content_sha256 = content_sha256(content)
    try:
        atomic_write_json(path, content, new=new)
    except FileExistsError as error:
        raise RecordError(f"{path}: holds a record already") from error


def put_record_aside(folder: Path) -> Path:
    """Move a cell's record to ``previous/result-<n>.json``, under a number that is not taken; returns where."""
    previous = folder / "previous"
    previous.mkdir(exist_ok=True)
    number = len(list(previous.iterdir())) + 1
    while (previous / f"result-{number}.json").exists():
        number += 1
    fence.ask(folder / RESULT)
    return (folder / RESULT).rename(previous / f"result-{number}.json")


def read_curves(folder: str | Path) -> list[dict[str, Any]]:
    """Return the rows of ``curves.jsonl``, one per epoch; empty where there is no such file.

    A last line that a kill cut off is left out. Raises RecordError for a broken line before the last.
    """
    path = Path(folder) / CURVES
    if not os.path.lexists(path):
        return []
    lines = read_limited(path, MAX_CURVES_BYTES).split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("expected a JSON object")
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise RecordError(f"{path}:{number}: {error}") from error
        rows.append(row)
    return rows


class RunFolder:
    """The folder of one matrix, ``runs/<matrix>``. Making the object touches nothing on disk."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def cells(self) -> Path:
        """Folder of the cells."""
        return self.path / "cells"

    def cell(self, cell_id: str) -> Path:
        """Return the folder of a cell (it may not exist). Raises RecordError unless 64 hexadecimal digits."""
        if not _CELL_ID.match(cell_id):
            raise RecordError(f"{self.path}: {cell_id!r:.80} is not a cell id (64 hexadecimal digits)")
        return self.cells / cell_id

    def write_matrix(self, meta: Mapping[str, Any]) -> None:
        """Write ``matrix.json``: at least name, title and protocol. Makes the folder."""
        self.path.mkdir(parents=True, exist_ok=True)
        atomic_write_json(self.path / "matrix.json", dict(meta))

    def matrix(self) -> dict[str, Any]:
        """Return ``matrix.json``, or the folder's name where there is none. Raises RecordError."""
        path = self.path / "matrix.json"
        if not path.exists():
            return {"name": self.path.resolve().name}
        try:
            meta = json.loads(read_limited(path))
        except (ValueError, RecursionError) as error:
            raise RecordError(f"{path}: not JSON: {error}") from error
        if not isinstance(meta, dict) or not isinstance(meta.get("name"), str) or not meta["name"]:
            raise RecordError(f"{path}: expected an object with a name")
        return meta

    def cell_names(self) -> set[str]:
        """Return the ids of the cells that have a folder, whatever is in it."""
        try:
            return set(filter(_CELL_ID.match, os.listdir(self.cells)))
        except (FileNotFoundError, NotADirectoryError):
            return set()

    def cell_folders(self) -> list[Path]:
        """Return the folders of the cells that have a ``result.json``, sorted by cell id."""
        try:
            names = sorted(os.listdir(self.cells))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [self.cells / n for n in names if _CELL_ID.match(n) and (self.cells / n / RESULT).exists()]

    def records(
        self, on_error: Callable[[RecordError], None] | None = None
    ) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yield (cell folder, record) in the order of cell ids, lightly checked.

        A broken record, or one in another cell's folder, goes to `on_error`; without it, RecordError is
        raised.
        """
        for folder in self.cell_folders():
            try:
                record = read_record_dict(folder / RESULT)
                if record["cell_id"] != folder.name:
                    raise RecordError(f"{folder / RESULT}: cell_id is not the name of the folder")
            except RecordError as error:
                if on_error is None:
                    raise
                on_error(error)
                continue
            yield folder, record

    def good_records(self) -> Iterator[Record]:
        """Yield every record that is valid and in its own folder, in the order of cell ids."""
        for folder in self.cell_folders():
            with contextlib.suppress(RecordError):
                record = read_record(folder / RESULT)
                if record.cell_id == folder.name:
                    yield record

    def failures(self) -> list[tuple[Path, dict[str, Any]]]:
        """Return (cell folder, record) of every readable record whose status is not ``done``."""
        return [(f, r) for f, r in self.records(on_error=lambda error: None) if r["status"] != "done"]
