"""Which checks of the conformance suite depend on the networks, for tests of a method on more than one pair.

Every check runs for every method in ``tests/testing``, on the bench's own networks.
"""

from __future__ import annotations

#: Left out are those that train several cells and ask about the process, which are the same for all networks.
ON_PAIRS = (
    "parameters learn",
    "mean over batch",
    "teacher untouched",
    "registered state",
    "no hooks left",
    "resume",
    "deploy",
    "odd batches",
    "autocast",
)
