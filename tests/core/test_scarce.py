"""The recipe for few positives: what usual rows score is learned from rows that nothing else was learned from."""

import numpy as np
import pytest
from rows_for_learning import make_rows

from rareclass.core.dataset import Feature, Rows, Schema
from rareclass.core.fit_task import FitTask
from rareclass.core.learners import fit
from rareclass.core.scarce import MOST_OTHERS, _held_out, describe, fit_scarce, shares
from rareclass.errors import ConfigError

PARAMS = {"novelty": ["ecod"], "rounds": 60, "trees": 60}
KNOWN, FRESH = make_rows(900, seed=1), make_rows(900, seed=2)


@pytest.mark.parametrize("weighted", [False, True])
def test_every_part_is_as_surprised_by_usual_rows_as_a_tail_share_says(weighted):
    weight = np.where(KNOWN.x[:, 0] > 0, 2.0, 1.0) if weighted else None
    fitted = fit_scarce(FitTask(KNOWN, weight), PARAMS)
    usual = FRESH.x[FRESH.y == 0]
    described = describe(fitted.columns, fitted.novelty, usual)
    assert len(fitted.parts) == 5
    for part in fitted.parts:
        surprise = part.surprise(part.fitted.score(described if part.described else usual))
        assert 0.75 < surprise.mean() < 1.35, "minus the logarithm of what is spread evenly over 0 to 1 is 1"


def test_a_share_is_what_it_is_set_to_and_follows_the_positives_where_it_is_not():
    assert shares(10, {})["share"] == 0.5
    assert shares(30, {"hand_over": 10})["share"] == 0.25
    for params, share in (({}, 10 / (KNOWN.positives + 10)), ({"share": 0.6}, 0.6)):
        fitted = fit_scarce(FitTask(KNOWN), PARAMS | {"rounds": 2, "trees": 2} | params)
        assert sum(part.weight for part in fitted.parts if part.described) == pytest.approx(share)


@pytest.mark.filterwarnings("ignore:Only one sample available")
def test_one_usual_row_is_learned_from_and_says_how_high_it_scores():
    few = KNOWN.take(np.concatenate([np.flatnonzero(KNOWN.y == 1), np.flatnonzero(KNOWN.y == 0)[:2]]))
    for rows in (few, few.take(np.arange(len(few) - 1))):
        assert np.isfinite(fit_scarce(FitTask(rows), PARAMS | {"novelty": []}).score(FRESH.x)).all()


@pytest.mark.parametrize("share", [0.0, 1 / 3, 0.9])
def test_no_more_others_are_learned_from_than_the_bound_says_however_often_weights_draw_one(share):
    n = 90_000
    y = (np.arange(n) < 30).astype(np.int64)
    rows = Rows(Schema((Feature("x"),)), np.zeros((n, 1), dtype=np.float32), y, np.arange(n, dtype=np.uint64))
    few_count = np.where(np.arange(n) % 30 == 0, 1.0, 1e-6)  # 3,000 rows stand for all, each drawn some 30 times
    for weight in (None, np.random.default_rng(0).uniform(0, 1, n), few_count):
        learned, unseen = _held_out(FitTask(rows, weight), share)
        assert (y[learned] == 1).sum() == 30
        assert 0 < (y[learned] == 0).sum() <= MOST_OTHERS
        assert 0 < len(unseen) <= MOST_OTHERS
        assert share == 0 or not np.isin(unseen, learned).any()
        assert all((np.diff(index) >= 0).all() for index in (learned, unseen))


@pytest.mark.parametrize(
    ("learner", "params", "said"),
    [
        ("scarce", {"unseen": 1}, "'unseen' must be a share from 0 to below 1; it is 1. Mend candidates.params"),
        ("scarce", {"unseen": float("nan")}, "'unseen' must be a share"),
        ("scarce", {"share": 1.5}, "'share' must be a share from 0 to 1; it is 1.5"),
        ("scarce", {"hand_over": -1}, "'hand_over' must be a number, 0 or more"),
        ("scarce", {"trees": 0.5}, "'trees' must be a whole number above 0"),
        ("xgboost", {"rounds": 0}, "'rounds' must be a whole number above 0; it is 0"),
        ("xgboost", {"rounds": "many"}, "'rounds' must be a whole number above 0; it is 'many'"),
        ("mlp", {"epochs": True}, "'epochs' must be a whole number above 0; it is True"),
        ("detectors", {"knn": {"k": 0}}, "knn parameter 'k' must be a whole number above 0"),
        ("detectors", {"members": ["gmm"], "gmm": {"parts": []}}, "'parts' must be a list of whole numbers above 0"),
        ("detectors", {"lof": {"k": 9}}, "Set candidates.params.members to [ecod, knn, dte, lof]"),
        ("detectors", {"members": []}, "no detector is named. Set candidates.params.members to some of: autoencoder"),
    ],
)
def test_a_parameter_of_ours_that_is_out_of_range_is_one_line_before_anything_is_fitted(learner, params, said):
    with pytest.raises(ConfigError) as refused:
        fit(learner, FitTask(KNOWN), params)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
