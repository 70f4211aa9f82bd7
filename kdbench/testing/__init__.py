"""For authors of methods: is my plug-in right? ``check_method("name")`` or ``kdbench check-method name``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdbench.testing.conformance import Report

__all__ = ["check_method"]


def check_method(method: Any, **options: Any) -> Report:
    """Run the conformance suite on a registered name or a ``Method`` class; see :mod:`.conformance`."""
    from kdbench.testing.conformance import check_method as run

    return run(method, **options)
