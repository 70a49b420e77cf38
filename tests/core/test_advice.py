"""Should one resample? Yes, no or not enough evidence, from the scores of held-out rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rareclass.config import ResampleStep
from rareclass.core.advice import NO, UNKNOWN, YES, should_resample
from rareclass.core.candidates import Candidate
from rareclass.core.dataset import Feature, Rows, Schema
from rareclass.core.ranking import average_precision
from rareclass.core.training import Trained

UNDER = (ResampleStep(name="random_under", ratio=5.0),)


def world(n: int = 6000) -> tuple[Rows, Any]:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=n)
    y = (rng.random(n) < 1 / (1 + np.exp(4 - 2 * truth))).astype(np.int64)
    rows = Rows(Schema((Feature("a"),)), truth[:, None].astype(np.float32), y, np.arange(n, dtype=np.uint64))

    def fitted(
        name: str, noise: float, chain: tuple[ResampleStep, ...] = (), learner: str = "xgboost", seed: int = 1
    ) -> Trained:
        z = truth + noise * np.random.default_rng(seed).normal(size=n)
        return Trained(Candidate(name, learner, resample=chain), 1 / (1 + np.exp(4 - 2 * z)), complete=True)

    return rows, fitted


def test_a_clear_gain_is_a_yes_with_the_difference_and_its_interval() -> None:
    rows, fitted = world()
    plain, better = fitted("xgboost", 1.5), fitted("under", 0.5, UNDER)
    advice = should_resample([plain, better], rows)
    assert advice.answer == YES
    assert advice.difference is not None
    assert advice.difference.value == pytest.approx(
        average_precision(rows.y, better.oof) - average_precision(rows.y, plain.oof)
    )
    assert advice.difference.low > 0
    assert advice.sentence.startswith("Should I resample? Yes: under differs from xgboost by +")
    assert f"{advice.difference.low:+.3f}" in advice.sentence


def test_a_clear_loss_and_a_gain_too_small_to_matter_are_a_no() -> None:
    rows, fitted = world()
    plain = fitted("xgboost", 0.5)
    assert should_resample([plain, fitted("under", 1.5, UNDER)], rows).answer == NO
    same = Trained(Candidate("under", "xgboost", resample=UNDER), plain.oof, complete=True)
    assert should_resample([plain, same], rows).answer == NO


def test_what_these_rows_cannot_tell_is_said_so() -> None:
    rows, fitted = world(700)
    advice = should_resample([fitted("xgboost", 1.0), fitted("under", 1.0, UNDER, seed=2)], rows)
    assert advice.answer == UNKNOWN
    assert "the interval holds both" in advice.sentence
    assert should_resample([fitted("xgboost", 1.0)], rows).answer == UNKNOWN
    assert should_resample([fitted("xgboost", 1.0)], rows).difference is None


def test_a_better_learner_is_no_merit_of_the_resampling() -> None:
    rows, fitted = world()
    zero = fitted("xgboost", 1.5)
    forest = fitted("forest", 0.5, learner="random_forest")
    resampled = Trained(Candidate("forest-under", "random_forest", resample=UNDER), forest.oof, complete=True)
    advice = should_resample([zero, forest, resampled], rows)
    assert (advice.answer, advice.against) == (NO, "forest")


def test_many_resampled_candidates_widen_the_interval() -> None:
    rows, fitted = world()
    plain, better = fitted("xgboost", 1.0), fitted("under", 0.9, UNDER)
    alone = should_resample([plain, better], rows)
    others = [fitted(f"other-{seed}", 2.0, UNDER, seed=seed) for seed in range(3, 12)]
    many = should_resample([plain, better, *others], rows)
    assert many.resampled == alone.resampled == "under"
    assert many.compared == 10
    assert alone.difference is not None
    assert many.difference is not None
    assert many.difference.high - many.difference.low > alone.difference.high - alone.difference.low
