"""The exact sweep, against trying every cut-off by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, fbeta_score, matthews_corrcoef

from rareclass.config import OperatingPoint, ThresholdSettings
from rareclass.core.bootstrap import Bootstrap, Resamples, Sample
from rareclass.core.costs import CostArrays
from rareclass.core.ranking import RankingTable, sweep
from rareclass.core.thresholds import OBJECTIVES, Aim, place, tune, tune_points
from rareclass.errors import ConfigError, NoPositivesError


@st.composite
def scored(draw):
    n = draw(st.integers(2, 30))
    y = np.array(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))
    y[draw(st.integers(0, n - 1))] = 1
    levels = draw(st.integers(1, 15))
    score = np.array(draw(st.lists(st.integers(0, levels), min_size=n, max_size=n))) / levels
    return y, score


def cutoffs(score):
    """Every decision a threshold can make: nothing, then each distinct score."""
    return [np.inf, *np.unique(score)[::-1]]


def worth(objective, y, flagged, costs, weight=None):
    """(value, sign) of flagged rows, the slow way."""
    weight = np.ones(len(y)) if weight is None else weight
    tp, fp = weight[(y == 1) & flagged].sum(), weight[(y == 0) & flagged].sum()
    positives = weight[y == 1].sum()
    if objective in ("f1", "f2", "fbeta"):
        beta = {"f1": 1, "f2": 2, "fbeta": 0.5}[objective]
        return fbeta_score(y, flagged, beta=beta, zero_division=0, sample_weight=weight), 1
    if objective == "mcc":
        return matthews_corrcoef(y, flagged, sample_weight=weight), 1
    if objective == "cost":
        n = len(y)
        spent = np.where(y == 1, costs.misses(n) * ~flagged, costs.alarms(n) * flagged)
        return (spent * weight).sum(), -1
    if objective == "precision_at_recall":
        return (tp / (tp + fp) if tp + fp else 0.0), 1
    return (tp / positives if positives else 0.0), 1


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
@given(case=scored(), seed=st.integers(0, 3), weighted=st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_tuned_threshold_is_the_best_of_all_cutoffs(objective, case, seed, weighted):
    y, score = case
    rng = np.random.default_rng(seed)
    costs = CostArrays(rng.integers(1, 50, len(y)).astype(float), 2.0) if seed % 2 else CostArrays(9.0, 1.0)
    weight = rng.integers(1, 5, len(y)).astype(float) if weighted else None
    mass = np.ones(len(y)) if weight is None else weight
    bounds = {
        "recall_at_precision": {"min_precision": 0.3},
        "precision_at_recall": {"min_recall": 0.5},
        "alerts_per_day": {"max_alerts": 3.0, "days": 2.0},
        "false_alarm_rate": {"max_false_alarms": 0.3},
    }.get(objective, {})
    found = tune(
        Sample(y, score, weight=weight),
        costs=costs,
        aim=Aim(objective=objective, beta=0.5, **bounds),
        bootstrap=Bootstrap(resamples=50, seed=seed),
    )
    options = []
    for cut in cutoffs(score):
        flagged = score >= cut
        tp, alerts = mass[flagged & (y == 1)].sum(), mass[flagged].sum()
        meets = (
            (tp / alerts if alerts else 0) >= bounds.get("min_precision", -1)
            and tp / mass[y == 1].sum() >= bounds.get("min_recall", -1) - 1e-12
            and alerts / bounds.get("days", 1) <= bounds.get("max_alerts", np.inf)
            and (alerts - tp) <= bounds.get("max_false_alarms", 1) * mass[y == 0].sum() + 1e-12
        )
        if meets:
            value, sign = worth(objective, y, flagged, costs, weight)
            options.append((sign * value, value))
    assert found.feasible == bool(options)
    if options:
        reached, _ = worth(objective, y, score >= found.value, costs, weight)
        assert reached == pytest.approx(max(options)[1], abs=1e-9)
        assert found.objective_value.value == pytest.approx(reached, abs=1e-9)


@given(scored())
def test_ties_go_to_the_higher_cutoff(case):
    y, score = case
    found = tune(Sample(y, score), aim=Aim(objective="f1"), bootstrap=Bootstrap(resamples=50))
    values = [(worth("f1", y, score >= cut, None)[0], cut) for cut in cutoffs(score)]
    best = max(value for value, _ in values)
    highest = max(cut for value, cut in values if value == pytest.approx(best, abs=1e-12))
    np.testing.assert_array_equal(score >= found.value, score >= highest)


@given(scored())
def test_every_threshold_decides_like_its_rung_and_lies_between_neighbours(case):
    y, score = case
    table = RankingTable.build(y, score)
    thresholds = place(table)
    assert not (score >= thresholds[0]).any()
    assert (np.diff(thresholds) < 0).all()
    for cut, below, threshold in zip(table.cut, table.below, thresholds[1:], strict=True):
        np.testing.assert_array_equal(score >= threshold, score >= cut)
        assert below < threshold <= cut


def test_neighbouring_floats_leave_no_room_between_and_still_decide_right():
    low = 0.3
    score = np.array([low, np.nextafter(low, 1)])
    found = tune(Sample([0, 1], score), bootstrap=Bootstrap(resamples=50))
    np.testing.assert_array_equal(score >= found.value, [False, True])


@given(scored())
def test_the_sweep_counts_what_each_cutoff_flags(case):
    y, score = case
    swept = sweep(y, score)
    assert swept.cutoff.tolist() == cutoffs(score)
    for cut, tp, fp in zip(swept.cutoff, swept.tp, swept.fp, strict=True):
        _, expected_fp, _, expected_tp = confusion_matrix(y, score >= cut, labels=[0, 1]).ravel()
        assert (tp, fp) == (expected_tp, expected_fp)


@given(case=scored(), blocked=st.booleans(), seed=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_the_interval_is_that_of_tuning_each_resample_again(case, blocked, seed):
    y, score = case
    rng = np.random.default_rng(seed)
    block = rng.integers(0, 9, len(y)) if blocked else None
    costs = CostArrays(rng.integers(1, 9, len(y)).astype(float), 1.0)
    found = tune(
        Sample(y, score, block=block),
        costs=costs,
        aim=Aim(objective="cost"),
        bootstrap=Bootstrap(resamples=50, seed=seed),
    )
    resampled = []
    for rows in np.concatenate(list(Resamples(len(y), block, 50, seed).weights())):
        options = [
            (round(worth("cost", y, score >= t, costs, rows)[0], 9), -t, t) for t in place(RankingTable.build(y, score))
        ]
        resampled.append(min(options)[2])
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(resampled, [0.025, 0.975])))


def test_with_calibrated_scores_the_cheapest_threshold_tends_to_the_ratio_of_costs():
    rng = np.random.default_rng(0)
    p = rng.beta(0.4, 6, 200_000)
    y = (rng.random(len(p)) < p).astype(int)
    found = tune(Sample(y, p), costs=CostArrays(9.0, 1.0), aim=Aim(objective="cost"), bootstrap=Bootstrap(seed=0))
    assert found.value == pytest.approx(0.1, abs=0.02)
    assert found.low <= found.value <= found.high


def test_a_constraint_that_cannot_be_met_is_said_with_what_is_reachable():
    y = np.array([0, 1, 0, 1, 0, 0, 1, 0, 0, 0])
    score = np.linspace(0.9, 0.1, 10)
    found = tune(Sample(y, score), aim=Aim(min_precision=0.7, min_recall=0.85), bootstrap=Bootstrap(resamples=50))
    assert not found.feasible
    assert "no threshold reaches precision >= 0.7 and recall >= 0.85" in found.message
    assert "the highest precision with recall >= 0.85 is 0.429" in found.message
    assert f"threshold {found.value:.4g} gives precision" in found.message
    assert "\n" not in found.message


def test_what_is_said_to_be_reachable_is_the_best_there_is():
    rng = np.random.default_rng(3)
    y = (rng.random(400) < 0.1).astype(int)
    score = np.round(rng.random(400) * 0.7 + 0.3 * y, 2)
    swept = sweep(y, score)
    recall, daily = swept.tp / y.sum(), (swept.tp + swept.fp) / 4
    found = tune(Sample(y, score), aim=Aim(min_recall=0.9, max_alerts=5, days=4), bootstrap=Bootstrap(resamples=50))
    assert not found.feasible
    assert f"the highest recall with alerts a day <= 5 is {recall[daily <= 5].max():.3f}" in found.message
    assert f"the fewest alerts a day with recall >= 0.9 are {daily[recall >= 0.9].min():.3g}" in found.message


def test_three_constraints_of_which_no_two_go_together_are_each_said():
    y = np.array([0, 0, 1, 0, 0, 1, 0, 0])
    score = np.linspace(0.9, 0.2, 8)
    found = tune(
        Sample(y, score),
        aim=Aim(min_precision=0.9, min_recall=0.9, max_alerts=0.1, days=2),
        bootstrap=Bootstrap(resamples=50),
    )
    assert "the highest precision with recall >= 0.9 is 0.333" in found.message
    assert "the fewest alerts a day with recall >= 0.9 are 3" in found.message


def test_the_nearest_threshold_misses_the_constraints_least():
    rng = np.random.default_rng(0)
    y = (rng.random(300) < 0.1).astype(int)
    score = rng.random(300) * 0.5 + 0.2 * y
    found = tune(Sample(y, score), aim=Aim(min_precision=0.95, min_recall=0.95), bootstrap=Bootstrap(resamples=50))

    def short(cut):
        flagged = score >= cut
        tp = (flagged & (y == 1)).sum()
        precision, recall = (tp / flagged.sum() if flagged.any() else 0), tp / y.sum()
        return max(0, 1 - precision / 0.95) + max(0, 1 - recall / 0.95)

    assert short(found.value) == pytest.approx(min(short(cut) for cut in cutoffs(score)))


def test_capacity_below_the_smallest_tie_flags_nothing_and_says_so():
    y, score = np.array([1, 1, 0, 0] * 5), np.array([0.9] * 10 + [0.1] * 10)
    found = tune(
        Sample(y, score), aim=Aim(objective="alerts_per_day", max_alerts=1, days=2), bootstrap=Bootstrap(resamples=50)
    )
    assert found.feasible
    assert not (score >= found.value).any()
    assert "it flags nothing" in found.message


def test_constant_scores_are_tuned_to_all_or_nothing():
    found = tune(
        Sample([0, 1, 0], [0.5, 0.5, 0.5]),
        costs=CostArrays(9, 1),
        aim=Aim(objective="cost"),
        bootstrap=Bootstrap(resamples=50),
    )
    assert found.value <= 0.5
    dear = tune(
        Sample([0, 1, 0], [0.5, 0.5, 0.5]),
        costs=CostArrays(1, 9),
        aim=Aim(objective="cost"),
        bootstrap=Bootstrap(resamples=50),
    )
    assert dear.value > 0.5


def test_alerts_per_day_are_counted_over_the_days_given():
    y, score = np.array([1, 0, 1, 0]), np.array([0.9, 0.8, 0.7, 0.1])
    found = tune(Sample(y, score), aim=Aim(days=2), bootstrap=Bootstrap(resamples=50))
    assert found.alerts_per_day == pytest.approx(1.5)
    assert np.isnan(tune(Sample(y, score), bootstrap=Bootstrap(resamples=50)).alerts_per_day)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"objective": "f3"}, "unknown objective 'f3'"),
        ({"objective": "recall_at_precision"}, "threshold.min_precision"),
        ({"objective": "precision_at_recall"}, "threshold.min_recall"),
        ({"objective": "alerts_per_day", "days": 3.0}, "threshold.max_alerts_per_day"),
        ({"max_alerts": 3.0}, "data.time"),
    ],
)
def test_what_cannot_be_tuned_for_is_refused_with_what_to_set(arguments, says):
    with pytest.raises(ConfigError, match=says) as caught:
        tune(Sample([0, 1], [0.1, 0.2]), Aim(**arguments))
    assert "\n" not in str(caught.value)


def test_no_positive_is_refused():
    with pytest.raises(NoPositivesError, match="rare class"):
        tune(Sample([0, 0], [0.1, 0.2]))


def test_operating_points_come_with_the_default_first():
    settings_ = ThresholdSettings(
        points=(OperatingPoint(name="cautious", objective="recall_at_precision", min_precision=0.5),)
    )
    y, score = np.array([0, 1, 0, 1, 0]), np.array([0.1, 0.9, 0.5, 0.4, 0.2])
    points = tune_points(
        Sample(y, score), settings_, costs=CostArrays(5, 1, given=True), bootstrap=Bootstrap(resamples=50)
    )
    assert list(points) == ["default", "cautious"]
    assert points["default"].objective == "cost"
    assert (
        tune_points(
            Sample(y, score), settings_, costs=CostArrays(5, 1, given=False), bootstrap=Bootstrap(resamples=50)
        )["default"].objective
        == "f1"
    )
    twice = ThresholdSettings(points=(OperatingPoint(name="default"),))
    with pytest.raises(ConfigError, match="named twice"):
        tune_points(Sample(y, score), twice)


def test_the_same_seed_gives_the_same_interval_and_json_is_plain():
    rng = np.random.default_rng(0)
    y, score = (rng.random(2000) < 0.05).astype(int), rng.random(2000)
    first, second = (tune(Sample(y, score), bootstrap=Bootstrap(seed=5)) for _ in range(2))
    assert first == second or first.to_json() == second.to_json()
    assert first.to_json()["alerts_per_day"] is None
    assert set(itertools.chain(first.to_json())) >= {"value", "low", "high", "feasible", "message"}


def test_a_threshold_set_by_hand_is_judged_beside_the_tuned_ones_and_never_decides() -> None:
    rng = np.random.default_rng(0)
    score = rng.random(2000)
    y = (rng.random(2000) < score**3).astype(int)
    points = tune_points(Sample(y, score), ThresholdSettings(fixed=0.3), days=10, bootstrap=Bootstrap(resamples=50))
    assert list(points) == ["default", "fixed"]
    fixed = points["fixed"]
    flagged = score >= 0.3
    assert (fixed.value, fixed.feasible, fixed.to_json()["low"]) == (0.3, True, None)
    assert fixed.precision.value == pytest.approx(y[flagged].mean())
    assert fixed.recall.value == pytest.approx(y[flagged].sum() / y.sum())
    assert fixed.precision.low < fixed.precision.value < fixed.precision.high
    assert fixed.alerts_per_day == pytest.approx(flagged.sum() / 10)
    assert fixed.message.startswith("threshold 0.3, set by hand, gives precision ")
    with pytest.raises(ConfigError, match=r"'fixed' is the name of threshold\.fixed"):
        tune_points(Sample(y, score), ThresholdSettings(points=(OperatingPoint(name="fixed"),)))
