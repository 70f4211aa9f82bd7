"""One registry for the tests of this folder."""

import pytest

from kdbench.registry import Registry


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry.load()
