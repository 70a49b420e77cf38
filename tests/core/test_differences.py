"""What is called better is what has an interval without 0, at any level and for any number of comparisons."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rareclass.core.differences import joint_level, judge_difference

COUNTS = {"positives": 40, "rows": 1000}


@given(st.floats(-0.1, 0.1), st.floats(0.001, 0.05), st.sampled_from([0.8, 0.95, 0.99]), st.integers(1, 40))
def test_interval_p_value_and_verdict_never_contradict_one_another(value, spread, confidence, compared):
    draws = np.random.default_rng(0).normal(value, spread, 200)
    found = judge_difference(value, draws, confidence=confidence, compared=compared, **COUNTS)
    outside = found.estimate.low > 0 or found.estimate.high < 0
    assert found.significant is outside
    assert found.better is (outside and value > 0)
    if abs(found.p_value - (1 - confidence)) > 1e-9:
        assert (found.p_value < 1 - confidence) is outside


def test_the_interval_is_students_t_at_the_joint_level():
    draws = np.random.default_rng(1).normal(0.02, 0.01, 500)
    found = judge_difference(0.021, draws, confidence=0.9, compared=5, **COUNTS)
    expected = stats.t.interval(1 - 0.1 / 5, 39, 0.021, draws.std(ddof=1))
    assert (found.estimate.low, found.estimate.high) == pytest.approx(expected)
    assert joint_level(0.9, 5) == pytest.approx(0.98)


def test_a_gain_beyond_all_resamples_survives_many_comparisons():
    sure = np.random.default_rng(0).normal(0.05, 0.01, 200)
    assert judge_difference(0.05, sure, confidence=0.95, compared=30, **COUNTS).better


def test_ten_equal_models_differ_in_about_one_of_twenty_tables():
    tables = 400
    rng, wrong = np.random.default_rng(3), 0
    for _ in range(tables):
        values = rng.normal(0, 0.01, 9)
        found = [
            judge_difference(
                each, each + rng.normal(0, 0.01, 200), confidence=0.95, compared=9, positives=200, rows=9000
            )
            for each in values
        ]
        wrong += any(each.significant for each in found)
    assert 0.02 < wrong / tables < 0.08


def test_what_cannot_be_judged_is_never_better():
    nothing = judge_difference(0.3, np.full(100, np.nan), confidence=0.95, compared=1, **COUNTS)
    assert not nothing.significant
    assert np.isnan(nothing.estimate.low)
    same = judge_difference(0.0, np.zeros(100), confidence=0.95, compared=1, **COUNTS)
    assert (same.estimate.low, same.estimate.high, same.p_value) == (0, 0, 1)
