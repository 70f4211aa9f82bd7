"""Decoded splits on disk, so that the cells of a matrix do not each decode every file."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

#: Splits that take more bytes than this are not kept.
MAX_BYTES = 4 << 30
#: A split is decoded in full when at least one in this many of its images is asked for.
WORTH_ONE_IN = 16

_CHUNK = 256


def decoded(
    path: Path,
    count: int,
    size: int,
    indices: np.ndarray[Any, Any],
    decode: Callable[[int], np.ndarray[Any, Any]],
) -> np.ndarray[Any, Any]:
    """Return images at `indices`, (len(indices), size, size, 3) uint8, through the file at `path`.

    The file holds the whole split and is read memory-mapped. Where it is missing or not what it should be it
    is made again, atomically, if the split is small enough and enough of it is asked for; a cache that cannot
    be written (read-only, disk full) is done without.

    Args:
        path: the ``.npy`` file.
        count: images in the split.
        size: side in pixels.
        indices: (N,) integers.
        decode: image number -> (size, size, 3) uint8; what it raises is passed on.
    """
    import numpy as np

    shape = (count, size, size, 3)
    stored = _open(path, shape)
    if stored is None and 3 * count * size * size <= MAX_BYTES and len(indices) * WORTH_ONE_IN >= count:
        _fill(path, shape, decode)
        stored = _open(path, shape)
    if stored is not None:
        return np.ascontiguousarray(stored[indices])
    out = np.empty((len(indices), size, size, 3), np.uint8)
    for row, index in enumerate(indices):
        out[row] = decode(int(index))
    return out


def _open(path: Path, shape: tuple[int, ...]) -> np.ndarray[Any, Any] | None:
    import numpy as np

    try:
        stored: np.ndarray[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return stored if stored.shape == shape and stored.dtype == np.uint8 else None


def _fill(path: Path, shape: tuple[int, ...], decode: Callable[[int], np.ndarray[Any, Any]]) -> None:
    """Write the split to `path`. Plain writes: a full disk is an OSError, in a map it would be a signal."""
    import numpy as np

    temp = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temp, "xb") as f:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(f, header)
            for start in range(0, shape[0], _CHUNK):
                block = [decode(i) for i in range(start, min(start + _CHUNK, shape[0]))]
                f.write(np.stack(block).tobytes())
            f.flush()
            os.fsync(f.fileno())
        os.replace(temp, path)
    except OSError:
        return
    finally:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)
