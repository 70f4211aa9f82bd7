"""Bootstrap and Fieller intervals: by hand, against SciPy, and how often they cover what they should."""

import numpy as np
import pytest

from kdbench.stats import paired, summarise
from kdbench.stats.bootstrap import iqm, iqm_interval, studentised_interval, studentised_intervals
from kdbench.stats.ratio import fieller

DRAWS = 2000


def normal(n, seed, draws=DRAWS):
    return np.random.RandomState(seed).normal(0.3, 1.0, (draws, n))


def covers(low, high, truth):
    return float(np.mean((np.asarray(low) <= truth) & (truth <= np.asarray(high))))


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_interval_of_a_mean_covers(n):
    found = [summarise(row) for row in normal(n, 11).tolist()]
    assert 0.93 <= covers([f.ci95_low for f in found], [f.ci95_high for f in found], 0.3) <= 0.97


@pytest.mark.parametrize("n", [3, 5])
def test_the_paired_interval_of_few_seeds_covers(n):
    """Seeds move both sides by far more than the difference, as shared data order and initialisation do."""
    shared = 5 * normal(n, 12)
    mine = shared + normal(n, 13)
    found = [
        paired(dict(enumerate(a)), dict(enumerate(b)))
        for a, b in zip(mine.tolist(), shared.tolist(), strict=True)
    ]
    assert {f.interval for f in found} == {"t"}
    assert 0.93 <= covers([f.low for f in found], [f.high for f in found], 0.3) <= 0.97


def bootstrap(samples):
    parts = [studentised_intervals(part) for part in np.array_split(np.sort(samples, axis=1), 10)]
    return (np.concatenate([p[i] for p in parts]) for i in (0, 1))


def test_the_paired_interval_of_ten_seeds_covers():
    samples = normal(10, 14)
    low, high = bootstrap(samples)
    assert 0.93 <= covers(low, high, 0.3) <= 0.97
    for row, a, b in list(zip(samples.tolist(), low, high, strict=True))[:10]:
        found = paired(dict(enumerate(row)), dict.fromkeys(range(10), 0.0))
        assert (found.interval, found.low, found.high) == ("bootstrap-t", pytest.approx(a), pytest.approx(b))


def test_the_bootstrap_pays_on_skewed_differences():
    """Why it is not Student's t at every n: log-normal differences, sigma 0.8."""
    samples = np.exp(np.random.RandomState(15).normal(0, 0.8, (DRAWS, 10)))
    found = [summarise(row) for row in samples.tolist()]
    truth = np.exp(0.32)
    by_t = covers([f.ci95_low for f in found], [f.ci95_high for f in found], truth)
    assert covers(*bootstrap(samples), truth) > by_t + 0.03


def test_a_percentile_bootstrap_would_not_cover_three_seeds():
    """Why it is not the plain bootstrap: of 2,000 intervals of three seeds fewer than 85 in 100 cover."""
    samples = normal(3, 16)
    means = samples[:, np.random.RandomState(0).randint(0, 3, (500, 3))].mean(axis=2)
    assert covers(*np.quantile(means, (0.025, 0.975), axis=1), 0.3) < 0.85


def test_the_studentised_interval_is_the_same_each_time_and_for_every_order():
    values = [0.1, 0.5, -0.2, 0.9, 1.4, 0.3, 0.2, -0.7, 0.8, 0.6]
    assert studentised_interval(values) == studentised_interval(values[::-1])
    # the stream of random numbers is part of every board, so it may not change with a version of numpy
    assert studentised_interval(values) == pytest.approx((-0.0642937, 0.7965298))
    with pytest.raises(ValueError, match="at least five"):
        studentised_interval([1.0, 2.0])


def test_iqm_is_scipys_trimmed_mean():
    from scipy.stats import trim_mean

    for n in (1, 3, 4, 10, 65):
        values = np.random.RandomState(n).normal(size=n)
        assert float(iqm(values)) == pytest.approx(trim_mean(values, 0.25))


def test_one_outlier_does_not_move_the_iqm():
    assert float(iqm([1.0, 2.0, 3.0, 4.0])) == float(iqm([-1e9, 2.0, 3.0, 4.0])) == 2.5


@pytest.mark.parametrize(("settings", "seeds"), [(6, 3), (3, 5), (4, 4), (13, 5)])
def test_the_interval_of_the_iqm_covers(settings, seeds):
    """At 12 degrees of freedom and more. Settings differ by less than seeds, so that the true IQM is known: 0."""
    random = np.random.RandomState(17)
    draws = 400
    shift = np.linspace(-0.5, 0.5, settings)
    hits = 0
    for _ in range(draws):
        low, high = iqm_interval((random.normal(size=(settings, seeds)) + shift[:, None]).tolist())
        hits += low <= 0 <= high
    assert hits / draws >= 0.90


def test_the_interval_of_the_iqm_needs_two_seeds():
    with pytest.raises(ValueError, match="at least two"):
        iqm_interval([[1.0, 2.0], [1.0]])


def test_fieller_by_hand():
    """A denominator without noise: the t-interval of the numerator, divided."""
    low, high = fieller([1.0, 2.0, 3.0], [4.0, 4.0, 4.0])
    half = 4.302652729911275 / 3**0.5
    assert (low, high) == (pytest.approx((2 - half) / 4), pytest.approx((2 + half) / 4))


def test_fieller_ends_are_where_the_difference_stops_to_cover_zero():
    top, bottom = [2.0, 3.5, 2.5, 3.0], [8.0, 9.5, 9.0, 10.0]
    for end in fieller(top, bottom):
        s = summarise([a - end * b for a, b in zip(top, bottom, strict=True)])
        assert min(abs(s.ci95_low), abs(s.ci95_high)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("top", "bottom"),
    [
        ([1.0, 2.0], [4.0, 5.0]),  # two seeds
        ([1.0, 2.0, 3.0], [1.0, -1.0, 0.5]),  # no gap to speak of
        ([1.0, 1.0, 1.0], [4.0, 4.0, 4.0]),  # no noise at all says nothing of the noise
    ],
)
def test_fieller_is_null_where_nothing_is_known(top, bottom):
    assert fieller(top, bottom) is None


def test_fieller_refuses_what_is_not_paired():
    with pytest.raises(ValueError, match="expected pairs"):
        fieller([1.0], [])


@pytest.mark.parametrize("n", [3, 5, 10])
def test_fieller_covers(n):
    """The gap is eight times its noise, and half of it is closed."""
    random = np.random.RandomState(18)
    alone = random.normal(size=(DRAWS, n))
    found = [
        fieller(closed, gaps)
        for closed, gaps in zip(
            (4 + random.normal(size=(DRAWS, n)) - alone).tolist(), (8 - alone).tolist(), strict=True
        )
    ]
    found = [f for f in found if f is not None]
    assert len(found) > 0.9 * DRAWS
    assert 0.93 <= covers([f[0] for f in found], [f[1] for f in found], 0.5) <= 0.97
