"""Statistics over seeds."""

from kdbench.stats.summary import Summary, summarise

__all__ = ["Summary", "summarise"]
