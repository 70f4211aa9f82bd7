"""Digest of a record, by which a sink sees that it holds the record already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from kdbench.results.content import KEY
from kdbench.results.store import validate_record


def record_sha256(record: Mapping[str, Any]) -> str:
    """Return the sha256 (64 hexadecimal digits) of the record's canonical JSON, defaults filled in.

    The key ``extra`` is left out: it holds values that depend on other cells and is not in ``result.json``. So is
    the record's own digest, which says nothing more.
    Raises RecordError for a record that is not valid.
    """
    kept = {key: value for key, value in record.items() if key not in ("extra", KEY)}
    full = validate_record(kept, f"record {str(record.get('cell_id'))[:12]}").model_dump(mode="json")
    del full[KEY]
    text = json.dumps(full, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
