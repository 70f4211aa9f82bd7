"""Where a data set lives, decided by facts that are in the cell id only; and sizes in words."""

from __future__ import annotations

from kdbench.protocol.types import DataInfo

#: Largest data set, in bytes of uint8 pixels, that ``auto`` keeps on the device.
RESIDENT_BYTES = 2 * 2**30


def choose_storage(storage: str, info: DataInfo, augment_kind: str) -> str:
    """Return ``resident`` or ``stream`` for ``auto``; RandomResizedCrop needs the full-size images and streams."""
    if storage != "auto":
        return storage
    total = (info.n_train + info.n_val + info.n_test) * info.image_size**2 * info.in_chans
    return "stream" if augment_kind == "rrc" or total > RESIDENT_BYTES else "resident"


def size_text(nbytes: float) -> str:
    """Return a size for people: ``1.62 GB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= scale:
            return f"{nbytes / scale:.3g} {unit}"
    return f"{nbytes:.0f} bytes"
