"""Scores mean what they say whatever training was kept from, and what is served is what was judged."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from rareclass.adapters.tables import Ingested
from rareclass.config import CandidateSpec, Config, ResampleStep, parse
from rareclass.core import calibration, costs, selection, splitting, training
from rareclass.core.bootstrap import Sample
from rareclass.core.candidates import Candidate, default_name
from rareclass.core.dataset import Feature, Rows, Schema, concatenate
from rareclass.core.learners import LEARNERS
from rareclass.services.training import steps

SCHEMA = Schema(tuple(Feature(f"x{i}") for i in range(4)))
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def drawn(n: int, seed: int) -> Rows:
    """Independent rows of a pattern that a straight line can learn, 16 % of them positive."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4)).astype(np.float32)
    y = (rng.random(n) < 1 / (1 + np.exp(2.2 - 1.2 * x[:, 0] - 0.5 * x[:, 1]))).astype(np.int64)
    when = (np.datetime64("2025-01-01", "us") + (np.arange(n) * 3_600_000_000).astype("timedelta64[us]")).astype(
        "datetime64[us]"
    )
    return Rows(
        SCHEMA,
        x,
        y,
        rng.integers(0, 2**63, n).astype(np.uint64),
        time=when,
        entity=(np.arange(n) // 2).astype(np.uint64),
        amount=rng.lognormal(1, 0.7, n),
    )


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other take longer than rows as few as these."""
    with threadpool_limits(1):
        yield


KNOWN, FRESH = drawn(2600, 1), drawn(20_000, 2)

KEPT = {
    "every row": lambda rows: None,
    "a tenth of the negatives": lambda rows: (rows.y == 1) | (rows.row_id % 10 == 0),
    "half of the positives": lambda rows: (rows.y == 0) | (rows.row_id % 2 == 0),
    "negatives of one side": lambda rows: (rows.y == 1) | (rows.x[:, 0] > -0.5),
    "no outlying negatives": lambda rows: (rows.y == 1) | (rows.x[:, 1] < np.quantile(rows.x[rows.y == 0, 1], 0.9)),
}
WEIGHTED = {
    "none": {},
    "balanced": {},
    "sqrt_balanced": {},
    "amount": {},
    "cost": {"false_negative": 20.0, "false_positive": 1.0},
    "cost by amount": {"amount_share": 5.0, "false_positive": 1.0},
}
CHAINS = {
    "under": [{"name": "random_under", "ratio": 2}], "over": [{"name": "random_over", "ratio": 1}],
    "smote": [{"name": "smote", "ratio": 2}], "enn": [{"name": "enn"}], "tomek": [{"name": "tomek"}],
    "nearmiss": [{"name": "nearmiss", "ratio": 2}],
    "under, then smote": [{"name": "random_under", "ratio": 4}, {"name": "smote", "ratio": 1}],
}  # fmt: skip
LINE = {"learner": "logistic_regression"}


def configuration(kind: str = "stratified", refit: str = "all", **sections: object) -> Config:
    return parse(
        {
            "name": "recipe",
            "data": {
                "path": "memory",
                "target": "y",
                "label_delay": "2d",
                "time": "time",
                "entity": "entity",
                "amount": "amount",
            },
            "split": {"kind": kind, "folds": 3, "windows": 2},
            "train": {"refit": refit},
            "evaluate": {"bootstraps": 50},
            "threshold": {"objective": "f1"},
            "compute": {"threads": 1},
            **sections,
        }
    )


def history(config: Config, keep: str) -> Ingested:
    rows = dataclasses.replace(KNOWN, keep=KEPT[keep](KNOWN))
    parts = splitting.split(
        y=rows.y,
        row_id=rows.row_id,
        time=rows.time,
        entity=rows.entity,
        config=config.split,
        label_delay=config.data.label_delay,
    )
    used = np.concatenate([parts.train, parts.validation, parts.test])
    rest = rows.take(np.setdiff1d(np.arange(len(rows)), used))
    named = (rows.take(part) for part in (parts.train, parts.validation, parts.test))
    return Ingested(*named, SCHEMA, {"content_hash": ""}, [], 1, rest=rest if len(rest) else None)


class Trained:
    """A recipe from its folds to its judgement, as a run takes it there; served once or twice."""

    def __init__(self, config: Config, keep: str, candidate: Candidate, folds: int = 0) -> None:
        self.config, self.ingested = config, history(config, keep)
        self.dev, every = steps.development(config, self.ingested.train, self.ingested.validation)
        folds = every[-folds:]
        money = costs.cost_arrays(config.costs, self.dev.prevalence, self.dev.amount)
        self.trained = [training.train_candidate(candidate, self.dev, folds, seed=0, costs=money)]
        self.chosen = selection.select(self.trained, self.dev, steps.selection_rules(config), seed=0)
        self.tuning = steps.tune_threshold(config, self.dev, self.chosen)
        self.recipe = steps.Recipe(self.trained, self.chosen, self.tuning)
        self.judged = steps.evaluate(config, self.dev, self.ingested.test, self.recipe)

    def served(self, refit: str):
        config = self.config.model_copy(update={"train": self.config.train.model_copy(update={"refit": refit})})
        return steps.refit(config, self.ingested, self.dev, self.recipe, self.judged, now=NOW)


def recipe(learner="logistic_regression", params=None, weighting="none", chain=()):
    spec = CandidateSpec(
        learner=learner, params=params or {}, weighting=weighting.removesuffix(" by amount"), resample=chain
    )
    made = Candidate.from_spec(spec)
    return dataclasses.replace(made, name=default_name(made))


def means_what_it_says(config: Config, keep: str, candidate: Candidate, within: float) -> None:
    """Fit, calibrate and fit again on all rows; rows never seen have a mean score near their prevalence both ways."""
    ingested = history(config, keep)
    dev, folds = steps.development(config, ingested.train, ingested.validation)
    money = costs.cost_arrays(config.costs, dev.prevalence, dev.amount)
    one = training.train_candidate(candidate, dev, folds, seed=0, costs=money)
    calibrator = calibration.fit(Sample(dev.y[one.scored], one.oof[one.scored])).calibrator
    for refit, rows in (("all", concatenate([dev, ingested.test])), ("none", dev)):
        score = calibrator(training.refit([one], {candidate.name: 0.3}, rows, seed=0).score(FRESH.x))
        ratio = score.mean() / FRESH.prevalence
        assert 1 - within < ratio < 1 + within, f"{keep}, {config.split.kind}, {candidate.name}, {refit}: {ratio:.2f}"


KINDS = ("stratified", "time", "grouped")


def pairs(first, second):
    """Every member of one with every member of the other, the kinds of split taking turns."""
    return [(a, b, KINDS[(i + j) % 3]) for i, a in enumerate(first) for j, b in enumerate(second)]


@pytest.mark.parametrize(("keep", "weighting", "kind"), pairs(KEPT, WEIGHTED))
def test_mean_score_is_the_prevalence_whatever_a_fit_is_kept_from_and_however_it_weighs(keep, weighting, kind):
    means_what_it_says(configuration(kind, costs=WEIGHTED[weighting]), keep, recipe(weighting=weighting), 0.2)


@pytest.mark.parametrize(
    ("chain", "keep", "kind"), pairs(CHAINS, ("every row", "a tenth of the negatives", "negatives of one side"))
)
def test_mean_score_is_the_prevalence_whatever_rows_are_drawn_or_made(chain, keep, kind):
    resample = tuple(ResampleStep.model_validate(each) for each in CHAINS[chain])
    means_what_it_says(configuration(kind), keep, recipe(chain=resample), 0.2)


FEW = {
    "lightgbm": {"rounds": 30, "num_leaves": 4, "learning_rate": 0.3},
    "catboost": {"rounds": 30, "depth": 2, "learning_rate": 0.3},
    "xgboost": {"rounds": 30, "max_depth": 2, "eta": 0.3},
    "random_forest": {"n_estimators": 10, "min_samples_leaf": 10},
    "balanced_random_forest": {"n_estimators": 10, "min_samples_leaf": 10},
    "extra_trees": {"n_estimators": 10, "min_samples_leaf": 10},
    "hist_gradient_boosting": {"max_iter": 12, "learning_rate": 0.3},
    "mlp": {"epochs": 12, "hidden_layer_sizes": 8, "batch_size": 64},
    "adaboost": {"n_estimators": 10},
    "rusboost": {"n_estimators": 20},
    "easy_ensemble": {"n_estimators": 1},
    "scarce": {"novelty": ["ecod"], "rounds": 60, "trees": 40},
}


@pytest.mark.parametrize(("learner", "weighting", "kind"), pairs(LEARNERS, ("none", "sqrt_balanced", "cost by amount")))
def test_mean_score_is_the_prevalence_with_every_learner(learner, weighting, kind):
    able = weighting if LEARNERS[learner].weighs else "none"
    config = configuration(kind, costs=WEIGHTED[able])
    means_what_it_says(config, "a tenth of the negatives", recipe(learner, FEW.get(learner), able), 0.35)


@pytest.mark.parametrize(("kind", "weighting"), [("stratified", "none"), ("time", "cost by amount")])
def test_without_a_refit_the_very_model_that_was_judged_is_served(kind, weighting):
    made = Trained(
        configuration(kind, costs=WEIGHTED[weighting]), "a tenth of the negatives", recipe(weighting=weighting)
    )
    for refit in ("none", "train"):
        np.testing.assert_array_equal(made.served(refit).score(made.ingested.test.x), made.judged.score)
    assert not np.allclose(made.served("all").score(made.ingested.test.x), made.judged.score)


def test_every_labelled_row_is_part_of_the_final_fit_those_in_the_gaps_too():
    made = Trained(configuration("time"), "every row", recipe())
    assert len(made.ingested.rest) > 90
    assert made.served("all").meta["trained"]["rows"] == len(KNOWN)
    assert made.served("none").meta["trained"]["rows"] == made.served("train").meta["trained"]["rows"] == len(made.dev)
    part = Trained(configuration("time"), "a tenth of the negatives", recipe())
    assert part.served("all").meta["trained"]["rows"] == KEPT["a tenth of the negatives"](KNOWN).sum()


@pytest.mark.parametrize(
    ("kind", "folds"), [("stratified", 0), ("grouped", 0), ("time", 0), ("stratified", 1), ("grouped", 2)]
)
def test_the_alerts_of_a_day_are_those_on_all_rows_of_the_day(kind, folds):
    config = configuration(kind, threshold={"objective": "alerts_per_day", "max_alerts_per_day": 3})
    made = Trained(config, "every row", recipe(), folds)  # as few as are affordable, or all
    flagged = made.served("none").score(FRESH.x) >= made.tuning.thresholds["default"]
    a_day = 24 * flagged.mean()  # a row an hour
    room = 1.3 if kind == "time" else 1.15  # forward in time a quarter of the rows is all there is to count by
    assert 3 / room < a_day < 3 * room, f"asked for 3, got {a_day:.2f}"


def test_the_fits_of_a_replay_stand_in_the_order_of_the_record_whatever_group_they_are_in(tmp_path):
    under = recipe(chain=(ResampleStep(name="random_under", ratio=3),))
    plain = [dataclasses.replace(recipe(), name=name) for name in ("first", "last")]
    fits = [training.Trained(each, np.empty(0)) for each in (plain[0], under, plain[1])]
    (tmp_path / "trials.json").write_text(json.dumps({"trials": [{**one.trial(), "complete": True} for one in fits]}))
    config = configuration(search={"replay": str(tmp_path / "trials.json")})
    assert steps.as_recorded(config, [fits[0], fits[2], fits[1]]) == fits
    assert steps.as_recorded(configuration(), [fits[2], fits[0]]) == [fits[2], fits[0]]


def test_a_replay_has_the_folds_of_the_record_however_much_time_it_is_given(tmp_path):
    ingested = history(configuration(), "every row")
    _, every = steps.development(configuration(), ingested.train, ingested.validation)
    assert len(every) == 3
    steps._recording.cache_clear()
    for folds_done, kept in ((1, every[-1:]), (3, every), (0, every)):
        fit = training.Trained(recipe(), np.empty(0), folds_done=folds_done, complete=True)
        (tmp_path / "trials.json").write_text(json.dumps({"trials": [fit.trial()]}))
        config = configuration(search={"replay": str(tmp_path / "trials.json"), "seconds": 0.001})
        _, folds = steps.development(config, ingested.train, ingested.validation)
        said = steps.detect_imbalance(config, ingested.train, ingested.validation).diagnosis.notes
        assert ("candidates are judged on 1 of 3 folds, as many as search.seconds allows" in said) == (len(kept) == 1)
        assert len(folds) == len(kept)
        assert all(np.array_equal(one.score, other.score) for one, other in zip(folds, kept, strict=True))
        assert [one.candidate for one in steps.as_recorded(config, [fit])] == [fit.candidate]
    assert steps._recording.cache_info().misses == 3, "each record was read once, for folds, plan and order"
