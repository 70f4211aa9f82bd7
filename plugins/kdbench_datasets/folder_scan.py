"""Finding the images of a class-per-folder tree, and a fingerprint of what was found."""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kdbench.api import DataError

#: Deepest nesting of folders below a class.
MAX_DEPTH = 32
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclass(frozen=True)
class Split:
    """One split: its folder, and file paths below it with their labels, in order of class and file name."""

    folder: str
    files: tuple[str, ...]
    labels: tuple[int, ...]

    def path(self, index: int) -> str:
        """Full path of an image."""
        return os.path.join(self.folder, self.files[index])


@dataclass(frozen=True)
class Scan:
    """What a tree holds: class names in label order, splits by name, and the fingerprint of all files."""

    class_names: tuple[str, ...]
    splits: dict[str, Split]
    revision: str


@functools.cache
def scan(root: Path) -> Scan:
    """Scan ``root/<split>/<class>/**/<image>``; once per process and root.

    Splits are ``train`` and ``test``, with ``val`` (or ``valid``) as a third one; without ``test`` that
    folder is the test split. Names that start with a dot and files with other extensions are passed over. The
    revision covers split, class, file name and size in bytes of every image, not its content.

    Raises:
        DataError: root or ``train`` is missing, no test split, an empty split, a class without images, a
            class that only the test or validation split has, both ``val`` and ``valid``, or a link out of the
            root.
    """
    if not root.is_dir():
        raise DataError(f"image folder {root}: not found, or not a folder")
    real_root = os.path.realpath(root)
    folders = {name: os.path.join(real_root, folder) for name, folder in _splits(root)}
    found = {name: _class_files(folder, real_root) for name, folder in folders.items()}
    class_names = tuple(found["train"])
    digest = hashlib.sha256()
    label = {c: k for k, c in enumerate(class_names)}
    splits = {}
    for name in sorted(found):
        classes, folder = found[name], folders[name]
        extra = sorted(set(classes) - set(class_names))
        if extra:
            where = os.path.join(folder, extra[0])
            raise DataError(f"{where}: class '{extra[0]}' is not in {folders['train']}")
        files: list[str] = []
        labels: list[int] = []
        for class_name, members in classes.items():
            for file, size in members:
                digest.update(f"{name}\0{class_name}\0{file}\0{size}\n".encode("utf-8", "surrogateescape"))
                files.append(os.path.join(class_name, file))
                labels.append(label[class_name])
        splits[name] = Split(folder, tuple(files), tuple(labels))
    return Scan(class_names, splits, f"folder-{digest.hexdigest()[:16]}")


def _splits(root: Path) -> list[tuple[str, str]]:
    """Return (split, folder) pairs."""
    if not (root / "train").is_dir():
        raise DataError(f"image folder {root}: no folder 'train' in it")
    val = [name for name in ("val", "valid") if (root / name).is_dir()]
    if len(val) == 2:
        raise DataError(f"image folder {root}: has both 'val' and 'valid'; expected one of them")
    if (root / "test").is_dir():
        return [("train", "train"), ("test", "test"), *(("val", v) for v in val)]
    if not val:
        raise DataError(f"image folder {root}: no folder 'test' (or 'val') beside 'train'")
    return [("train", "train"), ("test", val[0])]


def _class_files(folder: str, real_root: str) -> dict[str, list[tuple[str, int]]]:
    """Return class name -> [(path below the class folder, bytes)], all sorted."""
    _check_inside(folder, real_root)
    classes: dict[str, list[tuple[str, int]]] = {}
    with _scandir(folder) as entries:
        names = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
    for name in names:
        path = os.path.join(folder, name)
        classes[name] = sorted(_images(path, "", real_root, (), set()))
        if not classes[name]:
            raise DataError(f"{path}: class without images ({', '.join(EXTENSIONS)})")
    if not classes:
        raise DataError(f"{folder}: no class folders in this split")
    return classes


def _images(
    folder: str, below: str, real_root: str, above: tuple[str, ...], seen: set[str]
) -> Iterator[tuple[str, int]]:
    if os.path.islink(folder):
        _check_inside(folder, real_root)
    real = os.path.realpath(folder)
    if real in above:
        raise DataError(f"{folder}: link to a folder that holds it")
    if len(above) >= MAX_DEPTH:
        raise DataError(f"{folder}: more than {MAX_DEPTH} folders deep")
    # Links to folders that hold two links each give a tree of more files than atoms.
    if real in seen:
        raise DataError(f"{folder}: its images are in this class twice, by links")
    seen.add(real)
    with _scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _images(entry.path, f"{below}{entry.name}/", real_root, (*above, real), seen)
            elif entry.name.lower().endswith(EXTENSIONS):
                if entry.is_symlink():
                    _check_inside(entry.path, real_root)
                yield below + entry.name, _size(entry)


def _size(entry: os.DirEntry[str]) -> int:
    try:
        found = entry.stat()
    except OSError as e:
        raise DataError(f"{entry.path}: cannot be read: {e.strerror}") from e
    if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for without end
        raise DataError(f"{entry.path}: not a regular file")
    return found.st_size


def _check_inside(path: str, real_root: str) -> None:
    real = os.path.realpath(path)
    if os.path.commonpath([real, real_root]) != real_root:
        raise DataError(f"{path}: link that leaves the image folder (to {real}); copy the files instead")


def _scandir(folder: str) -> os._ScandirIterator[str]:
    try:
        return os.scandir(folder)
    except OSError as e:
        raise DataError(f"{folder}: cannot be read: {e.strerror}") from e
