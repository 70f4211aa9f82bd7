"""Ranks over settings: against SciPy, printed tables and the example of Demšar's paper."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbench.stats.ranks import average_ranks, cliques, friedman, nemenyi_difference, ranks

# Demšar 2006, table 6: AUC of C4.5, C4.5+m, C4.5+cf, C4.5+m+cf on 14 data sets;
# two values that are printed alike and have ranks 2 and 3 there differ here.
DEMSAR = [
    (0.763, 0.768, 0.771, 0.798), (0.599, 0.591, 0.590, 0.569), (0.954, 0.971, 0.968, 0.967),
    (0.628, 0.661, 0.654, 0.657), (0.882, 0.888, 0.886, 0.898), (0.936, 0.931, 0.916, 0.931),
    (0.661, 0.668, 0.609, 0.685), (0.583, 0.583, 0.563, 0.625), (0.775, 0.838, 0.866, 0.875),
    (1.000, 1.000, 1.000, 1.000), (0.940, 0.962, 0.965, 0.962), (0.619, 0.666, 0.614, 0.669),
    (0.972, 0.981, 0.9751, 0.975), (0.957, 0.978, 0.946, 0.970),
]  # fmt: skip


def test_the_example_of_the_paper():
    average = average_ranks(DEMSAR)
    assert average == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=0.001)
    found = friedman(DEMSAR)
    # the paper's statistics, 9.28 and 3.69, are without the correction for ties: one of four and three of two
    uncorrected = found.chi2 * (1 - (60 + 3 * 6) / (14 * 60))
    assert uncorrected == pytest.approx(9.28, abs=0.005)
    assert found.f == pytest.approx(13 * found.chi2 / (14 * 3 - found.chi2))
    assert found.p == pytest.approx(0.0116, abs=0.0001)
    assert found.rejects
    assert nemenyi_difference(4, 14) == pytest.approx(1.25, abs=0.005)


def test_critical_values_are_those_of_the_paper():
    """Table 5 (a) of the paper, q at 0.05 for 2 to 10 methods."""
    printed = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 8: 3.031, 10: 3.164}
    for k, q in printed.items():
        assert nemenyi_difference(k, 6) / math.sqrt(k * (k + 1) / 36) == pytest.approx(q, abs=0.001)


def test_equal_values_share_their_rank():
    assert ranks([70.0, 72.0, 70.0, 69.0]) == [2.5, 1.0, 2.5, 4.0]
    assert ranks([70.0, 70.0 + 1e-12]) == [1.5, 1.5]
    assert ranks([5.0]) == [1.0]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_ranks_are_scipys(values):
    from scipy.stats import rankdata

    assert ranks([float(v) for v in values]) == list(rankdata([-v for v in values]))


def test_one_order_everywhere():
    found = friedman([(3.0, 2.0, 1.0)] * 6)
    assert (found.chi2, found.f, found.p) == (pytest.approx(12), math.inf, 0.0)


def test_all_equal_is_no_test():
    assert friedman([(1.0, 1.0, 1.0)] * 6) is None
    with pytest.raises(ValueError, match="three methods"):
        friedman([(1.0, 2.0)] * 6)


@pytest.mark.parametrize(
    ("average", "expected"),
    [
        ([1.0, 2.0, 3.0, 4.0], [(0, 1), (1, 2), (2, 3)]),
        ([4.0, 1.0, 1.5, 3.9], [(1, 2), (3, 0)]),
        ([1.0, 3.0, 5.0], []),
        ([1.0, 1.5, 2.0], [(0, 1, 2)]),
        ([2.0, 2.0], [(0, 1)]),
    ],
)
def test_cliques(average, expected):
    assert cliques(average, 1.0) == expected
