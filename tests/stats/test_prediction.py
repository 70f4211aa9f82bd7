"""The interval for one more seed."""

import math

import numpy as np
import pytest

from kdbench.stats.prediction import prediction_interval


def test_by_hand():
    low, high = prediction_interval([1.0, 2.0, 3.0])
    assert (low + high) / 2 == pytest.approx(2.0)
    assert (high - low) / 2 == pytest.approx(4.30265273 * math.sqrt(4 / 3))


def test_one_value_predicts_nothing_and_equal_ones_themselves():
    assert prediction_interval([]) is None
    assert prediction_interval([70.0]) is None
    assert prediction_interval([70.0, 70.0]) == (70.0, 70.0)
    with pytest.raises(ValueError, match="finite"):
        prediction_interval([1.0, math.nan])


def test_it_holds_one_more_draw_in_95_of_100_cases():
    draws = np.random.default_rng(0).normal(70.0, 0.5, (2000, 6))
    held = 0
    for *seeds, further in draws.tolist():
        low, high = prediction_interval(seeds)
        held += low <= further <= high
    assert 0.93 < held / len(draws) < 0.97
