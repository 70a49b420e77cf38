"""Rows that are chosen with known probabilities, and what their labels say of all the others."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from rareclass.core import review
from rareclass.core.log_odds import expit, logit
from rareclass.core.ranking import average_precision, roc_auc
from rareclass.core.review import Design, Sampled


def scores(n: int = 3000, seed: int = 0, rate: float = -4.5) -> tuple[np.ndarray, np.ndarray]:
    """Labels and calibrated scores."""
    rng = np.random.default_rng(seed)
    p = expit(rng.normal(rate, 2, n))
    return (rng.random(n) < p).astype(float), p


DESIGNS = [Design(50), Design(200, top=0.5, control=0.3), Design(30, top=0.0, control=0.0), Design(60, ranks=True)]


@pytest.mark.parametrize("design", DESIGNS)
def test_probabilities_lie_between_0_and_1_and_sum_to_the_budget(design: Design) -> None:
    _, p = scores()
    found = review.chances(p, design)
    assert found.total.sum() == pytest.approx(design.budget)
    assert ((found.total > 0) & (found.total <= 1) & (found.control <= found.total)).all()


def test_a_budget_as_large_as_the_window_takes_every_row_for_certain() -> None:
    assert (review.chances(np.linspace(0, 1, 20), Design(20)).total == 1).all()
    assert review.chances(np.full(20, 0.5), Design(19.5)).total.sum() == pytest.approx(19.5)


@pytest.mark.parametrize("design", DESIGNS)
def test_rows_are_chosen_as_often_as_their_probability_says(design: Design) -> None:
    _, p = scores(400)
    found, times = review.chances(p, design), 500
    names = pd.Series([f"request {at}" for at in range(400 * times)])
    numbers = review.permanent_numbers(names, pd.Series(np.zeros(len(names), dtype=int)), model="m", seed=1)
    count, controls = np.zeros(400), 0
    for number in numbers.reshape(times, 400):
        chosen = found.chosen(number)
        count[chosen] += 1
        controls += int((found.reasons(number)[chosen] == review.CONTROL).sum())
    error = np.sqrt(found.total * (1 - found.total) / times)
    assert (np.abs(count / times - found.total) <= 4.5 * error + 1e-12).all()
    assert controls / times == pytest.approx(found.control.sum(), rel=0.1)


def test_equal_scores_share_one_probability_at_the_edge_of_the_top() -> None:
    score = np.r_[np.full(40, 0.9), np.linspace(0.001, 0.2, 500)]
    found = review.chances(score, Design(50, top=0.3)).total
    assert len(set(found[:40].round(12))) == 1
    assert found[0] < 1


def test_a_larger_budget_holds_what_a_smaller_one_chose_with_the_larger_probability() -> None:
    _, p = scores()
    number = review.permanent_numbers(
        pd.Series([str(at) for at in range(len(p))]), pd.Series(np.zeros(len(p), int)), model="m", seed=3
    )
    small, large = review.chances(p, Design(50)), review.chances(p, Design(120))
    assert (large.total >= small.total).all()
    assert set(small.chosen(number)) < set(large.chosen(number))


def test_the_probability_after_two_draws_is_the_larger_one_also_where_neither_holds_the_other() -> None:
    _, p = scores(300)
    rng = np.random.default_rng(0)
    one, two = review.chances(p, Design(40, top=0.5)).total, review.chances(p, Design(40, top=0.0, control=0.8)).total
    assert (one > two).any()
    assert (two > one).any()
    times, count = 4000, np.zeros(300)
    for _ in range(times):
        number = rng.random(300)
        either = (number < one) | (number < two)
        recorded = np.maximum(np.where(number < one, one, 0), np.where(number < two, two, 0))
        assert (recorded[either] == np.maximum(one, two)[either]).all()
        count += either
    truth = np.maximum(one, two)
    assert (np.abs(count / times - truth) <= 4.5 * np.sqrt(truth * (1 - truth) / times) + 1e-12).all()


def test_the_number_of_a_row_depends_on_its_id_its_model_and_the_seed_alone() -> None:
    names, rows = pd.Series(["a", "b", "a"]), pd.Series([0, 0, 1])
    number = review.permanent_numbers(names, rows, model="m", seed=1)
    assert len(set(number)) == 3
    again = review.permanent_numbers(names[::-1], rows[::-1], model="m", seed=1)
    np.testing.assert_array_equal(number, again[::-1])
    assert (number != review.permanent_numbers(names, rows, model="n", seed=1)).all()
    assert (number != review.permanent_numbers(names, rows, model="m", seed=2)).all()


def test_weighted_average_precision_is_the_exact_one_where_every_label_is_known() -> None:
    y, p = scores(500)
    p = np.round(p, 2)  # with ties
    assert review.horvitz_thompson_ap(p, y, np.ones(500)) == pytest.approx(average_precision(y, p))


def test_inverse_probabilities_make_the_parts_of_average_precision_unbiased() -> None:
    y, p = scores(400, rate=-2.5)
    total = review.chances(p, Design(80)).total
    rng, hits, ap = np.random.default_rng(0), [], []
    for _ in range(1500):
        label = np.where(rng.random(400) < total, y, np.nan)
        found = np.nansum(label / total)
        hits.append(found)
        ap.append(np.nan_to_num(review.horvitz_thompson_ap(p, label, total)) * found)
    # the sum over hits and their number, of which average precision is the ratio
    for drawn, truth in ((hits, y.sum()), (ap, average_precision(y, p) * y.sum())):
        assert abs(np.mean(drawn) - truth) < 4 * np.std(drawn) / np.sqrt(len(drawn))
    alone = [average_precision(y[at], p[at]) for at in (rng.random(400) < total for _ in range(300))]
    assert np.mean(alone) > average_precision(y, p) + 0.05  # what the chosen rows alone would have said


def test_kinds_of_which_few_were_looked_at_count_for_those_that_were_not() -> None:
    reason = np.array([review.TOP] * 4 + [review.CONTROL] * 4 + [review.UNCERTAIN], dtype=object)
    label = np.array([1, 1, 0, 0, 0, np.nan, np.nan, np.nan, np.nan])
    found = review.answered(np.full(9, 0.5), reason, label)
    np.testing.assert_allclose(found, [0.5] * 4 + [0.125] * 4 + [0.0])


@pytest.mark.parametrize("decimals", [2, 9])
def test_a_window_whose_labels_are_all_known_has_its_exact_figures_and_no_width(decimals: int) -> None:
    y, p = scores(280, rate=-2.5)
    p = np.round(p, decimals)
    decision = (p >= 0.3).astype(float)
    found = review.complete(Sampled(p, y, decision), draws=5)
    np.testing.assert_allclose(found.ap(), average_precision(y, p))
    np.testing.assert_allclose(found.roc_auc(), roc_auc(y, p))
    assert (found.total == y.sum()).all()
    assert (found.caught == (y * decision).sum()).all()
    odds = 0.01 / 0.99
    weight = np.where(y == 1, 1.0, y.sum() / (odds * (1 - y).sum()))
    np.testing.assert_allclose(found.ap(odds), average_precision(y, p, weight))


def test_cells_of_many_rows_give_the_exact_figures_within_a_thousandth() -> None:
    y, p = scores(20_000)
    found = review.complete(Sampled(p, y), draws=2)
    np.testing.assert_allclose(found.ap(), average_precision(y, p), atol=1e-3)
    np.testing.assert_allclose(found.roc_auc(), roc_auc(y, p), atol=1e-3)


def replayed(off: float, tilt: float) -> tuple[float, float, float, float]:
    """Coverage, mean width, bias over windows whose scores are off by so much, and the width of 1,500 plain labels."""
    hits, widths, errors, plain = [], [], [], []
    for seed in range(30):
        y, p = scores(3000, seed)
        said = expit(off + tilt * logit(p))
        total = review.chances(said, Design(150)).total
        rng = np.random.default_rng([seed, 1])
        label = np.where(rng.random(3000) < total, y, np.nan)
        found = review.complete(Sampled(said, label), draws=200, seed=seed)
        ap, truth = found.estimate(found.ap()), average_precision(y, p)
        hits.append(ap.low <= truth <= ap.high)
        widths.append(ap.high - ap.low)
        errors.append(ap.value - truth)
        at = rng.choice(3000, 1500, replace=False)
        drawn = [average_precision(y[b], p[b]) for b in (rng.choice(at, 1500) for _ in range(15))]
        plain.append(3.92 * np.std(drawn))
    return float(np.mean(hits)), float(np.mean(widths)), float(np.mean(errors)), float(np.mean(plain))


def test_intervals_from_150_labels_hold_the_truth_and_are_no_wider_than_those_of_1500_uniform_ones() -> None:
    coverage, width, bias, plain = replayed(0.0, 1.0)
    assert coverage >= 0.9
    assert abs(bias) < 0.02
    assert width <= plain


def test_intervals_hold_the_truth_where_the_scores_are_off() -> None:
    coverage, _, bias, _ = replayed(0.7, 0.8)
    assert coverage >= 0.88
    assert abs(bias) < 0.04


def test_a_window_without_a_label_of_the_rare_class_still_says_what_may_be_there() -> None:
    _, p = scores(1000)
    label = np.where(np.arange(1000) % 10 == 0, 0.0, np.nan)
    found = review.complete(Sampled(p, label))
    assert np.isfinite(found.estimate(found.ap()).high)
    assert found.found == 0


def test_a_plan_promises_narrower_intervals_for_more_labels() -> None:
    _, p = scores(2000)
    totals = [review.chances(p, Design(budget)).total for budget in (50, 400)]
    small, large = (review.expected_width(p, total, repeats=4) for total in totals)
    assert 0 < large < small < 1
