"""For authors of methods: is my plug-in right? ``check_method("name")`` or ``kdbench check-method name``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdbench.testing.conformance import Check, Report

__all__ = ["Check", "Report", "check_method"]


def check_method(method: Any, **options: Any) -> Report:
    """Run the conformance suite on a registered name or a ``Method`` class; see :mod:`.conformance`."""
    from kdbench.testing.conformance import check_method as run

    return run(method, **options)


def __getattr__(name: str) -> Any:
    # torch is imported only when the suite is used: pytest loads this package for its plug-in
    if name in ("Check", "Report"):
        from kdbench.testing import conformance

        return getattr(conformance, name)
    raise AttributeError(f"module 'kdbench.testing' has no attribute {name!r}")
