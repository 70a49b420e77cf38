"""Cost and alerts at every threshold, against brute force; prevalence by period."""

from __future__ import annotations

import numpy as np
import pytest

from rareclass.core.bootstrap import Resamples
from rareclass.core.costs import CostArrays
from rareclass.core.periods import by_period
from rareclass.core.tradeoff import tradeoff


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("blocks", [None, 20])
def test_every_threshold_costs_what_brute_force_says(weighted: bool, blocks: int | None) -> None:
    rng = np.random.default_rng(0)
    n = 700
    score = np.round(rng.random(n) ** 3, 2)
    y = (rng.random(n) < score).astype(int)
    weight = rng.choice([1.0, 2.5], n) if weighted else None
    amount = rng.exponential(50, n)
    block = None if blocks is None else rng.integers(0, blocks, n)
    mass = np.ones(n) if weight is None else weight
    resamples = Resamples(n, block, 80, 3)
    found = tradeoff(y, score, costs=CostArrays(amount, 4.0), resamples=resamples, days=7, weight=weight)
    assert found["threshold"] == sorted(found["threshold"], reverse=True)
    assert found["threshold"][-1] == score.min()
    drawn = np.concatenate(list(resamples.weights()))
    for i, cut in enumerate(found["threshold"]):
        flagged = score >= cut
        paid = mass * (amount * ((y == 1) & ~flagged) + 4.0 * ((y == 0) & flagged))
        assert found["cost"][i] == pytest.approx(paid.sum())
        low, high = np.quantile(drawn @ paid, [0.025, 0.975])
        assert (found["cost_low"][i], found["cost_high"][i]) == pytest.approx((low, high))
        assert found["alerts"][i] == pytest.approx(mass[flagged].sum() / 7)
        assert found["precision"][i] == pytest.approx((mass * y)[flagged].sum() / mass[flagged].sum())
        assert found["recall"][i] == pytest.approx((mass * y)[flagged].sum() / (mass * y).sum())


def test_a_million_scores_are_shown_at_a_hundred_thresholds_and_few_at_all_of_them() -> None:
    rng = np.random.default_rng(0)
    many, few = rng.random(50_000), np.array([0.1, 0.5, 0.5, 0.9])
    y = (rng.random(50_000) < 0.01).astype(int)
    long = tradeoff(y, many, costs=CostArrays(), resamples=Resamples(50_000, None, 50, 0))
    assert 60 < len(long["threshold"]) <= 120
    short = tradeoff(np.array([0, 1, 0, 1]), few, costs=CostArrays(), resamples=Resamples(4, None, 50, 0))
    assert short["threshold"] == [0.9, 0.5, 0.1]
    assert short["alerts"] == [1, 3, 4]


@pytest.mark.parametrize(
    ("days", "unit", "first"),
    [(400, "month", "2024-01-01"), (70, "week", "2024-01-01"), (20, "day", "2024-01-03"), (2, "hour", "2024-01-03T00")],
)
def test_periods_are_calendar_periods_that_hold_every_row_once(days: int, unit: str, first: str) -> None:
    rng = np.random.default_rng(0)
    n = 3000
    time = np.datetime64("2024-01-03", "us") + np.sort(rng.integers(0, days * 24 * 60, n)) * np.timedelta64(1, "m")
    y = (rng.random(n) < 0.1).astype(np.int64)
    part = np.where(np.arange(n) < 2000, "train", "test")
    found_unit, found = by_period(time, y, part)
    assert (found_unit, found[0].start) == (unit, first)
    assert sum(each.prevalence.rows for each in found) == n
    assert sum(each.prevalence.positives for each in found) == y.sum()
    assert all(each.prevalence.low <= each.prevalence.value <= each.prevalence.high for each in found)
    assert [each.part for each in found] == sorted((each.part for each in found), reverse=True)
    if unit == "week":
        assert all(np.datetime64(each.start).astype(object).weekday() == 0 for each in found)


def test_no_rows_have_no_periods() -> None:
    assert by_period(np.zeros(0, dtype="datetime64[us]"), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=str)) == (
        "",
        (),
    )
