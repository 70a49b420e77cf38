"""Intervals cover what they promise where positives are few, and stay inside what is possible."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rareclass.config import EvaluateSettings
from rareclass.core.bootstrap import Bootstrap, Resamples, Sample, share_estimate, unbiased_estimate
from rareclass.core.costs import CostArrays
from rareclass.core.differences import judge_difference
from rareclass.core.evaluation import evaluate
from rareclass.core.ranking import average_precision, bootstrap_average_precision, estimate_ap
from rareclass.core.thresholds import Aim, tune

TRUTH = 400_000


def drawn(n: int, apart: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.2).astype(int)
    return y, rng.normal(size=n) + apart * y


def promised(covered: float, draws: int) -> bool:
    """93 to 97 %, but for what so many draws leave to chance."""
    noise = 2 * math.sqrt(0.95 * 0.05 / draws)
    return 0.93 - noise <= covered <= 0.97 + noise


@pytest.mark.parametrize("positives", [10, 20, 50, 200])
def test_intervals_of_recall_cover_as_often_as_they_say(positives):
    rng, covered, draws = np.random.default_rng(positives), [], 1500
    for recall in rng.uniform(0.3, 0.97, draws):
        found = rng.binomial(positives, recall) / positives
        again = rng.binomial(positives, found, 100) / positives
        each = share_estimate(found, again, positives, 0.95, positives, 10 * positives)
        covered.append(each.low <= recall <= each.high)
    assert promised(float(np.mean(covered)), draws)


@pytest.mark.parametrize(("positives", "draws"), [(10, 400), (20, 300), (50, 200), (200, 120)])
def test_intervals_of_average_precision_cover_as_often_as_they_say(positives, draws):
    covered = []
    for apart in (1.2, 2.0):
        truth = average_precision(*drawn(TRUTH, apart, 1))
        for number in range(draws // 2):
            y, score = drawn(5 * positives, apart, 1000 * positives + number)
            found = estimate_ap(y, score, bootstrap=Bootstrap(seed=number))
            covered.append(found.low <= truth <= found.high)
    assert promised(float(np.mean(covered)), draws)


@pytest.mark.parametrize(("positives", "draws"), [(10, 200), (20, 200), (50, 150), (200, 80)])
def test_intervals_of_paired_differences_cover_as_often_as_they_say(positives, draws):
    def pair(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        y = (rng.random(n) < 0.2).astype(int)
        shared = rng.normal(size=n) + 1.6 * y
        return y, np.stack([shared + blur * rng.normal(size=n) for blur in (0.5, 0.7)])

    y, scores = pair(TRUTH, 1)
    truth = average_precision(y, scores[0]) - average_precision(y, scores[1])
    covered = []
    for number in range(draws):
        y, scores = pair(5 * positives, 1000 * positives + number)
        value = average_precision(y, scores[0]) - average_precision(y, scores[1])
        resampled = bootstrap_average_precision(y, scores, seed=number)
        found = judge_difference(
            value, resampled[0] - resampled[1], confidence=0.95, compared=1, positives=int(y.sum()), rows=len(y)
        ).estimate
        covered.append(found.low <= truth <= found.high)
    assert promised(float(np.mean(covered)), draws)


def test_all_found_of_eight_is_not_certainty():
    y = np.repeat([1, 0], [8, 92])
    score = np.where(y == 1, 0.9, 0.1)
    found = evaluate(
        Sample(y, score), thresholds={"default": 0.5}, primary="default", costs=CostArrays(), config=EvaluateSettings()
    )
    for name in ("recall", "precision", "ap", "f1", "f2", "roc_auc"):
        each = found.metrics[name]
        assert each.value == each.high == 1.0, name
        assert 0.2 < each.low < 0.9, name
    assert found.metrics["recall"].low == pytest.approx(0.676, abs=0.001), "Wilson"
    tuned = tune(Sample(y, score), aim=Aim(objective="f1"))
    assert tuned.recall.low < 0.9
    assert tuned.precision.low < 0.9


def test_the_calibration_error_lies_inside_its_interval():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        score = rng.beta(1, 9, 400)
        y = (rng.random(400) < score).astype(int)
        found = evaluate(
            Sample(y, score),
            thresholds={"default": 0.5},
            primary="default",
            costs=CostArrays(),
            config=EvaluateSettings(bootstraps=50),
        )
        each = found.metrics["ece"]
        assert 0 <= each.low <= each.value <= each.high
    moved = unbiased_estimate(0.1, np.array([0.3, 0.4, 0.5]), 0.95, 5, 10)
    assert moved.low < 0.1 < moved.high < 0.3


def test_days_too_few_to_be_drawn_are_said():
    y, score = drawn(300, 2.0, 0)
    options = {
        "thresholds": {"default": 1.0},
        "primary": "default",
        "costs": CostArrays(),
        "config": EvaluateSettings(bootstraps=50),
    }
    few = evaluate(Sample(y, score, block=np.arange(300) % 3), **options)
    assert "fewer than 5: rows are drawn one by one" in few.notes[0]
    assert few.to_json()["notes"] == list(few.notes)
    assert not evaluate(Sample(y, score, block=np.arange(300) % 30), **options).notes
    assert not evaluate(Sample(y, score), **options).notes
    assert Resamples(300, np.arange(300) % 3).independent


def test_a_threshold_is_also_judged_on_rows_it_was_not_tuned_on():
    gaps = []
    for seed in range(20):
        y, score = drawn(120, 1.0, seed)
        tuned = tune(Sample(y, score), aim=Aim(objective="f1"), bootstrap=Bootstrap(resamples=50, seed=seed))
        held = tuned.crossfitted
        gaps.append(tuned.precision.value + tuned.recall.value - held["precision"].value - held["recall"].value)
        assert tuned.to_json()["crossfitted"]["recall"]["low"] <= held["recall"].value
    assert np.mean(gaps) > 0.02, "on the rows it was chosen on it looks better"
