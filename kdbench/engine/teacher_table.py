"""Tables on disk of what a teacher says of every view of every image: filled once, checked when opened.

A table is one file of numbers, (images, views, width) in row order, and a JSON file beside it with the shape and
the checksum of every part. The JSON file is written last and makes the table valid. A fill that was cut leaves
parts with their checksums, and goes on behind the last good one.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdbench.errors import KdbenchError
from kdbench.matrix.storage import size_text
from kdbench.results.filelock import FileLock
from kdbench.results.store import atomic_write_json

#: Rows (views of images) of one part of a file, at least one image.
PART_ROWS = 8192
DTYPES = {"fp16": np.float16, "fp32": np.float32}
_TORCH = {"fp16": torch.float16, "fp32": torch.float32}

#: Gives the rows of images first to last (excluded): one tensor (rows, width) per table, in any float type.
Compute = Callable[[int, int], Sequence[Tensor]]


@dataclass(frozen=True)
class Shape:
    """What a table holds: N images, V views, `width` numbers each, as ``fp16`` or ``fp32``."""

    images: int
    views: int
    width: int
    dtype: str

    @property
    def nbytes(self) -> int:
        return self.images * self.views * self.width * np.dtype(DTYPES[self.dtype]).itemsize

    @property
    def step(self) -> int:
        """Images of one part."""
        return max(1, PART_ROWS // self.views)

    def parts(self) -> list[tuple[int, int]]:
        """Return (first, last) images of each part."""
        return [(i, min(i + self.step, self.images)) for i in range(0, self.images, self.step)]

    def bytes_of(self, images: int) -> int:
        return images * self.nbytes // self.images


class Table:
    """An open table.

    Attributes:
        made: dtype of what the teacher gave, which is what is given back.
    """

    def __init__(self, path: Path, shape: Shape, made: torch.dtype, device: torch.device) -> None:
        self.shape, self.made, self._device = shape, made, device
        size = (shape.images * shape.views, shape.width)
        # copy-on-write, since torch has no tensors that cannot be written to
        mapped = np.memmap(path, DTYPES[shape.dtype], mode="c", shape=size)
        self._rows = torch.from_numpy(mapped)
        if device.type == "cuda" and shape.nbytes <= torch.cuda.mem_get_info(device)[0] // 4:
            self._rows = self._rows.to(device)

    def __deepcopy__(self, memo: object) -> Table:
        return self

    def read(self, index: Tensor, view: Tensor) -> Tensor:
        """Return what the teacher gave for images (B,) seen as views (B,): (B, width), a copy."""
        rows = (index * self.shape.views + view).to(self._rows.device)
        found = self._rows.index_select(0, rows)
        return found.to(self._device, self.made, non_blocking=True)


class Tables:
    """The tables of one teacher on one set of views, in a folder of their own."""

    def __init__(self, folder: Path, shapes: dict[str, Shape], device: torch.device) -> None:
        self.folder, self.shapes, self._device = folder, shapes, device

    def open(self) -> dict[str, Table] | None:
        """Return the tables by name, or None if one is missing or damaged."""
        found = {}
        for name, shape in self.shapes.items():
            made = self._valid(name, shape)
            if made is None:
                return None
            found[name] = Table(self._path(name), shape, made, self._device)
        return found

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process fills here, and keep them out."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / ".lock")
        except OSError as e:
            raise KdbenchError(f"{self.folder}: cannot write teacher tables ({e.strerror or e})") from e
        try:
            lock.exclusive()
            yield
        finally:
            lock.close()

    def fill(
        self, compute: Compute, told: Callable[[int], None], stop: Callable[[], None]
    ) -> dict[str, Table]:
        """Fill what is missing and return the tables. Hold :meth:`alone` around it.

        Args:
            compute: gives the rows of a stretch of images for the tables that are missing, in their order.
            told: told how many images are done, after each part.
            stop: called before each part; may raise, and the fill then goes on from there next time.

        Raises KdbenchError when the disk has no room or a number does not fit in the dtype.
        """
        missing = {n: s for n, s in self.shapes.items() if self._valid(n, s) is None}
        try:
            writers = {name: _Writer(self._path(name), shape) for name, shape in missing.items()}
            self._check_room(sum(w.left for w in writers.values()))
            self._fill(writers, compute, told, stop)
        except OSError as e:
            if e.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._full(sum(s.nbytes for s in missing.values())) from e
            raise KdbenchError(f"{self.folder}: cannot write teacher tables ({e.strerror or e})") from e
        found = self.open()
        if found is None:
            raise KdbenchError(f"{self.folder}: a table that was just written cannot be read back")
        return found

    def missing(self) -> list[str]:
        """Names of the tables that are not there, or damaged."""
        return [name for name, shape in self.shapes.items() if self._valid(name, shape) is None]

    def _fill(
        self,
        writers: dict[str, _Writer],
        compute: Compute,
        told: Callable[[int], None],
        stop: Callable[[], None],
    ) -> None:
        if not writers:
            return
        made: dict[str, str] = {}
        # tables that were cut at different places go on from the earliest; the same rows are written again
        done = min(w.done for w in writers.values())
        for first, last in next(iter(writers.values())).shape.parts():
            if last <= done:
                continue
            stop()
            rows = compute(first, last)
            for (name, writer), values in zip(writers.items(), rows, strict=True):
                made[name] = str(values.dtype).removeprefix("torch.")
                writer.write(first, last, values)
            told(last)
        for name, writer in writers.items():
            writer.finish(self._note(name), made[name])

    def _check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise self._full(needed, free)

    def _full(self, needed: int, free: int | None = None) -> KdbenchError:
        there = "" if free is None else f" and {size_text(free)} are free"
        return KdbenchError(
            f"{self.folder}: teacher tables need {size_text(needed)}{there}: "
            "free some space, set KDBENCH_CACHE to another disk, or recipe.teacher_cache: off"
        )

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.rows"

    def _note(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _valid(self, name: str, shape: Shape) -> torch.dtype | None:
        """Return the dtype of the teacher's own values if the table is whole, else None."""
        try:
            note = json.loads(self._note(name).read_bytes())
            sums, made = list(note["crc32"]), getattr(torch, str(note["made"]))
            if note["shape"] != asdict(shape) or not isinstance(made, torch.dtype):
                return None
            if self._path(name).stat().st_size != shape.nbytes or len(sums) != len(shape.parts()):
                return None
            return made if sums == list(_checksums(self._path(name), shape)) else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


class _Writer:
    """Writes one table from front to back; goes on behind the last part whose checksum holds."""

    def __init__(self, path: Path, shape: Shape) -> None:
        self.shape, self._path = shape, path
        self._part, self._journal = path.with_suffix(".part"), path.with_suffix(".sums")
        self._sums = self._resume()
        self.done = min(len(self._sums) * shape.step, shape.images)

    @property
    def left(self) -> int:
        """Bytes still to be written."""
        return self.shape.nbytes - self.shape.bytes_of(self.done)

    def write(self, first: int, last: int, values: Tensor) -> None:
        """Write the rows of images `first` to `last` (excluded)."""
        wanted = ((last - first) * self.shape.views, self.shape.width)
        if tuple(values.shape) != wanted:
            raise KdbenchError(
                f"recipe.teacher_cache: the teacher's {self._path.stem} have shape {tuple(values.shape)}, "
                f"expected {wanted}; use off"
            )
        rows = values.detach().to(_TORCH[self.shape.dtype]).cpu().numpy()
        if not np.isfinite(rows).all():
            largest = float(values.detach().float().abs().max())
            fix = "use fp32" if self.shape.dtype == "fp16" and math.isfinite(largest) else "use off"
            raise KdbenchError(
                f"recipe.teacher_cache: {self.shape.dtype}: a number of the teacher ({largest:g}) "
                f"does not fit; {fix}"
            )
        data = np.ascontiguousarray(rows).tobytes()
        number = first // self.shape.step
        with self._part.open("r+b") as f:
            f.seek(self.shape.bytes_of(first))
            f.write(data)
        if number == len(self._sums):
            self._sums.append(zlib.crc32(data))
            with self._journal.open("a") as journal:
                journal.write(f"{self._sums[-1]}\n")

    def finish(self, note: Path, made: str) -> None:
        """Make the table valid."""
        with self._part.open("rb") as f:
            os.fsync(f.fileno())
        note.unlink(missing_ok=True)
        self._part.rename(self._path)
        atomic_write_json(note, {"shape": asdict(self.shape), "made": made, "crc32": self._sums})
        self._journal.unlink(missing_ok=True)

    def _resume(self) -> list[int]:
        """Return the checksums of the good parts; a file that has none starts anew."""
        try:
            known = [int(line) for line in self._journal.read_text().split()]
            found = list(_checksums(self._part, self.shape, len(known)))
        except (OSError, ValueError):
            known, found = [], []
        good = 0
        while good < min(len(known), len(found)) and known[good] == found[good]:
            good += 1
        # the last part is computed again, so that a fill that was cut at its very end knows the dtype
        sums = known[: min(good, len(self.shape.parts()) - 1)]
        self._part.touch()
        os.truncate(self._part, self.shape.bytes_of(len(sums) * self.shape.step))
        self._journal.write_text("".join(f"{s}\n" for s in sums))
        return sums


def _checksums(path: Path, shape: Shape, parts: int | None = None) -> Iterator[int]:
    with path.open("rb") as f:
        for first, last in shape.parts()[:parts]:
            yield zlib.crc32(f.read(shape.bytes_of(last) - shape.bytes_of(first)))
