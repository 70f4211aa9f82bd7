"""Find the entry points of the group ``kdbench`` among the installed distributions, importing nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import EntryPoint, distributions, entry_points

from kdbench.errors import visible
from kdbench.hooks import GROUP

#: Longest name and version, in characters, as records have them.
_LONGEST = 200


def normalise(name: str) -> str:
    """Return a distribution name in the form in which two spellings compare equal (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


@dataclass(frozen=True)
class EntryPointSource:
    """An entry point and where it comes from.

    Attributes:
        name: the entry point's name.
        distribution: name of the distribution that declares it.
        version: version of that distribution.
        entry_point: the entry point itself; its ``load()`` imports the plug-in.
        direct_url: text of the distribution's ``direct_url.json`` (PEP 610), or None.
    """

    name: str
    distribution: str
    version: str
    entry_point: EntryPoint
    direct_url: str | None = None


def find_entry_points(group: str = GROUP) -> list[EntryPointSource]:
    """Return the entry points of `group`, sorted by distribution and name.

    A distribution found twice on ``sys.path`` (an editable install beside a wheel, a path given twice) counts
    once: the first one wins, as it does for imports. Distributions with unreadable metadata are left out.
    """
    try:
        found = list(entry_points(group=group))
    except Exception:  # one distribution with malformed metadata spoils the answer for all
        found = _one_by_one(group)
    sources: dict[tuple[str, str], EntryPointSource] = {}
    for entry_point in found:
        try:
            source = _source(entry_point)
        except Exception:  # metadata that are not text, which only their reader finds out
            continue
        if source is not None:
            sources.setdefault((normalise(source.distribution), source.name), source)
    return [sources[key] for key in sorted(sources)]


def _source(entry_point: EntryPoint) -> EntryPointSource | None:
    dist = entry_point.dist
    name = str(dist.metadata["Name"] or "") if dist else ""
    if dist is None or not name:
        return None
    try:
        direct_url = dist.read_text("direct_url.json")
    except ValueError:
        direct_url = None
    return EntryPointSource(
        # shown in tables and messages, and written into records
        name=visible(entry_point.name),
        distribution=visible(name)[:_LONGEST],
        version=visible(str(dist.metadata["Version"] or ""))[:_LONGEST],
        entry_point=entry_point,
        direct_url=direct_url,
    )


def _one_by_one(group: str) -> list[EntryPoint]:
    seen: set[str] = set()
    found: list[EntryPoint] = []
    for dist in distributions():
        try:
            name = normalise(str(dist.metadata["Name"]))
            mine = [ep for ep in dist.entry_points if ep.group == group]
        except Exception:
            continue
        if name not in seen:
            found += mine
        seen.add(name)
    return found
