"""Two speed sheets: pairing, refusals, drift."""

from __future__ import annotations

import pytest

from kdbench.cli.compare import sheet_regressions
from kdbench.errors import KdbenchError
from kdbench.leaderboard.compare_sheets import compare_sheets
from kdbench.results.speed import SpeedSheet

STEADY = [10.0, 10.1, 9.9, 10.05, 9.95, 10.0, 10.02, 9.98]


def row(ratio=1.0, **kw):
    samples = [ms / ratio for ms in STEADY]
    return {
        "model": "resnet20",
        "mode": "infer",
        "precision": "fp32",
        "batch_size": 64,
        "images_per_s": 6400.0 * ratio,
        "samples_ms": samples,
        **kw,
    }


def sheet(*rows, drift=0.5, env=None, **settings):
    given = {
        "models": ["resnet20"], "modes": ["infer"], "batch_sizes": [64], "precisions": ["fp32"],
        "image_size": 32, "num_classes": 10, "rounds": 8, "max_seconds": 1.0,
    }  # fmt: skip
    return SpeedSheet(
        settings={**given, **settings},
        environment={"device_name": "Test CPU", "torch": "2.15.0", **(env or {})},
        drift_percent=drift,
        rows=list(rows),
        started_at="2026-01-02T03:04:05+00:00",
        finished_at="2026-01-02T03:05:05+00:00",
    )


def test_a_slower_row_is_a_regression():
    found = compare_sheets(sheet(row()), sheet(row(0.9), env={"torch": "2.16.0"}))
    (line,) = found.lines
    assert line.speed.value == pytest.approx(0.9)
    assert line.speed.a == pytest.approx(6400)
    assert line.significant
    assert found.notes == ["torch: 2.15.0 in A, 2.16.0 in B"]
    assert sheet_regressions(found, 0.05) == ["resnet20, infer, fp32, 64: -10.0 %"]
    assert sheet_regressions(found, 0.2) == []
    assert sheet_regressions(found, None) == []


def test_a_difference_within_the_drift_is_none():
    for a, b in ((0.0, 12.0), (-12.0, 0.0), (6.0, -6.0)):
        found = compare_sheets(sheet(row(drift_percent=a)), sheet(row(0.9, drift_percent=b)))
        assert not found.lines[0].significant
        assert sheet_regressions(found, 0.0) == []


def test_drifts_of_other_rows_do_not_cancel_out():
    drifts = {"bf16": -52.0, "fp16": 180.0, "fp32": 0.5}
    a, b = (sheet(*(row(r, precision=p, drift_percent=d) for p, d in drifts.items())) for r in (1.0, 0.9))
    found = compare_sheets(a, b)
    assert {line.name[2]: line.significant for line in found.lines} == {
        "bf16": False,
        "fp16": False,
        "fp32": True,
    }
    # twice as fast is as far from steady as half as fast
    (bf16, _, _) = (line.speed for line in found.lines)
    assert bf16.low < 0.9 * 0.48**2 < 0.9 / 0.48**2 < bf16.high
    assert found.notes == [f"{side}: the machine drifted by 52.0 %, the median of the rows" for side in "AB"]


def test_equal_sheets_have_no_difference():
    assert not compare_sheets(sheet(row()), sheet(row())).lines[0].significant


def test_different_hardware_is_refused():
    with pytest.raises(
        KdbenchError, match="different hardware are not compared: A ran on Test CPU, B on Other"
    ):
        compare_sheets(sheet(row()), sheet(row(), env={"device_name": "Other"}))


@pytest.mark.parametrize(
    ("key", "value"), [("image_size", 64), ("channels_last", True), ("threads", 2), ("num_classes", 7)]
)
def test_different_settings_are_refused(key, value):
    with pytest.raises(KdbenchError, match=f"differ in {key}"):
        compare_sheets(sheet(row()), sheet(row(), **{key: value}))


def test_rows_are_paired_and_the_rest_is_listed():
    found = compare_sheets(
        sheet(row(), row(precision="bf16"), row(found_by="speed", batch_size=128)),
        sheet(row(found_by="memory", batch_size=256), row(), row(mode="train")),
    )
    assert [line.name[-1] for line in found.lines] == ["64", "auto"]
    assert found.lines[1].note == "batch 128 in A, 256 in B"
    assert found.lines[1].speed.value == pytest.approx(2.0)
    assert found.only_a == ["resnet20, infer, bf16, 64"]
    assert found.only_b == ["resnet20, train, fp32, 64"]


def test_a_row_that_broke_is_a_regression():
    broken = row(status="oom", images_per_s=None, samples_ms=[])
    found = compare_sheets(sheet(row()), sheet(broken))
    assert sheet_regressions(found, None) == ["resnet20, infer, fp32, 64: done in A, oom in B"]
    assert sheet_regressions(compare_sheets(sheet(broken), sheet(row())), 0.0) == []
