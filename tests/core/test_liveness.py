"""Windows, maturity and what may be said about live quality."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

import live_rows
from rareclass.config import MonitorSettings
from rareclass.core import liveness, ranking, review

NOW = live_rows.START + timedelta(days=56)


@pytest.fixture(scope="module")
def reference():
    return live_rows.profile()


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return live_rows.stream("nothing", days=56)[0]


def evaluate(frame, reference=None, now=NOW, **changes):
    return liveness.evaluate(frame, now=now, version="1", profile=reference, settings=live_rows.settings(**changes))


@given(st.integers(0, 10**6), st.integers(0, 20), st.integers(1, 40), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_windows_are_disjoint_and_only_those_one_delay_old_are_matured(minutes, delay, length, count):
    now = datetime(2024, 1, 1) + timedelta(minutes=minutes)
    limits = MonitorSettings(window=timedelta(days=length), windows=count)
    found = liveness.boundaries(now, timedelta(days=delay), limits)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(found))
    assert sum(state == "matured" for _, _, state in found) == count
    assert all(end <= now - timedelta(days=delay) for _, end, state in found if state == "matured")
    assert all(end + timedelta(days=1) > now - timedelta(days=delay) for _, end, state in found if state == "maturing")
    assert found[-1][1] <= now
    assert now - found[-1][1] < timedelta(days=1) + timedelta(days=delay) or delay == 0


def test_metrics_of_a_window_are_those_of_scikit_learn_on_its_rows(frame, reference):
    found = evaluate(frame, reference)
    window = found.latest
    rows = frame[(frame["ts"] >= window.start) & (frame["ts"] < window.end)]
    y, score, flagged = rows["label"].to_numpy(), rows["score"].to_numpy(), rows["decision"].to_numpy()
    assert (window.rows, window.labelled, window.positives) == (len(rows), len(rows), y.sum())
    assert window.metric("ap").value == pytest.approx(average_precision_score(y, score))
    assert window.metric("roc_auc").value == pytest.approx(roc_auc_score(y, score))
    assert window.metric("precision").value == pytest.approx((y * flagged).sum() / flagged.sum())
    assert window.metric("recall").value == pytest.approx((y * flagged).sum() / y.sum())
    assert window.metric("score_ratio").value == pytest.approx(score.sum() / y.sum())
    assert window.alerts_per_day == pytest.approx(flagged.sum() / 7)
    for name in ("ap", "precision", "recall", "prevalence", "score_ratio"):
        assert window.metric(name).low <= window.metric(name).value <= window.metric(name).high


def test_mean_score_to_prevalence_has_no_upper_bound_where_resamples_of_days_hold_no_positive(frame):
    latest = evaluate(frame).latest
    day = (frame["ts"] >= latest.start) & (frame["ts"] < latest.start + timedelta(days=1))
    one_day = frame.assign(label=frame["label"].where(day | (frame["ts"] < latest.start), 0.0))
    limits = replace(live_rows.settings(), monitor=live_rows.LIMITS.model_copy(update={"min_positives": 1}))
    found = liveness.evaluate(one_day, now=NOW, version="1", profile=None, settings=limits).latest
    ratio = found.metric("score_ratio")
    assert ratio.positives == frame["label"][day].sum() > 0
    assert 0 < ratio.low < ratio.value < ratio.high == math.inf
    assert str(ratio) == f"{ratio.value:.3f} [{ratio.low:.3f}, no upper bound]"
    assert ratio.to_json() == {**ratio.to_json(), "low": ratio.low, "high": None}


def test_no_interval_of_few_rows_leaves_what_its_metric_can_be():
    few, _ = live_rows.stream("nothing", days=56, per_day=40)
    limits = live_rows.LIMITS.model_copy(update={"min_positives": 1})
    found = liveness.evaluate(
        few, now=NOW, version="1", profile=None, settings=replace(live_rows.settings(), monitor=limits)
    )
    shares, amounts = ("prevalence", "precision", "recall", "f_beta", "ap", "roc_auc"), ("score_ratio", "cost_per_1000")
    ends = []
    for window in found.windows:
        for name, most in (*((name, 1.0) for name in shares), *((name, math.inf) for name in amounts)):
            metric = window.metrics.get(name)
            if metric is not None and math.isfinite(metric.low + metric.high):
                assert 0 <= metric.low <= metric.value <= metric.high <= most, name
                ends.append((metric.low, metric.high))
    assert any(low == 0 for low, _ in ends), "some would reach below nothing"
    assert any(high == 1 for _, high in ends), "and above everything"


def test_average_precision_at_the_reference_prevalence_does_not_move_with_prevalence(reference):
    plain = evaluate(live_rows.stream("nothing", days=56, per_day=1500)[0], reference)
    thinned = evaluate(live_rows.stream("prevalence up", days=56, per_day=1500)[0], reference)
    assert thinned.latest.metric("ap").value > 1.3 * plain.latest.metric("ap").value
    assert thinned.latest.metric("ap_reference").value == pytest.approx(
        plain.latest.metric("ap_reference").value, rel=0.35
    )
    assert not thinned.latest.violated


def test_a_maturing_window_is_estimated_and_never_judged(frame, reference):
    found = evaluate(frame, reference)
    maturing = [window for window in found.windows if window.state == "maturing"]
    assert maturing
    for window in maturing:
        assert not window.judged
        assert not window.violated
        assert set(window.metrics) <= {"ap"}
        assert 0 < window.estimated_ap < 1
    assert abs(found.estimate_error) < 0.15


@pytest.mark.parametrize("of_a_detector", [{"positives": 0, "prevalence": 0.0}, {"ranks": True}])
def test_scores_of_a_detector_that_no_label_judged_promise_no_precision_and_are_not_compared_with_prevalence(
    frame, reference, of_a_detector
):
    found = evaluate(frame, replace(reference, **of_a_detector))
    assert found.judged
    assert np.isnan([window.estimated_ap for window in found.windows]).all()
    assert np.isnan(found.estimate_error)
    for window in found.judged:
        assert "ap" in window.metrics
        assert not {"score_ratio", "calibration_intercept", "calibration_slope"} & set(window.metrics)


def test_a_maturing_window_with_enough_early_positives_shows_its_average_precision_without_an_interval():
    frame, _ = live_rows.stream("sudden pattern", days=63, per_day=500)
    now = live_rows.START + timedelta(days=63)
    found = liveness.evaluate(frame, now=now, version="1", profile=live_rows.profile(), settings=live_rows.settings())
    (window,) = [window for window in found.windows if window.state == "maturing"]
    early = frame[(frame["ts"] >= window.start) & frame["label"].notna() & (frame["label_observed_at"] <= now)]
    assert window.metric("ap").value == pytest.approx(average_precision_score(early["label"], early["score"]))
    assert np.isnan(window.metric("ap").low)
    assert not window.judged


def test_the_estimate_without_labels_is_the_expected_average_precision():
    rng = np.random.default_rng(0)
    score = rng.beta(0.4, 6, 20_000)
    drawn = [average_precision_score((rng.random(20_000) < score).astype(int), score) for _ in range(20)]
    assert ranking.estimated_ap(score) == pytest.approx(np.mean(drawn), abs=3 * np.std(drawn) / math.sqrt(20) + 0.003)


def test_labels_observed_later_than_now_are_not_looked_at(frame, reference):
    early = evaluate(frame, reference, now=live_rows.START + timedelta(days=30))
    whole = frame.assign(
        label=np.where(frame["label_observed_at"] > live_rows.START + timedelta(days=30), 1.0, frame["label"])
    )
    assert evaluate(whole, reference, now=live_rows.START + timedelta(days=30)).to_json() == early.to_json()


def test_too_few_positives_leave_no_quality_behind(frame, reference):
    found = evaluate(frame[::40], reference)
    assert found.judged == ()
    assert not found.degraded
    for window in found.matured:
        assert "ap" not in window.metrics
        assert "recall" not in window.metrics
        assert "needed" in window.reason
        assert "prevalence" in window.metrics


def test_one_violated_window_is_not_degraded_and_two_with_the_latest_are(reference):
    frame = live_rows.stream("new pattern", since=35, days=63)[0]
    states = [evaluate(frame, reference, now=live_rows.START + timedelta(days=day)) for day in (42, 49, 50, 56)]
    assert [state.violations for state in states] == [0, 1, 1, 2]
    assert [state.degraded for state in states] == [False, False, False, True]


def test_recovered_windows_end_the_alarm(reference):
    broken = live_rows.stream("new pattern", since=0, days=14)[0]
    good = live_rows.stream("nothing", days=49)[0]
    both = pd.concat([broken, good[good["ts"] >= live_rows.START + timedelta(days=14)]], ignore_index=True)
    found = evaluate(both, reference, now=live_rows.START + timedelta(days=35))
    assert found.violations >= 1
    assert not found.degraded


def test_inverse_propensity_weights_undo_blocked_transactions(reference):
    whole = live_rows.stream("nothing", days=56, per_day=3000)[0]
    rng = np.random.default_rng(5)
    flagged = whole["decision"] == 1
    control = rng.random(len(whole)) < 0.3
    blocked = flagged & ~control
    seen = whole.assign(propensity=np.where(flagged, 0.3, 1.0), label=whole["label"].mask(blocked))
    naive = seen.assign(propensity=1.0)
    truth, weighted, unweighted = (
        evaluate(one, reference).latest.metric("recall").value for one in (whole, seen, naive)
    )
    assert abs(weighted - truth) < 0.1
    assert unweighted < truth / 2
    assert evaluate(seen, reference).latest.coverage > 0.95


def test_a_shadow_cannot_be_judged_where_the_propensity_is_zero(frame):
    shadow = frame.assign(shadow_score=frame["score"], shadow_decision=frame["decision"])
    blocked = shadow.assign(propensity=np.where(shadow["decision"] == 1, 0.0, 1.0))
    found = liveness.paired(blocked, now=NOW, settings=live_rows.settings())
    assert not found.judged
    assert found.reason.startswith("cannot be judged")
    assert math.isnan(found.difference.value)


def test_the_paired_difference_is_zero_for_equal_scores_and_finds_a_worse_shadow(frame):
    same = frame.assign(shadow_score=frame["score"], shadow_decision=frame["decision"])
    equal = liveness.paired(same, now=NOW, settings=live_rows.settings())
    assert (equal.difference.value, equal.difference.low, equal.difference.high) == (0, 0, 0)
    noise = np.random.default_rng(0).random(len(frame))
    worse = liveness.paired(same.assign(shadow_score=noise), now=NOW, settings=live_rows.settings())
    assert worse.difference.high < 0
    wide = liveness.paired(same.assign(shadow_score=noise), now=NOW, settings=live_rows.settings(), confidence=0.999)
    assert wide.difference.high > worse.difference.high


def test_labels_that_never_come_count_as_negative_only_when_asked_and_only_after_the_horizon(frame):
    silent = frame.assign(label=frame["label"].where(frame["label"] == 1))
    unknown = evaluate(silent)
    negative = evaluate(silent, missing_negative_after=timedelta(days=20))
    assert unknown.matured[0].labelled == unknown.matured[0].positives
    assert negative.matured[0].coverage == 1
    assert negative.latest.coverage < 0.1


def test_labels_that_stop_are_noticed_and_their_delay_is_measured(frame, reference):
    assert not evaluate(frame, reference).starved
    assert evaluate(frame, reference).label_delay_p95 == pytest.approx(timedelta(days=6.5).total_seconds(), rel=0.05)
    silent = live_rows.stream("labels stop", since=35, days=56)[0]
    assert evaluate(silent, reference).starved
    assert evaluate(silent, reference).last_label <= datetime(2024, 2, 5)


def test_sampled_rows_count_with_their_weight(frame, reference):
    keep = (frame["decision"] == 1) | (np.random.default_rng(0).random(len(frame)) < 0.2)
    sampled = frame[keep].assign(weight=np.where(frame["decision"][keep] == 1, 1.0, 5.0))
    whole, less = evaluate(frame, reference).latest, evaluate(sampled, reference).latest
    found = less.metric("prevalence")
    assert found.low < whole.metric("prevalence").value < found.high
    assert less.alert_rate == pytest.approx(whole.alert_rate, rel=0.1)


@pytest.mark.parametrize("spread", [1.0, 0.35, 0.2])
def test_the_line_of_calibration_is_the_logistic_regression_however_narrow_the_scores_are(frame, spread):
    from scipy.special import expit
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    z = rng.normal(-2.75, spread, len(frame))
    label = (rng.random(len(frame)) < expit(-2.9 + 1.15 * (z + 2.75) / spread)).astype(np.int64)
    window = evaluate(frame.assign(score=expit(z), label=label)).latest
    inside = ((frame["ts"] >= window.start) & (frame["ts"] < window.end)).to_numpy()
    line = LogisticRegression(C=1e9, max_iter=1000, tol=1e-10).fit(z[inside][:, None], label[inside])
    assert window.metric("calibration_slope").value == pytest.approx(line.coef_[0, 0], rel=1e-3)
    assert window.metric("calibration_intercept").value == pytest.approx(line.intercept_[0], rel=1e-2)


def test_a_change_of_prevalence_moves_the_intercept_and_not_the_slope(reference):
    found = evaluate(live_rows.stream("prevalence up", days=56, per_day=1500)[0], reference).latest
    slope, intercept = found.metric("calibration_slope"), found.metric("calibration_intercept")
    assert slope.low < 1 < slope.high
    assert intercept.low > 0.3


def test_aware_and_naive_clocks_agree_and_everything_is_json(frame, reference):
    aware = evaluate(frame, reference, now=NOW.replace(tzinfo=UTC)).to_json()
    assert aware == evaluate(frame, reference).to_json()
    assert json.loads(json.dumps(aware, allow_nan=False)) == aware


def test_no_rows_are_no_windows(frame, reference):
    found = evaluate(frame[:0], reference)
    assert found.windows == ()
    assert found.latest is None
    assert not found.starved


def test_between_window_spread_of_the_reference_widens_the_difference(frame, reference):
    quiet = evaluate(frame, replace(reference, window_ap=(0.2, 0.2, 0.2, 0.2))).latest.metric("difference")
    noisy = evaluate(frame, replace(reference, window_ap=(0.05, 0.35, 0.05, 0.35))).latest.metric("difference")
    assert noisy.high - noisy.low > quiet.high - quiet.low


def test_a_label_that_never_came_is_a_negative_only_where_it_could_have_come_and_the_horizon_is_over():
    now = datetime(2026, 3, 20)
    ts = np.datetime64(now, "us") - np.array([100, 91, 89, 91, 91], "timedelta64[D]")
    label, propensity = np.array([1.0, np.nan, np.nan, np.nan, np.nan]), np.array([1, 1, 1, 0.05, 0])
    found = liveness.assumed(ts, label, propensity, now.replace(tzinfo=UTC), timedelta(days=90))
    np.testing.assert_array_equal(found, [1, 0, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(liveness.assumed(ts, label, propensity, now, None), label)
    assert np.isnan(label[1])  # the caller's own are left alone


@pytest.fixture(scope="module")
def busy() -> pd.DataFrame:
    """So many rows that a week has a hundred of the rare class."""
    return live_rows.stream("nothing", days=56, per_day=2500)[0]


def reviewed(frame: pd.DataFrame, budget: float, seed: int = 0, **design: float) -> pd.DataFrame:
    """The rows as the store gives them where ``budget`` rows a day are chosen to be looked at, and were."""
    rng, parts = np.random.default_rng(seed), []
    for _, day in frame.groupby(frame["ts"].dt.floor("D")):
        found = review.chances(day["score"].to_numpy(), review.Design(budget, **design))
        number = rng.random(len(day))
        probability = np.where(number < found.total, found.total, np.nan)
        parts.append(day.assign(review=probability, review_reason=found.reasons(number)))
    rows = pd.concat(parts, ignore_index=True)
    asked = rows["review"].notna()
    return rows.assign(
        label=rows["label"].where(asked),
        label_observed_at=rows["label_observed_at"].where(asked),
        propensity=rows["propensity"] * rows["review"].where(asked, 1.0),
        answered=True,
    )


def test_labels_of_chosen_rows_say_what_all_labels_say(busy, reference):
    everything = {window.start: window for window in evaluate(busy, reference).judged}
    inside: dict[str, list[bool]] = {}
    for seed in range(2):
        rows = reviewed(busy, 60, seed)
        found = evaluate(rows, reference)
        assert not found.starved
        for window in found.judged:
            whole = everything[window.start]
            assert window.labelled < window.rows / 2
            assert window.coverage == 1
            for name in ("ap", "prevalence", "precision", "recall", "score_ratio", "cost_per_1000", "ap_reference"):
                one, truth = window.metric(name), whole.metric(name).value
                inside.setdefault(name, []).append(one.low - 1e-9 <= truth <= one.high + 1e-9)
            assert math.isfinite(window.metric("ap_weighted").value)
            part = rows[rows["label"].notna() & (rows["ts"] >= window.start) & (rows["ts"] < window.end)]
            assert part["label"].mean() > 1.5 * whole.metric("prevalence").value  # what the chosen rows alone say
    assert len(inside["ap"]) >= 6
    assert {name: np.mean(hits) for name, hits in inside.items() if np.mean(hits) < 0.75} == {}


def test_a_window_of_which_no_row_or_hardly_any_was_looked_at_is_not_judged(busy, reference):
    rows = reviewed(busy, 60)
    none = rows.assign(review=np.nan, label=np.nan)
    assert {window.reason for window in evaluate(none, reference).matured} == {
        "none of its rows was chosen by `rareclass review`"
    }
    seen = np.random.default_rng(7).random(len(rows)) < 0.3
    few = evaluate(rows.assign(label=rows["label"].where(seen)), reference)
    assert all("rows that were chosen have been looked at" in window.reason for window in few.matured)
    assert few.latest.coverage == pytest.approx(0.3, abs=0.1)
    assert not few.judged


def test_who_stops_half_way_down_the_list_leaves_precision_and_prevalence_right(busy, reference):
    rows = reviewed(busy, 60)
    seen = (rows["review_reason"] == review.TOP) | (np.random.default_rng(8).random(len(rows)) < 0.5)
    whole, half = (evaluate(each, reference).latest for each in (busy, rows.assign(label=rows["label"].where(seen))))
    assert half.judged
    for name in ("prevalence", "precision", "ap"):
        found = half.metric(name)
        assert found.low <= whole.metric(name).value <= found.high


def test_a_version_that_scored_in_the_shadow_of_the_choice_is_judged_by_weights(busy, reference):
    window = evaluate(reviewed(busy, 60).assign(answered=False), reference).latest
    assert "ap_weighted" not in window.metrics
    assert window.metric("prevalence").value == pytest.approx(
        evaluate(busy, reference).latest.metric("prevalence").value, rel=0.6
    )


def test_labels_that_came_for_alerts_only_show_precision_and_nothing_else(busy, reference):
    whole = evaluate(busy, reference).latest
    alerts = busy.assign(label=busy["label"].where(busy["decision"] >= 1))
    found = evaluate(alerts, reference)
    assert not found.judged
    assert set(found.latest.metrics) == {"precision"}
    assert found.latest.metric("precision").value == pytest.approx(whole.metric("precision").value)
    assert "100% of the alerts and 0.0% of the other rows" in found.latest.reason
    assert "rareclass review" in found.latest.reason
    half = busy.assign(label=busy["label"].where(np.random.default_rng(0).random(len(busy)) < 0.5))
    assert evaluate(half, reference).judged  # labels that are missing by chance say nothing else
