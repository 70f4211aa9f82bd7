"""The digest that a record carries of its own content, by which an edit shows.

It is no signature: who edits a record can make a new one. That somebody else gets the same result is what
``kdbench reproduce`` shows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from kdbench.errors import RecordError

KEY = "content_sha256"
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_sha256(record: Mapping[str, Any]) -> str:
    """Return the sha256 (64 hexadecimal digits) of a record's JSON, keys sorted, no spaces, without its digest.

    It is taken of the fields that are there, so that fields which later versions add leave it as it is. Raises
    ValueError for NaN and infinite numbers, TypeError for what JSON cannot hold.
    """
    kept = {key: value for key, value in record.items() if key != KEY}
    return hashlib.sha256(_ENCODER.encode(kept).encode("ascii")).hexdigest()


def refuse_edited(record: Mapping[str, Any], where: object) -> None:
    """Raise RecordError where a record carries a digest and that is not its content's."""
    said = record.get(KEY)
    try:
        same = said is None or said == content_sha256(record)
    except ValueError:  # a number that no record is written with
        same = False
    if not same:
        raise RecordError(
            f"{where}: {KEY} is not the digest of the content: the record was edited after it was written"
        )
