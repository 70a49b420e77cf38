"""From probabilities to log-odds and back, finite at both ends."""

from __future__ import annotations

import numpy as np

from rareclass.core.dataset import FloatArray


def expit(z: FloatArray) -> FloatArray:
    """Return 1 / (1 + exp(-z)) without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -z)), dtype=np.float64)


def logit(p: FloatArray, *, margin: float = 1e-9) -> FloatArray:
    """Return log(p / (1 - p)), finite: probabilities nearer than ``margin`` to 0 or 1 are moved there."""
    q = np.clip(p, margin, 1 - margin)
    return np.asarray(np.log(q) - np.log1p(-q), dtype=np.float64)
