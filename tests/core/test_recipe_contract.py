"""The contract of a recipe: what is fitted on all rows is what was judged on the folds, for every recipe that is
allowed.
"""

from __future__ import annotations

import dataclasses
import itertools
from datetime import timedelta

import numpy as np
import pytest
from rows_for_learning import make_rows
from threadpoolctl import threadpool_limits

from rareclass.config import CostsSettings, ResampleStep, SplitSettings
from rareclass.core.candidates import Candidate, default_name
from rareclass.core.costs import cost_arrays
from rareclass.core.dataset import concatenate
from rareclass.core.learners import LEARNERS
from rareclass.core.log_odds import logit
from rareclass.core.planning import check_recipe
from rareclass.core.resampling import RESAMPLERS
from rareclass.core.splitting import Fold, development, split
from rareclass.core.training import prior_shift, refit, train_candidate
from rareclass.core.weighting import WEIGHTINGS
from rareclass.errors import ConfigError

TINY = {
    "xgboost": {"rounds": 2, "max_depth": 2, "patience": 2},
    "lightgbm": {"rounds": 2, "num_leaves": 4, "patience": 2, "min_data_in_leaf": 2},
    "catboost": {"rounds": 2, "depth": 2, "patience": 2},
    "random_forest": {"n_estimators": 2, "max_depth": 3},
    "balanced_random_forest": {"n_estimators": 2, "max_depth": 3},
    "extra_trees": {"n_estimators": 2, "max_depth": 3},
    "hist_gradient_boosting": {"max_iter": 2, "max_leaf_nodes": 4},
    "logistic_regression": {"max_iter": 20},
    "mlp": {"hidden_layer_sizes": 2, "epochs": 3, "batch_size": 32},
    "adaboost": {"n_estimators": 2},
    "rusboost": {"n_estimators": 2},
    "scarce": {"novelty": ["ecod"], "rounds": 2, "trees": 2},
    "detectors": {"members": ["ecod"]},
    "easy_ensemble": {"n_estimators": 1},
}
COSTS = {
    "cost by amount": CostsSettings(amount_share=0.5, false_positive=2.0),
    "cost": CostsSettings(false_negative=9.0, false_positive=2.0),
}


def halves():
    """Rows to fit and rows to score, both of the same prevalence, some of them kept from every fit."""
    rows = make_rows(400, shift=-1.0, seed=3)
    positive, negative = np.flatnonzero(rows.y == 1)[:48], np.flatnonzero(rows.y == 0)[:120]
    rows = rows.take(np.sort(np.concatenate([positive, negative])))
    first = np.zeros(len(rows), dtype=bool)
    for label in (0, 1):
        first[np.flatnonzero(rows.y == label)[::2]] = True
    keep = (rows.y == 1) | (np.random.default_rng(0).random(len(rows)) < 0.8)
    return rows.take(first), dataclasses.replace(rows.take(~first), keep=None), keep[first]


FIT, SCORED, KEEP = halves()


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other take longer than rows as few as these."""
    with threadpool_limits(1):
        yield


def chain(name):
    ratio = {"random_under": 1.5, "smote_enn": 1.5, "smote_tomek": 1.5}.get(
        name, None if name in ("tomek", "enn") else 1.2
    )
    return () if name == "none" else (ResampleStep(name=name, ratio=ratio),)


def recipes():
    for learner, loss in itertools.product(LEARNERS, ("logistic", "focal")):
        for weighting, resampler in itertools.product([*WEIGHTINGS, "cost by amount"], RESAMPLERS):
            name = weighting.removesuffix(" by amount")
            made = Candidate("", learner, TINY[learner], chain(resampler), name, loss)
            yield weighting, dataclasses.replace(made, name=default_name(made))


def allowed(candidate):
    try:
        check_recipe(candidate)
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("learner", LEARNERS)
def test_the_final_fit_is_the_recipe_that_was_judged_to_the_digit(learner):
    tried = 0
    for weighting, candidate in recipes():
        if candidate.learner != learner or not allowed(candidate):
            continue
        for keep in (KEEP,) if candidate.resample else (None, KEEP):
            fit = dataclasses.replace(FIT, keep=keep)
            dev = concatenate([fit, SCORED])
            fold = Fold(np.arange(len(fit)), np.arange(len(fit), len(dev)))
            costs = cost_arrays(COSTS.get(weighting, COSTS["cost"]), dev.prevalence, dev.amount)
            judged = train_candidate(candidate, dev, [fold], seed=5, costs=costs)
            final = refit([judged], {candidate.name: 0.3}, fit, seed=5)  # a share of the seeds: one
            assert len(final.members) == 1
            np.testing.assert_allclose(
                logit(final.score(SCORED.x)),
                logit(judged.oof[fold.score]),
                atol=1e-9,
                err_msg=f"{candidate.name}, {weighting}",
            )
            member = final.members[0]
            np.testing.assert_allclose(member.negative_sampling_rate, judged.negative_sampling_rate, rtol=1e-12)
            tried += 1
    weightings = len(WEIGHTINGS) + 1 if LEARNERS[learner].weighs else 1
    assert tried == weightings * (len(RESAMPLERS) + 1) * (2 if learner == "xgboost" else 1), "every one that is allowed"


@pytest.mark.parametrize("weighting", [each for each in WEIGHTINGS if each != "none"])
@pytest.mark.parametrize("learner", LEARNERS)
def test_a_weighting_is_honoured_or_refused(learner, weighting):
    candidate = Candidate("c", learner, TINY[learner], weighting=weighting)
    fold = Fold(np.arange(len(FIT)), np.arange(len(FIT), len(FIT) + len(SCORED)))
    dev, costs = concatenate([FIT, SCORED]), cost_arrays(COSTS["cost"], FIT.prevalence)
    if not LEARNERS[learner].weighs:
        for use in (check_recipe, lambda each: train_candidate(each, dev, [fold], seed=0)):
            with pytest.raises(ConfigError, match=r"would ignore weighting .* Set weighting: none"):
                use(candidate)
        return
    weighted, plain = (
        train_candidate(each, dev, [fold], seed=0, costs=costs).oof[fold.score]
        for each in (candidate, dataclasses.replace(candidate, weighting="none"))
    )
    assert not np.allclose(weighted, plain)


@pytest.mark.parametrize("learner", LEARNERS)
def test_inverse_propensity_weights_change_every_learner(learner):
    heavy = np.where(FIT.x[:, 0] > 0, 5.0, 1.0)
    candidate = Candidate("c", learner, TINY[learner])
    fold = Fold(np.arange(len(FIT)), np.arange(len(FIT), len(FIT) + len(SCORED)))
    scores = []
    for weight in (np.ones(len(FIT)), heavy):
        parts = [dataclasses.replace(FIT, weight=weight), dataclasses.replace(SCORED, weight=np.ones(len(SCORED)))]
        scores.append(train_candidate(candidate, concatenate(parts), [fold], seed=0).oof[fold.score])
    assert not np.allclose(*scores)


# --- every pair of choices, with every split and refit ----------------------------------------------------------------

FACTORS = ("learner", "weighting", "resampler", "loss", "filter", "split", "refit")
SPLITS, REFITS = ("stratified", "grouped", "time"), ("none", "all")


def combinations():
    """Every combination that is allowed, in the order of FACTORS."""
    for weighting, candidate in recipes():
        if allowed(candidate):
            resampler = candidate.resample[0].name if candidate.resample else "none"
            own = (candidate.learner, weighting, resampler, candidate.loss)
            yield from (own + rest for rest in itertools.product((False, True), SPLITS, REFITS))


def pairs_of(combination):
    """Pairs of choices that a combination tries; split and refit with every other one count as triples."""
    numbered = list(enumerate(combination))
    yield from itertools.combinations(numbered, 2)
    yield from ((each, (5, combination[5]), (6, combination[6])) for each in numbered[:5])


def covering():
    """As few combinations as a greedy choice among random ones needs to try every pair, with every split and refit."""
    every = list(combinations())
    rng = np.random.default_rng(0)
    left = {pair for each in every for pair in pairs_of(each)}
    chosen = []
    while left:
        drawn = [every[i] for i in rng.integers(0, len(every), 150)]
        best = max(drawn, key=lambda each: sum(pair in left for pair in pairs_of(each)))
        if left.isdisjoint(pairs_of(best)):  # what is left is seldom drawn
            wanted = min(left)
            best = next(each for each in every if wanted in set(pairs_of(each)))
        left -= set(pairs_of(best))
        chosen.append(best)
    return chosen


def labelled():
    """Rows with time, entity and amount; some of them in the gaps of a split by time."""
    rows = make_rows(700, shift=-1.0, seed=4, hours=True)
    rows = rows.take(np.sort(np.concatenate([np.flatnonzero(rows.y == label)[:n] for label, n in ((1, 90), (0, 210))])))
    keep = (rows.y == 1) | (np.random.default_rng(1).random(len(rows)) < 0.8)
    return dataclasses.replace(rows, entity=(np.arange(len(rows)) // 2).astype(np.uint64)), keep


LABELLED, KEPT = labelled()
FRESH = make_rows(60, shift=-1.0, seed=5, hours=True)


def of_split(kind, keep):
    """Development rows with one of their folds, and every labelled row, as a run has them."""
    rows = dataclasses.replace(LABELLED, keep=KEPT if keep else None)
    config, delay = SplitSettings(kind=kind, folds=2, windows=2), timedelta(hours=4)
    parts = split(y=rows.y, row_id=rows.row_id, time=rows.time, entity=rows.entity, config=config, label_delay=delay)
    dev, folds = development(rows.take(parts.train), rows.take(parts.validation), config, delay)
    return dev, folds[-1], rows


def agree(candidate, rows, fold, costs, what):
    """Fit a fold, and its rows as a final fit does: the same scores, but for the prevalence that the fold lacks."""
    judged = train_candidate(candidate, rows, [fold], seed=5, costs=costs)
    known = dataclasses.replace(judged, fitted_rows=(10**9,) * len(judged.fitted_rows))  # as many rounds, no more
    final = refit([known], {candidate.name: 0.3}, rows.take(fold.train), seed=5)
    shift = prior_shift(rows, fold) if np.isfinite(judged.negative_sampling_rate) else 0.0
    np.testing.assert_allclose(
        logit(final.score(rows.x[fold.score])) + shift, logit(judged.oof[fold.score]), atol=1e-9, err_msg=str(what)
    )
    member = final.members[0].negative_sampling_rate
    np.testing.assert_allclose(member, judged.negative_sampling_rate, rtol=1e-12, err_msg=str(what))


def test_what_is_judged_and_what_is_deployed_are_one_recipe_over_every_pair_and_every_split_with_every_refit():
    every, tried = {pair for each in combinations() for pair in pairs_of(each)}, covering()
    assert {pair for each in tried for pair in pairs_of(each)} == every
    assert {each[5:] for each in tried} == set(itertools.product(SPLITS, REFITS))
    for what in tried:
        learner, weighting, resampler, loss, keep, kind, again = what
        made = Candidate("", learner, TINY[learner], chain(resampler), weighting.removesuffix(" by amount"), loss)
        candidate = dataclasses.replace(made, name=default_name(made))
        dev, fold, everything = of_split(kind, keep)
        costs = cost_arrays(COSTS.get(weighting, COSTS["cost"]), dev.weighted_prevalence, dev.amount)
        agree(candidate, dev, fold, costs, what)
        # what is deployed: a fit of the development rows, or of every labelled row, those in the gaps too
        deployed = dev if again == "none" else everything
        fresh = dataclasses.replace(FRESH, entity=np.arange(len(FRESH)).astype(np.uint64), keep=None)
        whole = concatenate([deployed, fresh])
        last = Fold(np.arange(len(deployed)), np.arange(len(deployed), len(whole)))
        agree(candidate, whole, last, costs.rule().of(whole.amount), what)
