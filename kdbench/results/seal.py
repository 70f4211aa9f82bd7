"""The seal of a record: a digest of the rest, by which an edit or a bad disk shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdbench.errors import RecordError


def seal_of(obj: Mapping[str, Any]) -> str:
    """Return the sha256 of a record's canonical JSON, its ``seal`` left out."""
    kept = {key: value for key, value in obj.items() if key != "seal"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_seal(obj: Mapping[str, Any], where: str | Path) -> None:
    """Raise RecordError for a record that was changed since it was written; one without a seal passes."""
    seal = obj.get("seal")
    if seal is not None and seal != seal_of(obj):
        raise RecordError(f"{where}: seal: the record was changed after it was written")
