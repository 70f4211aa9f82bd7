"""What the records of one board must share: the protocol, and the revision of each data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from kdbench.leaderboard.rows import digest, part

if TYPE_CHECKING:
    from kdbench.results.schema import Record


def mixture(records: Iterable[Record]) -> str | None:
    """Return what the first records that cannot stand on one board differ in, or None.

    Their tables would be apart (see :class:`kdbench.leaderboard.rows.Setting`), but side by side they invite the
    comparison that the protocol forbids.
    """
    protocols: dict[int, Record] = {}
    revisions: dict[tuple[str, str, str], dict[str, Record]] = {}
    for record in records:
        protocols.setdefault(record.protocol, record)
        data = part(record, "dataset")
        # an image size, say, makes another data set of the same name
        key = (record.labels.dataset, str(data.get("name")), digest(data.get("args")))
        revisions.setdefault(key, {}).setdefault(str(data.get("revision")), record)
    if len(protocols) > 1:
        return _two("protocols", protocols)
    for (label, _, _), found in sorted(revisions.items()):
        if len(found) > 1:
            return _two(f"revisions of the data set '{label[:60]}'", found)
    return None


def _two(what: str, found: Mapping[Any, Record]) -> str:
    (a, first), (b, second) = sorted(found.items(), key=lambda item: str(item[0]))[:2]
    cells = f"cells {first.cell_id[:12]} and {second.cell_id[:12]}"
    return f"two {what}, {str(a)[:40]} and {str(b)[:40]} ({cells}): they belong on boards of their own"
