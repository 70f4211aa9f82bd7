"""Differences and ratios against values by hand and by SciPy."""

from __future__ import annotations

import math
import random

import pytest

from kdbench.stats.differences import holm, paired_difference, paired_ratio, ratio_of_medians


def test_paired_difference_by_hand():
    """Differences 1, 2, 3: mean 2, sd 1, t(0.975, 2) = 4.302653 -> half width 4.302653 / sqrt(3)."""
    found = paired_difference([10.0, 20.0, 30.0], [11.0, 22.0, 33.0])
    assert (found.n, found.a, found.b, found.value) == (3, 20.0, 22.0, 2.0)
    half = 4.302652729911275 / math.sqrt(3)
    assert found.low == pytest.approx(2 - half)
    assert found.high == pytest.approx(2 + half)
    assert not found.significant


def test_paired_difference_is_scipys():
    from scipy import stats

    rng = random.Random(1)
    a = [rng.gauss(70, 3) for _ in range(5)]
    b = [x + rng.gauss(2, 0.5) for x in a]
    found = paired_difference(a, b)
    low, high = stats.ttest_rel(b, a).confidence_interval()
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.significant


def test_pairing_matters():
    """The seeds differ by far more than the sides, and only pairs can see the difference."""
    assert paired_difference([10, 50, 90], [11, 51.1, 91.05]).significant
    assert not paired_difference([10, 50, 90], [51.1, 91.05, 11]).significant


def test_one_pair_has_no_interval_and_is_never_significant():
    found = paired_difference([1.0], [9.0])
    assert (found.value, found.low, found.high, found.significant) == (8.0, None, None, False)


def test_equal_sides():
    found = paired_difference([1.0, 2.0], [1.0, 2.0])
    assert (found.value, found.low, found.high, found.significant) == (0, 0, 0, False)


def test_differences_that_are_all_equal_but_not_0_have_no_interval():
    found = paired_difference([50.0, 60.0, 70.0], [50.5, 60.5, 70.5])
    assert (found.value, found.low, found.high, found.significant) == (0.5, None, None, False)
    assert holm([found]) == []


def test_paired_ratio_is_a_difference_of_logarithms():
    found = paired_ratio([1.0, 2.0, 4.0], [2.0, 4.4, 7.2])
    expected = (2.0 * 2.2 * 1.8) ** (1 / 3)
    assert found.value == pytest.approx(expected)
    assert found.a == pytest.approx(2.0)
    assert found.low < expected < found.high
    assert found.low * found.high == pytest.approx(expected**2)
    assert found.significant
    assert paired_ratio([1.0, 2.0], [3.0, 2.5]).significant is False


def test_ratio_turned_round_is_the_inverse():
    a, b = [1.0, 2.0, 4.0], [2.0, 4.4, 7.2]
    there, back = paired_ratio(a, b), paired_ratio(b, a)
    assert there.value * back.value == pytest.approx(1)
    assert there.low * back.high == pytest.approx(1)


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 2.0])])
def test_what_is_not_paired_is_refused(a, b):
    with pytest.raises(ValueError, match="expected pairs"):
        paired_difference(a, b)


def test_a_ratio_needs_positive_values():
    with pytest.raises(ValueError, match="positive"):
        paired_ratio([1.0, 0.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="positive"):
        ratio_of_medians([], [1.0])


def test_ratio_of_medians():
    rng = random.Random(0)
    a = [100 + rng.gauss(0, 2) for _ in range(20)]
    b = [110 + rng.gauss(0, 2) for _ in range(20)]
    found = ratio_of_medians(a, b)
    assert found.value == pytest.approx(1.1, abs=0.02)
    assert 1.06 < found.low < found.value < found.high < 1.14
    assert found.significant
    assert ratio_of_medians(a, b) == found
    assert not ratio_of_medians(a, a[::-1]).significant


def test_the_bootstrap_covers_what_it_should():
    """Two series of one distribution: about one interval in twenty leaves out 1."""
    rng = random.Random(2)
    draw = lambda: [rng.lognormvariate(0, 0.1) for _ in range(20)]  # noqa: E731
    out = sum(ratio_of_medians(draw(), draw()).significant for _ in range(100))
    assert out <= 14


def test_a_short_series_has_no_interval():
    found = ratio_of_medians([1.0, 1.0], [2.0, 2.0, 2.0])
    assert (found.n, found.value, found.low, found.significant) == (2, 2.0, None, False)


def test_probabilities_are_scipys_and_go_with_the_intervals():
    from scipy import stats

    rng = random.Random(3)
    for shift in (0.0, 0.5, 2.0):
        a = [rng.gauss(70, 3) for _ in range(5)]
        b = [x + rng.gauss(shift, 0.5) for x in a]
        found, ratio = paired_difference(a, b), paired_ratio(a, b)
        assert found.p == pytest.approx(stats.ttest_rel(b, a).pvalue)
        assert ratio.p == pytest.approx(
            stats.ttest_rel([math.log(x) for x in b], [math.log(x) for x in a]).pvalue
        )
        for one in (
            found,
            ratio,
            ratio.widened(1.005),
            ratio_of_medians(a, b),
            ratio_of_medians(a, b).widened(1.1),
        ):
            assert (one.p < 0.05) == one.significant


def test_a_widened_ratio_is_less_sure():
    found = paired_ratio([1.0, 2.0, 4.0], [2.0, 4.1, 8.1])
    wider = found.widened(1.5).widened(1.2)
    assert (wider.low, wider.high) == pytest.approx((found.low / 1.8, found.high * 1.8))
    assert found.p < wider.p < 0.05
    assert found.widened(3.0).p == 1.0
    assert found.without_interval().p is None
    assert paired_difference([1.0, 2.0], [1.0, 2.0]).p == 1.0
    assert paired_difference([1.0, 2.0], [2.0, 3.0]).p is None


def test_of_many_comparisons_chance_is_taken_out():
    """At three degrees of freedom: the first is sure, the others would be so alone only."""
    sure = paired_difference([0.0] * 4, [1.0, 1.001, 0.999, 1.0])
    alone = paired_difference([0.0] * 4, [1.0, 1.4, 0.6, 0.9])
    nothing = paired_difference([0.0] * 4, [1.0, -1.0, 0.5, -0.4])
    assert 0.005 < alone.p < 0.0125
    assert holm([alone]) == [alone]
    assert holm([nothing, alone, nothing, sure]) == [alone, sure]
    assert holm([alone, *[nothing] * 20, sure, nothing.without_interval()]) == [sure]
    assert holm([]) == []
