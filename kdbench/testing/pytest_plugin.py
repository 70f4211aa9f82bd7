"""pytest plug-in: the fixture ``check_method``.

A method's whole test can be::

    def test_my_method(check_method):
        check_method("my-method")
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def check_method() -> Callable[..., Any]:
    """Return a function that runs the conformance suite and fails the test with what it found."""

    def run(method: Any, **options: Any) -> Any:
        from kdbench.testing import check_method as check

        report = check(method, **options)
        if not report.passed:
            pytest.fail(f"method '{report.method}':\n" + "\n".join(report.failures()), pytrace=False)
        return report

    return run
