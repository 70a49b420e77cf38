"""A model goes live on unchanged data: nothing may look moved, whatever learner or blend it is."""

from __future__ import annotations

import numpy as np
import pytest
from rows_for_learning import fit, make_rows
from test_learners import QUICK

from rareclass.core import calibration, drift, unlabelled
from rareclass.core.learners import LEARNERS
from rareclass.core.profile import reference_profile, score_reference
from rareclass.core.training import Ensemble, Member

ROWS = make_rows(6000, seed=11, shift=-3.5)
TRAIN, LIVE = ROWS.take(np.arange(2400)), ROWS.take(np.arange(2400, 6000))
WEEK = 1200
TIME = np.datetime64("2024-05-01", "us") + (np.arange(len(LIVE)) * 504_000_000).astype("timedelta64[us]")  # three weeks


def learned(names: list[str], rows) -> Ensemble:
    members = [fit(name, rows, params=QUICK[name], seed=3) for name in names]
    return Ensemble(tuple(Member(one, 1 / len(names)) for one in members))


@pytest.mark.parametrize(
    "names", [[name] for name in LEARNERS] + [["xgboost", "extra_trees", "logistic_regression"]], ids="+".join
)
def test_scores_of_a_fresh_version_do_not_drift_and_their_prevalence_is_estimated_right(names):
    half = np.arange(len(TRAIN)) % 2
    held_out = np.empty(len(TRAIN))
    for fold in (0, 1):
        model = learned(names, TRAIN.take(np.flatnonzero(half != fold)))
        held_out[half == fold] = model.score(TRAIN.x[half == fold])
    calibrator = calibration.fit(TRAIN.y, held_out).calibrator
    score = np.asarray(calibrator(learned(names, TRAIN).score(LIVE.x)))
    reference = score_reference(score[:WEEK], TIME[:WEEK])
    profile = reference_profile(TRAIN, np.asarray(calibrator(held_out)), threshold=0.5)
    for week in (1, 2):
        part = slice(week * WEEK, (week + 1) * WEEK)
        report = drift.compare(profile, LIVE.x[part], score[part], answered=reference)
        assert not report.score.drifted, f"psi {report.score.psi:.3f}"
        assert not report.drifted
        assert not report.broken
    found = unlabelled.prevalence(score[2 * WEEK :], LIVE.y[: 2 * WEEK], score[: 2 * WEEK])
    truth = LIVE.y[2 * WEEK :].mean()
    assert found.low <= truth <= found.high
    assert found.high < 4 * truth


def test_a_prevalence_that_cannot_be_known_is_not_estimated():
    score = np.linspace(0.001, 0.2, 1000)
    few = np.zeros(1000, dtype=np.int64)
    few[-19:] = 1
    assert unlabelled.prevalence(score, few, score) is None
    many = np.zeros(1000, dtype=np.int64)
    many[-100:] = 1
    assert unlabelled.prevalence(np.full(1000, 1e-9), many, score) is None
    assert unlabelled.prevalence(score[:0], many, score) is None


def test_a_halved_prevalence_is_found_with_an_interval_that_covers_it():
    rng = np.random.default_rng(0)

    def rows(n: int, prevalence: float) -> tuple[np.ndarray, np.ndarray]:
        y = (rng.random(n) < prevalence).astype(np.int64)
        z = rng.normal(np.where(y == 1, 1.0, -1.0)) * 2 - 4  # off by an unknown line
        return y, 1 / (1 + np.exp(-z))

    y, labelled = rows(8000, 0.04)
    truth, score = rows(8000, 0.02)
    found = unlabelled.prevalence(score, y, labelled)
    assert found.low <= truth.mean() <= found.high
    assert found.high < 0.04
