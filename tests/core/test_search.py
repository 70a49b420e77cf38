import json

import numpy as np
import pytest
from rows_for_learning import make_rows

from rareclass.config import SearchSettings
from rareclass.core.candidates import Candidate
from rareclass.core.search import (
    FoldWork,
    GroupBudget,
    leaders,
    precision,
    record,
    replayed,
    train_group,
    tune_hyperparameters,
)
from rareclass.core.selection import SelectionRules, select
from rareclass.core.splitting import stratified_folds
from rareclass.core.training import Effort, Trained, refit, train_candidate

ROWS = make_rows(500)
FOLDS = stratified_folds(ROWS.y, ROWS.row_id, folds=2)
WORK = FoldWork(ROWS, FOLDS, 0)
ZERO = Candidate("xgboost", "xgboost", {"rounds": 40})
LINEAR = Candidate("linear", "logistic_regression")
FOREST = Candidate("forest", "random_forest", {"n_estimators": 20})


class Clock:
    """A clock that advances by itself, one second per look."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


def group(candidates, *, seconds=1e9, clock=None, planned=None, **search):
    budget = GroupBudget(seconds, clock or Clock(), planned=planned)
    return train_group(candidates, WORK, SearchSettings(**search), budget)


def test_all_candidates_are_fitted_in_their_order_while_there_is_time():
    found = group([ZERO, LINEAR, FOREST], tune=False)
    assert [one.candidate.name for one in found] == ["xgboost", "linear", "forest"]
    assert all(one.complete for one in found)


def test_candidate_0_is_finished_however_little_time_there_is():
    found = group([ZERO, LINEAR, FOREST], seconds=0.001)
    assert [one.candidate.name for one in found] == ["xgboost"]
    assert found[0].complete


def test_a_candidate_0_for_short_times_has_all_the_time_and_the_unhurried_one_half_of_it():
    hurried = {"eta": 0.05, "rounds": 800, "patience": 40}  # what rows as few are fitted with anyway
    grown = [
        group([Candidate("xgboost", "xgboost", params), LINEAR], seconds=20, tune=False)[0] for params in ({}, hurried)
    ]
    half, whole = (one.candidate.params["rounds"] for one in grown)
    assert whole >= 1.6 * half > 0
    assert all(one.complete for one in grown)


def test_with_trials_the_clock_is_not_asked_and_the_rest_goes_to_the_search():
    found = group([ZERO, LINEAR], seconds=0.001, trials=4)
    assert [one.candidate.name for one in found] == ["xgboost", "linear", "xgboost tuned 1", "xgboost tuned 2"]
    assert all(one.complete for one in found)
    assert len(group([ZERO, LINEAR], seconds=0.001, trials=4, planned=4)) == 2, "other groups have the other trials"


def test_the_search_ends_when_the_time_is_out_and_keeps_finished_trials_only():
    base = train_candidate(ZERO, ROWS, FOLDS, seed=0)
    clock = Clock()
    found = tune_hyperparameters([base], WORK, Effort(out_of_time=lambda: clock() > 200, clock=clock))
    assert 0 < len(found) < 40
    assert all(one.complete for one in found)


def test_the_search_is_the_same_every_time():
    base = train_candidate(ZERO, ROWS, FOLDS, seed=0)
    runs = [tune_hyperparameters([base], WORK, Effort(clock=Clock()), trials=3) for _ in range(2)]
    assert [one.candidate for one in runs[0]] == [one.candidate for one in runs[1]]
    assert runs[0][0].candidate.params != runs[0][1].candidate.params
    np.testing.assert_array_equal(runs[0][2].oof, runs[1][2].oof)


def test_the_ratio_of_sampling_is_searched_with_the_other_settings():
    base = train_candidate(ZERO, ROWS, FOLDS, seed=0)
    natural = (len(ROWS) - ROWS.positives) / ROWS.positives
    assert natural > 4
    found = tune_hyperparameters([base], WORK, Effort(clock=Clock()), trials=12)
    ratios = {one.candidate.resample[0].ratio for one in found if one.candidate.resample}
    assert len(ratios) > 3
    assert all(1 <= ratio <= natural for ratio in ratios)
    assert any(not one.candidate.resample for one in found), "and leaving the rows as they are is among them"
    assert {tuple(one.candidate.params) for one in found} == {tuple(found[0].candidate.params)}
    for one in found:
        assert 0.5 < one.oof.mean() / ROWS.prevalence < 2, "corrected, however many negatives a fit saw"


def test_a_run_repeated_from_its_record_gives_the_same_model():
    clock = Clock()
    first = group([ZERO, LINEAR, FOREST], seconds=700, clock=clock)
    assert len(first) > 3, "the search had time for some trials"
    written = json.loads(json.dumps(record(first)))
    again = group(replayed(written), seconds=0.001, replay="trials.json")
    finished = [one for one in first if one.complete]
    assert [one.trial()["rounds"] for one in again] == [one.trial()["rounds"] for one in finished]
    scores = []
    for trained in (finished, again):
        chosen = select(trained, ROWS, SelectionRules(), seed=0)
        scores.append(refit(trained, chosen.weights, ROWS, seed=0).score(ROWS.x))
    np.testing.assert_array_equal(scores[0], scores[1])


def test_nothing_is_searched_without_a_finished_xgboost():
    base = train_candidate(LINEAR, ROWS, FOLDS, seed=0)
    assert tune_hyperparameters([base], WORK, Effort(clock=Clock()), trials=3) == []


def test_leaders_are_candidate_0_and_the_best_in_the_order_they_were_fitted():
    trained = group([ZERO, LINEAR, FOREST], tune=False)
    worst = min(trained[1:], key=lambda one: precision(one, ROWS))
    kept = leaders(trained, ROWS, 2)
    assert kept[0] is trained[0]
    assert worst not in kept


@pytest.mark.parametrize("tune", [True, False])
def test_groups_of_resampled_rows_are_not_searched(tune):
    under = Candidate.from_json(
        {**LINEAR.to_json(), "name": "under", "resample": [{"name": "random_under", "ratio": 2.0}]}
    )
    assert len(group([under], tune=tune)) == 1


def test_leaders_keep_the_best_of_every_learner():
    rng = np.random.default_rng(0)

    def made(name, learner, noise):
        oof = 1 / (1 + np.exp(-(2.0 * ROWS.y - 3 + noise * rng.normal(size=len(ROWS)))))
        return Trained(Candidate(name, learner), oof, complete=True)

    many = [made(f"xgboost {i}", "xgboost", 0.5) for i in range(8)]
    linear, worse = made("linear", "logistic_regression", 5.0), made("linear too", "logistic_regression", 20.0)
    kept = leaders([*many, linear, worse], ROWS, 5)
    assert len(kept) == 5
    assert kept[0] is many[0]
    assert linear in kept
    assert worse not in kept
