"""The prevalence of rows without labels, from their scores."""

from __future__ import annotations

import numpy as np

from rareclass.core import unlabelled


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
