import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbench.stats import summarise


def test_three_seeds_by_hand():
    s = summarise([70.0, 72.0, 74.0])
    assert (s.n, s.mean, s.sd) == (3, 72.0, 2.0)
    half = 4.302652729911275 * 2.0 / 3**0.5  # t(0.975, df=2) of printed tables: 4.303
    assert s.ci95_low == pytest.approx(72.0 - half)
    assert s.ci95_high == pytest.approx(72.0 + half)


def test_agrees_with_scipy_stats():
    from scipy import stats

    values = [61.2, 60.9, 63.4, 62.2, 61.0]
    s = summarise(values)
    low, high = stats.t.interval(0.95, 4, loc=s.mean, scale=stats.sem(values))
    assert (s.ci95_low, s.ci95_high) == pytest.approx((low, high))


def test_missing_cell_makes_the_mean_null():
    s = summarise([70.0, None, 74.0])
    assert s.n == 2
    assert s.mean is s.sd is s.ci95_low is s.ci95_high is None


def test_one_value_has_no_spread():
    s = summarise([70.5])
    assert (s.n, s.mean) == (1, 70.5)
    assert s.sd is s.ci95_low is s.ci95_high is None


def test_no_values():
    assert summarise([]).n == 0
    assert summarise([]).mean is None


def test_not_finite_is_refused():
    with pytest.raises(ValueError, match="finite"):
        summarise([1.0, float("nan")])


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8), st.randoms())
def test_order_does_not_matter_and_interval_holds_the_mean(values, rng):
    a = summarise(values)
    shuffled = list(values)
    rng.shuffle(shuffled)
    assert summarise(shuffled) == a
    if a.ci95_low is not None:
        assert a.ci95_low <= a.mean <= a.ci95_high


@pytest.mark.parametrize("values", [[93.8] * 3, [70.1, 70.1]])
def test_equal_values_have_no_interval(values):
    s = summarise(values)
    assert (s.mean, s.sd, s.why) == (pytest.approx(values[0]), 0.0, "all values are equal")
    assert s.ci95_low is s.ci95_high is None
