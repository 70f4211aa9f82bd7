"""Statistics over seeds and over settings."""

from kdbench.stats.paired import Paired, paired
from kdbench.stats.summary import Summary, summarise

__all__ = ["Paired", "Summary", "paired", "summarise"]
