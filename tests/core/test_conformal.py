from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rareclass.core import calibration, conformal, detection
from rareclass.core.dataset import Feature, Rows, Schema
from rareclass.errors import DataError


def rows_of(x):
    schema = Schema(tuple(Feature(f"x{i}") for i in range(x.shape[1])))
    return Rows(schema, x.astype(np.float32), np.zeros(len(x), dtype=np.int64), np.arange(len(x), dtype=np.uint64))


HELD = np.random.default_rng(0).uniform(size=999)


def test_at_the_kth_highest_held_out_score_p_is_k_of_n_and_one():
    found, high = conformal.fit(HELD), np.sort(HELD)[::-1]
    assert np.allclose(1 - found(high), np.arange(1, 1000) / 1000)


@given(st.lists(st.floats(0, 1 - 1e-9), min_size=30, max_size=200), st.integers(0, 5))
def test_the_map_is_strict_and_its_inverse_finds_the_score_again(scores, seed):
    found = conformal.fit(scores)
    asked = np.unique(np.round(np.random.default_rng(seed).uniform(0, 0.999, 50), 6))
    made = found(asked)
    assert (np.diff(made) > 0).all()
    assert ((made > 0) & (made < 1)).all()
    assert np.allclose(found.inverse(made), asked, atol=1e-6)


def test_it_stays_within_one_row_of_the_usual_p_value():
    asked = np.random.default_rng(1).uniform(size=500)
    assert np.abs(1 - conformal.fit(HELD)(asked) - conformal.p_values(HELD, asked)).max() <= 1 / 1000 + 1e-12


def test_ties_and_a_million_rows_keep_every_share():
    score = np.round(np.random.default_rng(2).beta(2, 5, 1_000_000), 4)
    found = conformal.fit(score)
    for share in (0.5, 0.1, 0.01, 0.001):
        cut = found.inverse(np.array([1 - share]))[0]
        assert (score >= cut).mean() == pytest.approx(share, rel=0.08)
    assert len(found.surprise) <= 2_001


def test_it_is_kept_in_json_as_every_calibrator_is():
    found = conformal.fit(HELD)
    again = calibration.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found


def test_too_few_rows_and_scores_that_are_none_are_refused():
    with pytest.raises(DataError, match="at least 2"):
        conformal.fit(HELD[:1])
    with pytest.raises(DataError, match=r"in \[0, 1\]"):
        conformal.fit(HELD * 2)


def test_p_values_of_normal_rows_a_detector_has_not_seen_are_uniform():
    x = np.random.default_rng(3).standard_t(4, size=(6_000, 3))
    made = detection.fit(rows_of(x[:2_000]), members=["ecod", "hbos"], seed=1)
    held, later = made.score(rows_of(x[2_000:4_000]).x), made.score(rows_of(x[4_000:]).x)
    said = conformal.uniformity(1 - conformal.fit(held)(later), held_out=len(held))
    assert said.p > 0.01
    assert "as they should be" in said.line()
    moved = conformal.uniformity(1 - conformal.fit(held)(made.score(rows_of(x[4_000:] * 1.5).x)), held_out=len(held))
    assert moved.p < 1e-6
    assert "not what it was" in moved.line()


def test_uniformity_is_the_test_of_scipy():
    from scipy.stats import kstest

    p = np.random.default_rng(4).uniform(size=300) ** 1.1
    ours, theirs = conformal.uniformity(p), kstest(p, "uniform")
    assert ours.statistic == pytest.approx(theirs.statistic)
    assert ours.p == pytest.approx(theirs.pvalue)


@pytest.mark.parametrize("wanted", [25.0, 50.0])
def test_alerts_a_day_on_the_next_period_of_the_same_process_are_as_many_as_asked(wanted):
    rng, per_day = np.random.default_rng(5), 500
    x = rng.lognormal(size=(70 * per_day, 2))
    made = detection.fit(rows_of(x[: 10 * per_day]), members=["knn"], seed=1)
    calibrator = conformal.fit(made.score(rows_of(x[10 * per_day : 40 * per_day]).x))
    rate = conformal.rate_of(wanted, per_day)
    flagged = calibrator(made.score(rows_of(x[40 * per_day :]).x)) >= 1 - rate
    assert flagged.sum() / 30 == pytest.approx(wanted, rel=0.1)
    assert conformal.alerts(rate, per_day) == wanted


def test_a_rate_finer_than_the_rows_can_tell_is_said():
    found = conformal.fit(HELD)
    assert conformal.describe(0.01, found) == ""
    assert "1 in 1,000" in conformal.describe(1e-4, found)
    assert np.isnan(conformal.alerts(0.01, None))
    assert conformal.rate_of(900, 1000) == 0.5
