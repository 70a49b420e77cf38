"""What a related domain lends to a fit: rows, weights, a column; and how a model of it reads rows of the target."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rareclass.core import portable, splitting, training, transfer
from rareclass.core.candidates import Candidate
from rareclass.core.dataset import OTHER, Feature, Rows, Schema
from rareclass.core.fitted import Fitted
from rareclass.core.ranking import average_precision
from rareclass.core.transfer import TRANSFERS, Lender, LentModel
from rareclass.errors import DataError

SCHEMA = Schema((Feature("a"), Feature("b"), Feature("kind", "categorical", ("x", "y", "z"))))


def rows_of(n: int, *, seed: int, shift: float = 0.0, base: float = -3.0) -> Rows:
    rng = np.random.default_rng(seed)
    x = np.column_stack([rng.normal(shift, 1, n), rng.normal(size=n), rng.integers(0, 3, n)]).astype(np.float32)
    odds = base + 2 * x[:, 0] - x[:, 1] + (x[:, 2] == 2)
    return Rows(SCHEMA, x, (rng.random(n) < 1 / (1 + np.exp(-odds))).astype(np.int64), np.arange(n, dtype=np.uint64))


SOURCE, TARGET = rows_of(900, seed=1), rows_of(300, seed=2, shift=0.5)
LENDER = transfer.of_rows("neighbour", SOURCE, TARGET, None, seed=0)


class Sum(Fitted):
    """Scores by the sum of what it reads, missing as 100."""

    def score(self, x):
        return np.nan_to_num(x.astype(np.float64), nan=100.0).sum(axis=1)


def lenders(way: str) -> Lender:
    return Lender("model", model=LENDER.source(TARGET)) if TRANSFERS[way].needs == "model" else LENDER


@pytest.mark.parametrize("way", TRANSFERS)
def test_every_way_learns_and_scores_rows_of_the_target_alone_and_can_be_written(way):
    folds = splitting.stratified_folds(TARGET.y, np.arange(len(TARGET), dtype=np.uint64), folds=2, seed=0)
    params = {"rounds": 30} if TRANSFERS[way].learner == "xgboost" else {}
    candidate = Candidate(way, TRANSFERS[way].learner, params, transfer=way, lender=lenders(way))
    one = training.train_candidate(candidate, TARGET, folds, seed=0)
    assert one.complete
    assert one.oof.shape == (300,)
    assert np.isfinite(one.oof).all()
    assert average_precision(TARGET.y, one.oof) > 2 * TARGET.prevalence
    fitted = training.refit([one], {way: 1.0}, TARGET, seed=0, once=True)
    score = fitted.score(TARGET.x)
    again = portable.unpack(portable.pack(fitted, training.SAVED), training.SAVED)
    np.testing.assert_allclose(again.score(TARGET.x), score)
    contributions = fitted.contributions(TARGET.x[:5])
    assert contributions is None or contributions.shape == (5, 3)


@pytest.mark.parametrize("way", [name for name, each in TRANSFERS.items() if each.needs in ("rows", "weight")])
def test_a_rare_class_that_is_commoner_at_the_neighbours_is_corrected_for(way):
    common = rows_of(900, seed=3, base=-1.0)
    lender = transfer.of_rows("neighbour", common, TARGET, None, seed=0)
    candidate = Candidate(way, "xgboost", {"rounds": 40}, transfer=way, lender=lender)
    folds = splitting.stratified_folds(TARGET.y, np.arange(len(TARGET), dtype=np.uint64), folds=2, seed=0)
    one = training.train_candidate(candidate, TARGET, folds, seed=0)
    assert one.negative_sampling_rate < 0.8  # the neighbour has relatively fewer negatives
    assert 0.5 < one.oof.mean() / TARGET.prevalence < 2


def test_rows_that_look_like_the_targets_weigh_more_and_the_mean_weight_is_one():
    weight, apart = transfer.importance_weights(SOURCE, rows_of(300, seed=4, shift=2.0), seed=0)
    assert weight.mean() == pytest.approx(1.0)
    assert weight[SOURCE.x[:, 0] > 1].mean() > 4 * weight[SOURCE.x[:, 0] < 0].mean()
    assert apart > 0.85
    alike = transfer.importance_weights(SOURCE, rows_of(900, seed=5), seed=0)[1]
    assert 0.4 < alike < 0.6


def test_a_column_that_the_neighbour_lacks_does_not_tell_the_domains_apart():
    x = SOURCE.x.copy()
    x[:, 1] = np.nan
    assert transfer.importance_weights(replace(SOURCE, x=x), rows_of(900, seed=5), seed=0)[1] < 0.6


def test_a_set_weight_is_what_a_neighbours_row_counts_for_and_no_other_is_tried():
    lender = replace(LENDER, weight=0.25)
    loan = TRANSFERS["pooled"].lend(lender, TARGET, None)
    assert set(loan.weight[:900]) == {0.25}
    assert set(loan.weight[900:]) == {1.0}
    possible = [name for name, way in TRANSFERS.items() if way.possible(lender)]
    assert possible == ["source", "pooled", "pooled_domain", "source_score"]


def test_a_model_reads_the_targets_columns_by_its_own_names_and_codes():
    own = Schema(
        (
            Feature("kind", "categorical", ("z", "y", OTHER)),
            Feature("alpha"),
            Feature("gone"),
            Feature("b", "categorical"),
        )
    )
    lent = LentModel.of(Sum("sum"), own, SCHEMA, {"a": "alpha"})
    assert lent.columns.tolist() == [2, 0, -1, -1]
    assert lent.missing == 2
    x = np.array([[1.5, 0, 2], [1.5, 0, 1], [1.5, 0, 0], [1.5, 0, np.nan]], dtype=np.float32)
    assert lent.score(x).tolist() == [201.5, 202.5, 203.5, 301.5]  # z is 0 there, y 1, x is pooled


def test_rows_that_equal_one_of_the_target_are_left_out():
    mixed = replace(SOURCE, x=np.concatenate([TARGET.x[:50], SOURCE.x[50:]]))
    assert len(transfer.without_twins(mixed, [TARGET])) == 850
    assert transfer.without_twins(SOURCE, [TARGET]) is SOURCE


def test_one_class_lends_nothing_and_a_recipe_without_its_lender_says_so():
    with pytest.raises(DataError, match=r"neighbour lends 0 rows of the rare class among .*nothing to learn from"):
        transfer.of_rows("neighbour", SOURCE.take(SOURCE.y == 0), TARGET, None, seed=0)
    with pytest.raises(DataError, match=r"Set transfer\.path or transfer\.model"):
        training.loan_of(Candidate("neighbour-pooled", "xgboost", transfer="pooled"), TARGET, None)


def test_a_recipe_says_how_it_borrows_and_not_what():
    raw = Candidate("n", "xgboost", transfer="pooled", lender=LENDER).to_json()
    assert raw["transfer"] == "pooled"
    assert "lender" not in raw
    assert Candidate.from_json(raw) == Candidate("n", "xgboost", transfer="pooled")
    assert "transfer" not in Candidate("n", "xgboost").to_json()


WITH_ROWS = [name for name, each in TRANSFERS.items() if each.needs != "model"]


def dated(rows: Rows, day: int, days: int) -> Rows:
    time = np.datetime64("2024-01-01", "us") + np.timedelta64(1, "D") * (day + np.arange(len(rows)) * days // len(rows))
    return replace(rows, time=time)


@pytest.mark.parametrize("way", WITH_ROWS)
def test_no_fit_knows_more_of_a_neighbours_future_than_of_its_own(way):
    lent, target = dated(SOURCE, 0, 90), dated(TARGET, 0, 30)
    lender = transfer.of_rows("neighbour", lent, target, None, seed=0)
    late = lent.time > target.time.max()
    assert late.sum() == 600
    flipped = replace(lender, rows=replace(lent, y=np.where(late, 1 - lent.y, lent.y)))
    loans = [TRANSFERS[way].lend(each, target, None) for each in (lender, flipped)]
    assert loans[0].rows.y.tolist() == loans[1].rows.y.tolist()
    np.testing.assert_array_equal(loans[0].rows.x, loans[1].rows.x)
    assert len(loans[0].rows) in (300, 600)


@pytest.mark.parametrize("way", WITH_ROWS)
def test_before_the_neighbour_had_rows_of_both_classes_a_fit_has_the_targets(way):
    lender = transfer.of_rows("neighbour", dated(SOURCE, 100, 90), TARGET, None, seed=0)
    loan = TRANSFERS[way].lend(lender, dated(TARGET, 0, 30), None)
    assert len(loan.rows) == 300
    np.testing.assert_array_equal(loan.rows.y, TARGET.y)
