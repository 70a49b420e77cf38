"""How many rows of the rare class there are among rows without labels."""

from __future__ import annotations

import math

import numpy as np

from rareclass.core import calibration
from rareclass.core.bootstrap import DEFAULT_BOOTSTRAP, Bootstrap
from rareclass.core.dataset import FloatArray, IntArray
from rareclass.core.estimate import Estimate
from rareclass.core.log_odds import OPEN, logit

MIN_POSITIVES = 20
"""Labelled positives of the served version without which its scores cannot be read as probabilities."""
DRAWS = 60


def prevalence(
    score: FloatArray,
    y: IntArray,
    labelled: FloatArray,
    weight: FloatArray | None = None,
    *,
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP,
) -> Estimate | None:
    """Estimate the prevalence of rows without labels; None where it cannot be known.

    score : (n,) deployed scores of the rows;  y, labelled : (m,) matured labels and deployed scores of the same version
    weight : (m,) inverse-propensity and sampling weights
    bootstrap : confidence and seed of the interval; its resamples are ``DRAWS``

    The calibrator of a version was fitted on scores of other models (its folds'), and an estimate from scores alone
    multiplies what that leaves. So the scores are first lined up with labels of the version itself, and the interval
    covers both samples. What is assumed is that only the prevalence changed since. None with fewer than
    ``MIN_POSITIVES`` labelled positives, or when less than one positive is expected among the rows.
    """
    if len(score) == 0 or y.sum() < MIN_POSITIVES or y.all():
        return None
    mass = np.ones(len(y)) if weight is None else weight.astype(np.float64)
    z, truth, mass, _ = calibration._pooled(logit(labelled, within=OPEN), y, mass, np.zeros(len(y), dtype=np.int64))
    seed = bootstrap.seed
    rng = np.random.default_rng(seed)
    estimated, draws = math.nan, []
    for number in range(DRAWS + 1):
        drawn = mass if number == 0 else rng.gamma(np.maximum(mass, 1e-9))
        line = calibration.METHODS["platt"](z, truth, drawn, 0.0)
        share = float((drawn * truth).sum() / drawn.sum())
        estimate = calibration.label_shift_em(line(score), share, n_boot=1, seed=seed + number)
        if number == 0:
            estimated = estimate.value
        else:
            draws.append(estimate.low)  # of one resample of the rows
    if estimated * len(score) < 1:
        return None
    low, high = np.quantile(draws, bootstrap.levels)
    return Estimate(
        estimated, float(min(low, estimated)), float(max(high, estimated)), round(estimated * len(score)), len(score)
    )
