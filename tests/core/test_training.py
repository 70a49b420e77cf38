import dataclasses

import numpy as np
import pytest
from rows_for_learning import make_rows
from sklearn.metrics import average_precision_score

from rareclass.config import CostsSettings, ResampleStep, SplitSettings
from rareclass.core import learners, training
from rareclass.core.candidates import Candidate
from rareclass.core.costs import CostArrays, cost_arrays
from rareclass.core.fit_task import FitTask
from rareclass.core.log_odds import logit
from rareclass.core.splitting import Fold, development, stratified_folds
from rareclass.core.training import (
    Effort,
    combine,
    refit,
    resample_folds,
    sampling_factor,
    scaled_rounds,
    train_candidate,
)
from rareclass.errors import DataError

ROWS = make_rows(900)
FOLDS = stratified_folds(ROWS.y, ROWS.row_id, folds=3)
PLAIN = Candidate("xgboost", "xgboost", {"rounds": 60})
UNDER = Candidate("under", "xgboost", {"rounds": 60}, resample=(ResampleStep(name="random_under", ratio=3),))
SMOTE = Candidate("smote", "logistic_regression", resample=(ResampleStep(name="smote", ratio=2),))


@pytest.fixture(scope="module")
def plain():
    return train_candidate(PLAIN, ROWS, FOLDS, seed=0)


def test_every_row_is_scored_by_a_model_that_has_not_seen_it(plain):
    assert plain.complete
    assert plain.scored.all()
    assert len(plain.rounds) == plain.folds_done == 3
    assert average_precision_score(ROWS.y, plain.oof) > 2 * ROWS.prevalence
    noise = dataclasses.replace(ROWS, y=np.random.default_rng(1).permutation(ROWS.y))
    blind = train_candidate(PLAIN, noise, FOLDS, seed=0)
    assert average_precision_score(noise.y, blind.oof) < 2 * noise.prevalence, (
        "labels without a pattern cannot be ranked"
    )


def test_scored_labels_have_no_influence_on_their_own_scores_but_for_rounds_and_prevalence(plain):
    fold = FOLDS[0]
    assert set(plain.rounds) == {60}, "all that the settings allow, whatever the labels"
    flipped = ROWS.y.copy()
    flipped[fold.score] = 1 - flipped[fold.score]
    again = train_candidate(PLAIN, dataclasses.replace(ROWS, y=flipped), FOLDS[:1], seed=0)
    flat = logit(again.oof[fold.score]) - training.prior_shift(dataclasses.replace(ROWS, y=flipped), fold)
    np.testing.assert_allclose(flat, logit(plain.oof[fold.score]) - training.prior_shift(ROWS, fold), atol=1e-6)
    assert not again.scored[FOLDS[1].score].any(), "rows of other folds stay without a score"


def test_repeats_are_averaged_in_log_odds():
    folds = [Fold(f.train, f.score, 0) for f in FOLDS] + [Fold(f.train, f.score, 1) for f in FOLDS]
    once = train_candidate(PLAIN, ROWS, folds[:3], seed=0)
    both = train_candidate(PLAIN, ROWS, folds, seed=0)
    assert both.folds_done == 6
    assert np.corrcoef(logit(both.oof), logit(once.oof))[0, 1] > 0.8
    assert not np.allclose(both.oof, once.oof), "the second repeat is fitted with seeds of its own"


@pytest.mark.parametrize(
    "candidate",
    [
        UNDER,
        dataclasses.replace(PLAIN, weighting="balanced"),
        Candidate("brf", "balanced_random_forest", {"n_estimators": 60}),
    ],
    ids=["under-sampled", "weighted", "balanced forest"],
)
def test_exact_prior_shifts_are_undone(candidate):
    done = train_candidate(candidate, ROWS, FOLDS, seed=0)
    assert done.negative_sampling_rate < 0.6
    assert 0.4 < done.oof.mean() / ROWS.prevalence < 1.7


def test_synthetic_rows_are_brought_near_and_votes_that_are_no_probabilities_are_left_to_the_calibrator():
    smote = train_candidate(SMOTE, ROWS, FOLDS, seed=0)
    assert smote.negative_sampling_rate == pytest.approx(2 * ROWS.prevalence / (1 - ROWS.prevalence), rel=0.01)
    assert 0.5 < smote.oof.mean() / ROWS.prevalence < 2
    votes = Candidate("bag", "easy_ensemble", {"n_estimators": 2})
    assert np.isnan(train_candidate(votes, ROWS, FOLDS, seed=0).negative_sampling_rate)


def test_resampling_sees_training_rows_of_its_own_fold_only():
    made = resample_folds(UNDER.resample, ROWS, FOLDS, seed=0)
    assert set(np.unique(made.fold)) == set(range(3))
    for k, fold in enumerate(FOLDS):
        assert set(made.row_id[made.fold == k].tolist()) <= set(ROWS.row_id[fold.train].tolist())


def test_rows_resampled_elsewhere_give_the_same_scores():
    here = train_candidate(UNDER, ROWS, FOLDS, seed=0)
    made = resample_folds(UNDER.resample, ROWS, FOLDS, seed=0)
    np.testing.assert_array_equal(train_candidate(UNDER, ROWS, FOLDS, seed=0, resampled=made).oof, here.oof)


def test_the_sampling_factor_is_the_share_of_negatives_kept():
    after = ROWS.take(np.concatenate([np.flatnonzero(ROWS.y), np.flatnonzero(ROWS.y == 0)[::4]]))
    assert sampling_factor(ROWS, after) == pytest.approx(0.25, rel=0.02)
    assert sampling_factor(ROWS, ROWS) == 1.0
    with pytest.raises(DataError, match=r"no positive is left to train on\. Mend train\.filter"):
        sampling_factor(ROWS, ROWS.take(ROWS.y == 0))


def test_time_ordered_rows_are_scored_forward():
    rows = make_rows(1200, hours=True)
    dev, folds = development(rows.take(slice(0, 900)), rows.take(slice(900, None)), SplitSettings(windows=2))
    done = train_candidate(PLAIN, dev, folds, seed=0)
    assert done.complete
    np.testing.assert_array_equal(np.flatnonzero(done.scored), np.concatenate([fold.score for fold in folds]))


def test_windows_scored_by_fits_that_knew_the_class_rarer_are_lifted_to_the_prevalence_of_all_rows():
    rows = make_rows(1200, hours=True)
    hit = np.flatnonzero(rows.y == 1)
    keep = np.setdiff1d(np.arange(len(rows)), hit[(hit < 600) & (hit % 3 > 0)])  # rare at first, common later
    dev, folds = development(rows.take(keep[:-300]), rows.take(keep[-300:]), SplitSettings(windows=1))
    shift = training.prior_shift(dev, folds[0])
    assert shift > 0.1
    linear = Candidate("lr", "logistic_regression")
    done = train_candidate(linear, dev, folds, seed=0)
    plain = learners.fit("logistic_regression", FitTask(dev.take(folds[0].train), seed=0)).score(dev.x[folds[0].score])
    np.testing.assert_allclose(logit(done.oof[folds[0].score]), logit(plain) + shift, atol=1e-6)


@pytest.mark.parametrize(
    "candidate",
    [
        Candidate("xgboost", "xgboost", {"rounds": 400, "patience": 20}),
        Candidate("histogram", "hist_gradient_boosting"),
        Candidate("mlp", "mlp", {"epochs": 12}),
    ],
    ids=lambda each: each.learner,
)
def test_folds_that_grow_stop_together_where_all_scored_rows_are_ranked_best(candidate):
    done = train_candidate(candidate, ROWS, FOLDS, seed=0)
    assert len(set(done.rounds)) == 1
    by_round = {point["round"]: point for point in done.trace}
    chosen = by_round[done.rounds[0]]
    assert chosen["ap"] == pytest.approx(average_precision_score(ROWS.y, done.oof), abs=1e-6)
    assert chosen["ap"] > max(point["ap"] for point in done.trace) - 0.05
    assert list(by_round) == sorted(by_round)


def test_a_fit_that_grows_is_kept_as_far_as_it_came_when_it_may_be_cut():
    looks = iter([False] * 8 + [True] * 1000)
    short = train_candidate(PLAIN, ROWS, FOLDS, seed=0, effort=Effort(out_of_time=looks.__next__, cut=True))
    assert short.complete
    assert set(short.rounds) == {20}, "three folds, looked at before each step of ten rounds"
    again = train_candidate(short.candidate, ROWS, FOLDS, seed=0)
    np.testing.assert_array_equal(again.oof, short.oof)
    looks = iter([False] * 8 + [True] * 1000)
    assert not train_candidate(PLAIN, ROWS, FOLDS, seed=0, effort=Effort(out_of_time=looks.__next__)).complete


def test_a_fit_that_has_its_least_rounds_when_time_is_out_is_kept_without_being_asked():
    quick = Candidate("quick", "xgboost", {"eta": 0.2, "rounds": 200})  # steps of two rounds, 4 / eta at least

    def after(steps):
        looks = iter([False] * (1 + steps * len(FOLDS)) + [True] * 1000)
        return train_candidate(quick, ROWS, FOLDS, seed=0, effort=Effort(out_of_time=looks.__next__))

    short = after(steps=10)
    assert short.complete
    assert set(short.rounds) == {20}
    np.testing.assert_array_equal(train_candidate(short.candidate, ROWS, FOLDS, seed=0).oof, short.oof)
    assert not after(steps=9).complete


@pytest.mark.parametrize("learner", ["xgboost", "hist_gradient_boosting"])
def test_folds_and_seeds_that_go_on_at_once_give_what_they_give_one_after_the_other(learner):
    candidate = Candidate("c", learner)
    alone, together = (
        train_candidate(candidate, ROWS, FOLDS, seed=0, effort=Effort(threads=threads)) for threads in (1, 3)
    )
    np.testing.assert_array_equal(alone.oof, together.oof)
    assert alone.rounds == together.rounds
    one, three = (refit([alone], {"c": 1.0}, ROWS, seed=0, threads=threads) for threads in (1, 3))
    np.testing.assert_array_equal(one.score(ROWS.x), three.score(ROWS.x))


def test_out_of_time_between_folds_leaves_an_incomplete_candidate():
    done = train_candidate(
        Candidate("lr", "logistic_regression"),
        ROWS,
        FOLDS,
        seed=0,
        effort=Effort(out_of_time=iter([False, True]).__next__),
    )
    assert (done.folds_done, done.complete) == (1, False)
    none = train_candidate(PLAIN, ROWS, FOLDS, seed=0, effort=Effort(out_of_time=lambda: True))
    assert (none.folds_done, none.complete) == (0, False)
    assert not none.scored.any()


@pytest.mark.parametrize("candidate", [PLAIN, Candidate("lr", "logistic_regression")], ids=["grows", "does not"])
def test_what_would_not_be_finished_is_given_up_after_its_first_part(candidate):
    seconds = iter(range(10_000))
    late = train_candidate(
        candidate, ROWS, FOLDS, seed=0, effort=Effort(clock=lambda: next(seconds), seconds_left=lambda: 0.5)
    )
    assert not late.complete
    assert late.folds_done <= 1
    done = train_candidate(
        candidate, ROWS, FOLDS, seed=0, effort=Effort(clock=lambda: next(seconds), seconds_left=lambda: 50.0)
    )
    assert done.complete


def test_seconds_come_from_the_clock_that_was_handed_in():
    ticks = iter([10.0, 17.5])
    done = train_candidate(
        Candidate("lr", "logistic_regression"), ROWS, FOLDS, seed=0, effort=Effort(clock=ticks.__next__)
    )
    assert done.fit_seconds == 7.5


def test_costs_weigh_the_rows_they_belong_to():
    with pytest.raises(DataError, match="costs by row"):
        train_candidate(PLAIN, ROWS, FOLDS, seed=0, costs=CostArrays(0.1 * ROWS.amount, 1.0))
    costs = cost_arrays(CostsSettings(amount_share=0.1, false_positive=1.0), ROWS.prevalence, ROWS.amount)
    done = train_candidate(dataclasses.replace(PLAIN, weighting="cost"), ROWS, FOLDS, seed=0, costs=costs)
    assert done.complete
    final = refit([done], {"xgboost": 1.0}, ROWS, seed=0)
    assert np.isfinite(final.score(ROWS.x)).all()


def test_rounds_grow_with_the_rows_but_not_without_bound():
    assert scaled_rounds([90, 100, 400], [800, 800, 800], 800) == 100
    assert scaled_rounds([100], [800], 968) == 110
    assert scaled_rounds([100], [800], 100_000) == 130
    assert scaled_rounds([100], [800], 10) == 100


def test_the_final_fit_averages_seeds_and_is_the_same_every_time(plain):
    first, again = (refit([plain], {"xgboost": 1.0}, ROWS, seed=0) for _ in range(2))
    assert len(first.members) == training.seeds_worth("xgboost", len(ROWS)) > 1
    np.testing.assert_array_equal(first.score(ROWS.x), again.score(ROWS.x))
    assert first.contributions(ROWS.x[:5]).shape == (5, 5)


def test_an_ensemble_scores_as_its_members_combined():
    candidates = [Candidate("forest", "random_forest", {"n_estimators": 20}), SMOTE]
    members = [train_candidate(each, ROWS, FOLDS, seed=0) for each in candidates]
    both = refit(members, {"forest": 0.7, "smote": 0.3}, ROWS, seed=0)
    alone = [refit([one], {one.candidate.name: 1.0}, ROWS, seed=0).score(ROWS.x) for one in members]
    np.testing.assert_allclose(both.score(ROWS.x), combine(alone, [0.7, 0.3]), rtol=1e-6)


def test_a_member_of_an_ensemble_takes_its_share_of_the_seeds(plain):
    linear = train_candidate(SMOTE, ROWS, FOLDS, seed=0)
    both = refit([plain, linear], {"xgboost": 0.4, "smote": 0.6}, ROWS, seed=0)
    assert len(both.members) == round(0.4 * training.seeds_worth("xgboost", len(ROWS))) + 1
    assert sum(member.weight for member in both.members) == pytest.approx(1.0)


def test_the_final_fit_keeps_the_settings_of_the_folds(plain):
    assert plain.params["eta"] == 0.05
    final = refit([plain], {"xgboost": 1.0}, ROWS, seed=0)
    assert {member.fitted.rounds for member in final.members} == {plain.rounds_for(len(ROWS))}


def test_a_fit_that_was_ended_while_it_still_got_better_has_the_rounds_that_it_was_judged_with():
    """More of them would stretch its scores beyond those that the calibrator knows: their mean left the prevalence."""
    short = train_candidate(Candidate("short", "xgboost", {"rounds": 20, "eta": 0.05}), ROWS, FOLDS, seed=0)
    assert set(short.rounds) == {20}
    assert short.rounds_for(10 * len(ROWS)) == 20
    long = dataclasses.replace(short, trace=(*short.trace, {"round": 30.0, "ap": 0.1, "loss": 9.0}))
    assert long.rounds_for(10 * len(ROWS)) == 26


def test_a_fold_without_positives_is_named():
    broken = Fold(np.flatnonzero(ROWS.y == 0), FOLDS[0].score)
    with pytest.raises(training.DataError, match="fold 0 trains on 0 positives"):
        train_candidate(PLAIN, ROWS, [broken], seed=0)


def test_many_rows_are_fitted_once_when_positives_are_plenty():
    assert training.seeds_worth("xgboost", 300_000, 7_000) == 1
    assert training.seeds_worth("xgboost", 300_000, 200) == 2
    assert training.seeds_worth("xgboost", 5_000, 2_000) == 3
    assert training.seeds_worth("extra_trees", 5_000, 200) == 1
