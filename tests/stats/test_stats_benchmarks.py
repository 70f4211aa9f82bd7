"""Two runs of a benchmark suite."""

from __future__ import annotations

import pytest

from kdbench.stats.benchmarks import compare_benchmarks, hardware

TIMES = [1.0, 1.01, 0.99, 1.02, 0.98, 1.0]


def run(*benchmarks, cpu="Test CPU", **kw):
    return {
        "machine_info": {"cpu": {"brand_raw": cpu}},
        "kdbench": {"kdbench": "0.1.0", "torch": "2.15.0", "gpu": None, **kw},
        "benchmarks": list(benchmarks),
    }


def bench(name="t.py::test_a", factor=1.0, **extra):
    data = [t * factor for t in TIMES]
    return {"fullname": name, "stats": {"median": factor, "data": data}, "extra_info": extra}


def only(found):
    (line,) = found.lines
    return line


def test_times_are_ratios_of_medians():
    line = only(compare_benchmarks(run(bench()), run(bench(factor=1.5))))
    assert line.time.value == pytest.approx(1.5)
    assert line.ratio is None
    assert line.slower(1.4)
    assert not line.slower(1.6)
    assert not only(compare_benchmarks(run(bench(factor=1.5)), run(bench()))).slower(1.0)


def test_a_difference_within_the_interval_is_none():
    noisy = bench()
    noisy["stats"]["data"] = [0.5, 0.6, 2.0, 2.2, 0.4, 2.5]
    line = only(compare_benchmarks(run(bench()), run(noisy)))
    assert line.time.value > 1.2
    assert not line.slower(1.2)


def test_one_round_is_never_enough():
    once = bench(factor=3.0)
    del once["stats"]["data"]
    assert not only(compare_benchmarks(run(bench()), run(once))).slower(1.0)


def test_a_ratio_of_its_own_decides():
    line = only(compare_benchmarks(run(bench(ratio=1.0)), run(bench(factor=2.0, ratio=1.1))))
    assert line.ratio == pytest.approx(1.1)
    assert not line.slower(1.2)
    assert only(compare_benchmarks(run(bench(ratio=1.0)), run(bench(ratio=1.3)))).slower(1.2)


def test_of_a_gain_less_is_worse():
    found = compare_benchmarks(run(bench(speedup=2.0)), run(bench(speedup=1.6)))
    assert only(found).ratio == pytest.approx(1.25)
    assert only(found).slower(1.2)


def test_quartiles_stand_in_for_rounds_that_were_not_kept():
    def kept(median, iqr, rounds=30):
        return {"fullname": "t.py::a", "stats": {"median": median, "iqr": iqr, "rounds": rounds}}

    line = only(compare_benchmarks(run(kept(1.0, 0.1)), run(kept(1.5, 0.1))))
    # the error of each median is 1.2533 * 0.1 / 1.349 / sqrt(30) of 1 and of 1.5
    assert line.time.low == pytest.approx(1.5 * 0.96, rel=0.01)
    assert line.time.high == pytest.approx(1.5 * 1.04, rel=0.01)
    assert line.slower(1.4)
    assert not only(compare_benchmarks(run(kept(1.0, 1.5)), run(kept(1.3, 1.5)))).slower(1.0)
    assert not only(compare_benchmarks(run(kept(1.0, 0.1, 2)), run(kept(3.0, 0.1, 2)))).slower(1.0)


def test_machines_are_known_in_both_forms():
    ours = {"machine_info": {"cpu": "Test CPU", "cores": 2, "gpu": "A GPU", "torch": "2.15.0"}}
    theirs = {"machine_info": {"cpu": {"brand_raw": "Test CPU", "count": 2}}, "kdbench": {"gpu": "A GPU"}}
    assert hardware(ours) == hardware(theirs) == "Test CPU, 2 cores and A GPU"
    assert hardware({}) == "unknown hardware"
    fewer = {"machine_info": {"cpu": "Test CPU", "cores": 1}}
    assert hardware(fewer) != hardware({"machine_info": {"cpu": "Test CPU", "cores": 2}})


@pytest.mark.parametrize("other", [{"cpu": "Other"}, {"gpu": "A GPU"}])
def test_times_of_other_hardware_are_not_compared_but_ratios_are(other):
    found = compare_benchmarks(run(bench(ratio=1.0)), run(bench(factor=9.0, ratio=1.3), **other))
    assert only(found).time is None
    assert only(found).slower(1.2)
    assert found.notes[0].startswith("times not compared")
    assert found.uncompared == []
    bare = compare_benchmarks(run(bench()), run(bench(factor=9.0), **other))
    assert bare.uncompared == ["t.py::test_a"]
    assert not only(bare).slower(1.0)


def test_what_is_missing_or_new_and_versions():
    found = compare_benchmarks(run(bench(), bench("gone")), run(bench(), bench("new"), torch="2.16.0"))
    assert only(found).name == "t.py::test_a"
    assert found.missing == ["gone"]
    assert found.notes == ["torch: 2.15.0 in the baseline, 2.16.0 now"]
