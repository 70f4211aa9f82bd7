"""What a matrix tells of its records' warnings."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from factories import make_record, make_speed_record

from kdbench.cli._warnings import print_warnings


@pytest.fixture
def told(tmp_path, capsys):
    """Return what is printed of cells, given as (record, whether it only measures speed)."""

    def run(*cells):
        folder = tmp_path / "run"
        for record, _ in cells:
            cell = folder / "cells" / record["cell_id"]
            cell.mkdir(parents=True)
            (cell / "result.json").write_text(json.dumps(record))
        planned = [
            SimpleNamespace(
                status=record["status"],
                label=f"cell {number}",
                folder=folder / "cells" / record["cell_id"],
                pattern=SimpleNamespace(file=SimpleNamespace(only_speed=only)),
            )
            for number, (record, only) in enumerate(cells)
        ]
        print_warnings(SimpleNamespace(cells=planned, run=SimpleNamespace(path=folder)))
        return capsys.readouterr().out.replace(str(folder), "RUN").splitlines()

    return run


def test_warnings_of_speeds_are_printed(told):
    record = make_speed_record() | {"warnings": ["the machine drifted", "train: oom: too large"]}
    assert told((record, True)) == [
        "warning: cell 0: the machine drifted",
        "warning: cell 0: train: oom: too large",
    ]


def test_those_of_trained_cells_are_counted(told):
    first, second, third = (make_record(seed=seed, warnings=["a"] * seed) for seed in range(3))
    assert told((first, False), (second, False), (third, False)) == [
        "3 warning(s) in 2 record(s): see `warnings` in RUN/cells/*/result.json"
    ]


def test_cells_without_a_warning_or_a_result_tell_nothing(told):
    assert told((make_record(), False), (make_record(seed=1, status="failed", warnings=["a"]), False)) == []
