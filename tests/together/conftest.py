"""A world of cells for the tests of several processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gang_world import importable, install
from together_world import Cells


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cells]:
    site = tmp_path_factory.mktemp("site")
    install(site)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        importable(site)
        yield Cells(tmp_path_factory.mktemp("world"))
