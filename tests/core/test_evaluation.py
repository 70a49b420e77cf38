"""Metrics against scikit-learn, intervals against recounting, and everything evaluate reports."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from rareclass.config import EvaluateSettings
from rareclass.core import evaluation as ev
from rareclass.core import ranking
from rareclass.core.bootstrap import Bootstrap, Resamples, Sample
from rareclass.core.costs import CostArrays
from rareclass.core.dataset import Feature, Rows, Schema
from rareclass.errors import ConfigError, DataError


@st.composite
def scored(draw):
    n = draw(st.integers(2, 40))
    y = np.array(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))
    y[:2] = [0, 1]
    levels = draw(st.integers(1, 15))
    score = np.array(draw(st.lists(st.integers(0, levels), min_size=n, max_size=n))) / levels
    weight = np.array(draw(st.lists(st.integers(1, 5), min_size=n, max_size=n)), dtype=float)
    return y, score, weight if draw(st.booleans()) else None


def world(n=4000, seed=0):
    rng = np.random.default_rng(seed)
    score = rng.beta(0.5, 8, n)
    y = (rng.random(n) < score).astype(int)
    time = np.datetime64("2025-01-01") + rng.integers(0, 40, n) * np.timedelta64(1, "D")
    return y, score, time


@given(scored())
@settings(deadline=None)
def test_ranking_and_probability_metrics_are_those_of_scikit_learn(case):
    y, score, weight = case
    close = {"abs": 1e-12}
    assert ranking.average_precision(y, score, weight) == pytest.approx(
        sk.average_precision_score(y, score, sample_weight=weight), **close
    )
    assert ranking.roc_auc(y, score, weight) == pytest.approx(sk.roc_auc_score(y, score, sample_weight=weight), **close)
    assert ev.brier(y, score, weight) == pytest.approx(sk.brier_score_loss(y, score, sample_weight=weight), **close)
    inside = np.clip(score, 0.01, 0.99)
    assert ev.log_loss(y, inside, weight) == pytest.approx(
        sk.log_loss(y, inside, sample_weight=weight, labels=[0, 1]), **close
    )


@given(scored(), st.floats(0, 1))
@settings(deadline=None)
def test_decision_metrics_are_those_of_scikit_learn(case, threshold):
    y, score, weight = case
    d = (score >= threshold).astype(int)
    found = ev.decision_metrics(y, d, weight)
    kw = {"sample_weight": weight, "zero_division": 0}
    assert np.nan_to_num(found["precision"]) == pytest.approx(sk.precision_score(y, d, **kw))
    assert found["recall"] == pytest.approx(sk.recall_score(y, d, **kw))
    assert found["f1"] == pytest.approx(sk.f1_score(y, d, **kw))
    assert found["f2"] == pytest.approx(sk.fbeta_score(y, d, beta=2, **kw))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(y, d, average="macro", labels=[0, 1], **kw))
    assert found["micro_f1"] == pytest.approx(sk.f1_score(y, d, average="micro", **kw))
    assert found["macro_precision"] == pytest.approx(sk.precision_score(y, d, average="macro", labels=[0, 1], **kw))
    assert found["mcc"] == pytest.approx(sk.matthews_corrcoef(y, d, sample_weight=weight), abs=1e-9)
    assert found["gmean"] == pytest.approx(np.sqrt(found["recall"] * found["specificity"]))


def test_without_positives_ap_and_auc_say_nan_rather_than_zero():
    assert np.isnan(ranking.average_precision([0, 0], [0.1, 0.2]))
    assert np.isnan(ranking.roc_auc([0, 0], [0.1, 0.2]))
    assert np.isnan(ranking.estimate_ap([0, 0], [0.1, 0.2]).low)


@given(case=scored(), blocked=st.booleans())
@settings(max_examples=12, deadline=None)
def test_bootstrapped_ap_is_the_ap_of_the_resampled_rows_for_every_score(case, blocked):
    y, score, weight = case
    block = np.arange(len(y)) % 7 if blocked else None
    other = np.random.default_rng(0).random(len(y))
    drawn = ranking.bootstrap_average_precision(
        y, np.stack([score, other]), block=block, n_boot=50, seed=3, weight=weight
    )
    mass = np.ones(len(y)) if weight is None else weight
    for b, rows in enumerate(np.concatenate(list(Resamples(len(y), block, 50, 3).weights())) * mass):
        for line, s in enumerate((score, other)):
            if rows[y == 1].sum() == 0:
                assert np.isnan(drawn[line, b])
            else:
                used = rows > 0
                expected = sk.average_precision_score(y[used], s[used], sample_weight=rows[used])
                assert drawn[line, b] == pytest.approx(expected)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    y_all = (rng.random(400_000) < 0.05).astype(int)
    s_all = rng.normal(size=len(y_all)) + 1.5 * y_all
    truth = sk.average_precision_score(y_all, s_all)
    hits = 0
    for i in range(100):
        part = slice(i * 4000, (i + 1) * 4000)
        found = ranking.estimate_ap(y_all[part], s_all[part], bootstrap=Bootstrap(100, 0.9, i))
        hits += found.low <= truth <= found.high
    assert 80 <= hits <= 98


def test_blocks_widen_the_interval_where_rows_of_a_day_move_together():
    rng = np.random.default_rng(0)
    day = np.repeat(np.arange(30), 100)
    rate = np.where(rng.random(30) < 0.2, 0.3, 0.01)[day]
    y = (rng.random(3000) < rate).astype(int)
    score = rng.random(3000) * 0.5 + rate
    rows, days = ranking.estimate_ap(y, score), ranking.estimate_ap(y, score, block=day)
    assert days.high - days.low > 1.3 * (rows.high - rows.low)


def test_a_paired_difference_is_narrower_than_the_two_intervals():
    y, score, _ = world()
    near = score + np.random.default_rng(1).normal(0, 0.002, len(score))
    found, alone = ranking.compare(y, score, near), ranking.estimate_ap(y, score)
    assert found.low <= found.value <= found.high
    assert found.high - found.low < 0.5 * (alone.high - alone.low)
    same = ranking.compare(y, score, score * 2)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_ap_at_another_prevalence_is_that_of_repeated_negatives():
    y, score, _ = world(800)
    prevalence = y.sum() / (y.sum() + 3 * (y == 0).sum())
    again = np.concatenate([np.arange(len(y)), *[np.flatnonzero(y == 0)] * 2])
    assert ranking.average_precision(y, score, ranking.at_prevalence(y, prevalence)) == pytest.approx(
        sk.average_precision_score(y[again], score[again])
    )
    with pytest.raises(DataError, match="Both classes"):
        ranking.at_prevalence([0, 0], 0.1)


def test_thinning_keeps_every_positive_and_the_ratio():
    y, _, _ = world()
    index = ev.thinned(y, 5, seed=1)
    assert y[index].sum() == y.sum()
    assert (y[index] == 0).sum() == 5 * y.sum()
    assert (np.diff(index) > 0).all()
    assert len(ev.thinned(y, 10_000)) == len(y)


def test_calibration_error_is_zero_for_the_rates_themselves_and_sees_a_shift():
    y = np.tile([0, 0, 0, 1], 300)
    assert ev.ece(y, np.full(1200, 0.25)) == pytest.approx(0)
    assert ev.ece(y, np.full(1200, 0.75)) == pytest.approx(0.5)
    assert ev.mean_score_ratio(y, np.full(1200, 0.5)) == pytest.approx(2)


def test_bins_of_equal_mass_hold_equally_many_rows_in_order():
    score = np.random.default_rng(0).random(1500)
    bins = ev.equal_mass_bins(score, 15)
    assert np.bincount(bins).tolist() == [100] * 15
    assert all(score[bins == k].max() < score[bins == k + 1].min() for k in range(14))


def test_precision_at_k_per_day_is_the_mean_over_days_with_ties_shared():
    time = np.array(["2025-01-01T01"] * 4 + ["2025-01-02T02"] * 2, dtype="datetime64[us]")
    y, score = np.array([1, 0, 0, 1, 0, 1]), np.array([0.9, 0.5, 0.5, 0.5, 0.2, 0.1])
    assert ev.precision_at_k_per_day(Sample(y, score, time=time), 1).value == pytest.approx(0.5)
    # day 1: the first and, of three tied rows with one positive, one; day 2: both rows
    assert ev.precision_at_k_per_day(Sample(y, score, time=time), 2).value == pytest.approx(((1 + 1 / 3) / 2 + 0.5) / 2)
    assert ev.precision_at_k_per_day(Sample(y, score, time=time), 9).value == pytest.approx(0.5)


def test_precision_at_k_of_a_share_of_the_rows_is_that_of_whole_days():
    """A random fifth of the rows of a day: its best row is about the fifth of the whole day."""
    rng = np.random.default_rng(0)
    days, rows = 300, 400
    score = rng.random((days, rows))
    y = (rng.random((days, rows)) < score**40).astype(np.int64)
    time = np.repeat(np.datetime64("2025-01-01", "us") + np.arange(days) * np.timedelta64(1, "D"), rows).reshape(
        days, -1
    )
    kept = rng.random((days, rows)) < 0.2
    for k in (10, 30, 100):
        whole = ev.precision_at_k_per_day(Sample(y.ravel(), score.ravel(), time=time.ravel()), k)
        part = ev.precision_at_k_per_day(Sample(y[kept], score[kept], share=0.2, time=time[kept]), k)
        naive = ev.precision_at_k_per_day(Sample(y[kept], score[kept], time=time[kept]), k)
        assert part.value == pytest.approx(whole.value, abs=0.05)
        assert part.low <= whole.value <= part.high
        assert naive.value < 0.5 * whole.value
    everything = ev.precision_at_k_per_day(Sample(y[kept], score[kept], share=0.2, time=time[kept]), 5000)
    assert everything.value == pytest.approx(
        ev.precision_at_k_per_day(Sample(y[kept], score[kept], time=time[kept]), 5000).value
    )


def test_precision_at_k_counts_a_row_for_as_many_as_its_propensity_says():
    """Labels of what is scored low are seldom seen."""
    rng = np.random.default_rng(0)
    days, rows = 300, 400
    score = rng.random((days, rows))
    y = (rng.random((days, rows)) < score**40).astype(np.int64)
    time = np.repeat(np.datetime64("2025-01-01", "us") + np.arange(days) * np.timedelta64(1, "D"), rows).reshape(
        days, -1
    )
    seen = np.where(score > 0.98, 1.0, 0.2)
    kept = rng.random((days, rows)) < seen
    labels, scores, times, weight = y[kept], score[kept], time[kept], 1 / seen[kept]
    for k in (10, 30, 100):
        whole = ev.precision_at_k_per_day(Sample(y.ravel(), score.ravel(), time=time.ravel()), k)
        part = ev.precision_at_k_per_day(Sample(labels, scores, weight, time=times), k)
        naive = ev.precision_at_k_per_day(Sample(labels, scores, time=times), k)
        assert part.low <= whole.value <= part.high
        assert part.value == pytest.approx(whole.value, abs=0.05)
        assert k == 10 or naive.value < 0.85 * whole.value  # nearly all of the best ten are seen
    # a weight that is the same everywhere is a share, whatever it is divided into
    fifth = ev.precision_at_k_per_day(Sample(labels, scores, time=times, share=0.2), 30)
    for each, share in ((5.0, 1.0), (2.5, 0.5)):
        again = ev.precision_at_k_per_day(
            Sample(labels, scores, np.full(kept.sum(), each), time=times, share=share), 30
        )
        assert again.value == pytest.approx(fifth.value, abs=1e-12)
    # rows that tie count the same in whatever order they come
    coarse = np.round(scores, 1)
    one_way = ev.precision_at_k_per_day(Sample(labels, coarse, weight, time=times), 7)
    other = ev.precision_at_k_per_day(Sample(labels[::-1], coarse[::-1], weight[::-1], time=times[::-1]), 7)
    assert one_way.value == pytest.approx(other.value, abs=1e-12)


def test_the_best_k_of_a_day_are_not_told_where_one_row_stands_for_more_and_the_evaluation_says_so():
    y, score, time = world()
    seen = np.where(score > np.quantile(score, 0.99), 0.1, 1.0)
    found = ev.evaluate(
        Sample(y, score, 1 / seen, time=time),
        thresholds={"d": 0.3},
        primary="d",
        costs=CostArrays(),
        config=EvaluateSettings(bootstraps=50, top_k=(5, 40)),
    )
    assert set(found.top_k) == {40}
    said = "precision of the best 5 of a day is not told: its rows were observed"
    assert any(note.startswith(said) for note in found.notes)


def test_money_adds_up_per_row():
    y, decision = np.array([1, 1, 0, 0]), np.array([1, 0, 1, 0])
    costs = CostArrays(np.array([100.0, 40.0, 9.0, 9.0]), 5.0, "EUR")
    found = ev.money(y, decision, costs=costs)
    assert (found.cost.value, found.cost_nothing.value, found.cost_everything.value) == (45, 140, 10)
    assert (found.saving_vs_nothing.value, found.saving_vs_everything.value) == (95, -35)
    assert found.per_1000_rows.value == pytest.approx(11250)
    assert found.currency == "EUR"


def table(y, rng):
    schema = Schema(
        (Feature("city", "categorical", ("Bonn", "Ulm")), Feature("age"), Feature("one", "categorical", ("x",)))
    )
    n = len(y)
    city = np.where(rng.random(n) < 0.1, np.nan, rng.integers(0, 2, n))
    x = np.stack([city, rng.random(n), np.zeros(n)], axis=1).astype(np.float32)
    return Rows(schema, x, y, np.arange(n).astype(np.uint64))


def test_slices_split_all_rows_of_a_column_and_count_positives():
    y, score, _ = world()
    rows = table(y, np.random.default_rng(0))
    found = ev.slices(rows, score, score >= 0.2, ["city", "age"], bootstrap=Bootstrap(50))
    city = [part for part in found if part.column == "city"]
    assert {part.level for part in city} == {"Bonn", "Ulm", "missing"}
    for column in ("city", "age"):
        assert sum(part.rows for part in found if part.column == column) == len(y)
        assert sum(part.positives for part in found if part.column == column) == y.sum()
    bonn = next(part for part in city if part.level == "Bonn")
    mask = rows.x[:, 0] == 0
    assert bonn.recall.value == pytest.approx(sk.recall_score(y[mask], score[mask] >= 0.2))
    assert bonn.ap.value == pytest.approx(sk.average_precision_score(y[mask], score[mask]))
    assert {part.column for part in ev.slices(rows, score, score >= 0.2, bootstrap=Bootstrap(50))} == {"city"}
    with pytest.raises(ConfigError, match="Did you mean 'city'"):
        ev.slices(rows, score, score >= 0.2, ["citi"])


def test_an_evaluation_reports_everything_with_intervals():
    y, score, time = world()
    rows = table(y, np.random.default_rng(0))
    block = time.astype("datetime64[D]").astype(int)
    costs = CostArrays(19.0, 1.0, "EUR")
    found = ev.evaluate(
        Sample(y, score, block=block, time=time),
        thresholds={"default": 0.1, "strict": 0.6},
        primary="default",
        costs=costs,
        config=EvaluateSettings(bootstraps=50, test_ratio=3, top_k=(2,)),
        rows=rows,
    )
    for name in (
        "ap",
        "roc_auc",
        "brier",
        "log_loss",
        "ece",
        "mean_score_ratio",
        "precision",
        "recall",
        "f1",
        "f2",
        "mcc",
        "gmean",
        "macro_f1",
        "micro_f1",
        "cost",
    ):
        estimate = found.metrics[name]
        assert estimate.low < estimate.high, name
        assert estimate.positives == y.sum(), name
    decision = ev.decision_metrics(y, score >= 0.1)
    for name, value in decision.items():
        assert found.points["default"][name].value == pytest.approx(value), name
    assert found.metrics["ap"].value == pytest.approx(sk.average_precision_score(y, score))
    assert found.metrics["ece"].value == pytest.approx(ev.ece(y, score))
    assert found.metrics["cost"].value == pytest.approx(ev.money(y, score >= 0.1, costs=costs).cost.value)
    saved = ((y == 1) & (score >= 0.1) & (score < 0.5)).sum()
    assert found.untuned["missed_but_tuned_finds"].value == saved
    assert found.untuned["fn"].value - found.metrics["fn"].value == saved
    assert found.thinned["ap"].value > found.metrics["ap"].value
    assert found.counts == {"rows": 4000, "positives": y.sum(), "prevalence": pytest.approx(y.mean()), "blocks": 40}
    assert set(found.top_k) == {2}
    json.dumps(found.to_json(), allow_nan=False)


def test_the_roc_auc_of_an_evaluation_handles_ties_like_scikit_learn():
    y, score, _ = world()
    coarse = np.round(score, 1)
    found = ev.evaluate(
        Sample(y, coarse),
        thresholds={"d": 0.3},
        primary="d",
        costs=CostArrays(),
        config=EvaluateSettings(bootstraps=50),
    )
    assert found.metrics["roc_auc"].value == pytest.approx(sk.roc_auc_score(y, coarse))


def test_evaluating_rows_without_a_positive_reports_nan_and_does_not_fail():
    found = ev.evaluate(
        Sample(np.zeros(50), np.linspace(0, 1, 50)),
        thresholds={"d": 0.5},
        primary="d",
        costs=CostArrays(),
        config=EvaluateSettings(bootstraps=50, test_ratio=3),
    )
    assert np.isnan(found.metrics["ap"].value)
    assert found.metrics["specificity"].value == pytest.approx(0.5)
    json.dumps(found.to_json(), allow_nan=False)


def test_curves_are_short_keep_their_ends_and_lie_on_the_exact_curve():
    y, score, _ = world()
    found = ranking.curves(y, score)
    assert len(found["pr"]["recall"]) <= 400
    assert found["pr"]["recall"][-1] == 1
    assert (found["roc"]["fpr"][0], found["roc"]["tpr"][0]) == (0, 0)
    assert (found["roc"]["fpr"][-1], found["roc"]["tpr"][-1]) == (1, 1)
    exact = {(round(r, 12), round(p, 12)) for p, r in zip(*sk.precision_recall_curve(y, score)[:2], strict=True)}
    drawn = list(zip(found["pr"]["recall"], found["pr"]["precision"], strict=True))[1:]
    assert all((round(r, 12), round(p, 12)) in exact for r, p in drawn)


@pytest.mark.parametrize(("y", "primary", "error"), [([], "d", DataError), ([0, 1], "e", ConfigError)])
def test_what_cannot_be_evaluated_is_refused(y, primary, error):
    with pytest.raises(error):
        ev.evaluate(
            Sample(y, np.zeros(len(y))),
            thresholds={"d": 0.5},
            primary=primary,
            costs=CostArrays(),
            config=EvaluateSettings(),
        )
