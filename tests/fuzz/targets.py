"""All targets."""

from __future__ import annotations

from . import boards, files, parsers
from .engine import Target

TARGETS: tuple[Target, ...] = (*parsers.TARGETS, *boards.TARGETS, *files.TARGETS)
