"""Files of the python version of CIFAR-10 and CIFAR-100: fetching, checking and reading them.

The batches are pickles. They are read by an unpickler that can make arrays, strings, numbers and containers
and nothing else, after their checksums have been compared.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle  # for an unpickler that makes arrays and nothing else # nosec B403
import shutil
import tarfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.api import DataError

if TYPE_CHECKING:
    import numpy as np

_TIMEOUT_S = 60
_BLOCK = 1 << 20


@dataclass(frozen=True)
class CifarFiles:
    """Where a CIFAR data set comes from and what its files are.

    Attributes:
        url: of the archive.
        archive_md5: checksum of the archive.
        folder: the archive's folder.
        train, test: (file name, md5) of the batches, in order.
        label_key: key of the labels in a batch.
        num_classes: number of classes.
        n_train, n_test: images per split.
    """

    url: str
    archive_md5: str
    folder: str
    train: tuple[tuple[str, str], ...]
    test: tuple[tuple[str, str], ...]
    label_key: bytes
    num_classes: int
    n_train: int
    n_test: int

    @property
    def archive(self) -> str:
        """File name of the archive."""
        return self.url.rsplit("/", 1)[-1]

    def missing(self, root: Path) -> list[str]:
        """Return the batch files that are not under `root`."""
        names = [name for name, _ in (*self.train, *self.test)]
        return [name for name in names if not (root / self.folder / name).is_file()]


def fetch(files: CifarFiles, root: Path) -> None:
    """Unpack the archive under `root`, downloading it first unless it already lies there.

    Only the batch files are written, each atomically and with its checksum compared.

    Raises:
        DataError: no connection, a wrong checksum, an archive that lacks a file or has an unsafe member, or a
            folder that cannot be written.
    """
    archive = root / files.archive
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not archive.is_file():
            _download(files, archive)
        elif (found := _md5(archive)) != files.archive_md5:
            raise DataError(
                f"{archive}: md5 {found}, expected {files.archive_md5}; delete it to download again"
            )
        _unpack(files, archive, root)
    except tarfile.TarError as e:
        raise DataError(f"{archive}: not a usable archive: {e}") from e
    except urllib.error.URLError as e:
        raise DataError(f"{files.url}: download failed: {e.reason}; or put {files.archive} in {root}") from e
    except OSError as e:
        raise DataError(f"{e.filename or root}: {e.strerror or e}") from e


def read_split(
    files: CifarFiles, root: Path, split: str
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return images (N, 32, 32, 3) uint8 and labels (N,) int64 of ``train`` or ``test``.

    Raises:
        DataError: naming the file that is missing, has a wrong checksum or does not hold what it should.
    """
    import numpy as np

    batches = {"train": files.train, "test": files.test}.get(split)
    if batches is None:
        raise DataError(f"{files.folder}: no split '{split}'; it has train and test")
    parts = [_read_batch(root / files.folder / name, md5, files) for name, md5 in batches]
    pixels = np.concatenate([p for p, _ in parts])
    labels = np.concatenate([y for _, y in parts])
    expected = files.n_train if split == "train" else files.n_test
    if len(pixels) != expected:
        raise DataError(f"{root / files.folder}: {len(pixels)} images in {split}, expected {expected}")
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels


def safe_load(raw: bytes) -> Any:
    """Unpickle a CIFAR batch; only arrays, strings, numbers and containers can come out.

    Raises:
        pickle.UnpicklingError: the pickle names anything else, or is damaged.
    """
    return _ArrayUnpickler(io.BytesIO(raw), encoding="bytes").load()


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return one of the few callables that arrays need."""
        import numpy as np

        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): _number_dtype,
            ("numpy.core.multiarray", "_reconstruct"): _empty_array,
            ("numpy._core.multiarray", "_reconstruct"): _empty_array,
            ("_codecs", "encode"): _latin1,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"refused: the pickle asks for {module}.{name}")
        return allowed[module, name]


def _number_dtype(code: Any, *_: Any) -> Any:
    import numpy as np

    text = code.decode("ascii") if isinstance(code, bytes) else str(code)
    if text.lstrip("<>|=") not in ("u1", "i1", "i4", "i8", "f4", "f8"):
        raise pickle.UnpicklingError(f"refused: array of type {text!r}")
    return np.dtype(text)


def _empty_array(kind: Any, shape: Any, code: Any) -> Any:
    import numpy as np

    if kind is not np.ndarray or tuple(shape) != (0,):
        raise pickle.UnpicklingError("refused: not a plain array")
    return np.ndarray((0,), np.uint8)


def _latin1(text: str, encoding: Any) -> bytes:
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"refused: encoding {encoding!r}")
    return text.encode("latin1")


def _read_batch(path: Path, md5: str, files: CifarFiles) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    import numpy as np

    try:
        raw = path.read_bytes()
    except OSError as e:
        raise DataError(f"{path}: cannot be read: {e.strerror}") from e
    found = hashlib.md5(raw, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(f"{path}: md5 {found}, expected {md5}; delete the folder and prepare it again")
    try:
        batch = safe_load(raw)
        pixels = np.asarray(batch[b"data"])
        labels = np.asarray(batch[files.label_key], np.int64)
    except Exception as e:  # a damaged pickle can raise nearly anything
        raise DataError(f"{path}: not a CIFAR batch: {type(e).__name__}: {e}") from e
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072:
        raise DataError(f"{path}: data is {pixels.dtype} {pixels.shape}, expected uint8 (N, 3072)")
    known = (labels >= 0) & (labels < files.num_classes)
    if labels.shape != pixels.shape[:1] or not known.all():
        raise DataError(f"{path}: expected one label in 0..{files.num_classes - 1} per image")
    return pixels, labels


def _download(files: CifarFiles, archive: Path) -> None:
    temp = archive.with_name(f".{archive.name}.{uuid.uuid4().hex}.tmp")
    digest = hashlib.md5(usedforsecurity=False)
    try:
        # https, of a constant
        source = urllib.request.urlopen(files.url, timeout=_TIMEOUT_S)  # nosec B310
        with source, open(temp, "xb") as f:
            while block := source.read(_BLOCK):
                digest.update(block)
                f.write(block)
            f.flush()
            os.fsync(f.fileno())
        if (found := digest.hexdigest()) != files.archive_md5:
            raise DataError(f"{files.url}: md5 {found} of the download, expected {files.archive_md5}")
        os.replace(temp, archive)
    finally:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)


def _unpack(files: CifarFiles, archive: Path, root: Path) -> None:
    wanted = {f"{files.folder}/{name}": (name, md5) for name, md5 in (*files.train, *files.test)}
    target = root / files.folder
    target.mkdir(exist_ok=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            tarfile.data_filter(member, str(root))
            source = tar.extractfile(member) if member.name in wanted and member.isreg() else None
            if source is None:
                continue
            name, md5 = wanted.pop(member.name)
            temp = target / f".{name}.{uuid.uuid4().hex}.tmp"
            try:
                with source, open(temp, "xb") as f:
                    shutil.copyfileobj(source, f, _BLOCK)
                    f.flush()
                    os.fsync(f.fileno())
                if (found := _md5(temp)) != md5:
                    raise DataError(f"{archive}: md5 {found} of {name}, expected {md5}")
                os.replace(temp, target / name)
            finally:
                with contextlib.suppress(OSError):
                    temp.unlink(missing_ok=True)
    if wanted:
        raise DataError(f"{archive}: lacks {', '.join(sorted(wanted))}")


def _md5(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
