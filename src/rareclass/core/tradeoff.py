"""What every threshold would have cost and how many alerts it would have made, for the picture behind the one that is
used.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rareclass.core.bootstrap import Resamples, as_scores, interval
from rareclass.core.costs import CostArrays
from rareclass.core.dataset import FloatArray, IntArray

_POINTS = 120


def tradeoff(
    y: ArrayLike,
    score: ArrayLike,
    *,
    costs: CostArrays,
    resamples: Resamples,
    days: float | None = None,
    weight: ArrayLike | None = None,
    confidence: float = 0.95,
) -> dict[str, list[float | None]]:
    """Return cost with its interval, alerts (a day, where there is time), precision and recall at up to 120 thresholds.

    y, score : (n,) labels and deployed scores · days : length of the time in which all these rows came
    The thresholds are distinct scores, in even steps of the logarithm of the number of alerts: from a handful to all
    rows.
    """
    labels, scores, weights = as_scores(y, score, weight)
    mass = np.ones(len(labels)) if weights is None else weights
    cuts = _cuts(scores)
    # Line i counts the rows from cut i up: those in bins 0..i.
    bins = np.searchsorted(-cuts, -scores, side="left")
    missed, alarmed = (
        np.where(labels == 1, costs.misses(len(labels)), 0.0) * mass,
        np.where(labels == 0, costs.alarms(len(labels)), 0.0) * mass,
    )
    change = np.bincount(bins, alarmed - missed, len(cuts) + 1)[: len(cuts)]
    cost = missed.sum() + np.cumsum(change)
    low, high = _bands(bins, alarmed - missed, missed, len(cuts), resamples, confidence)
    hits, alerts = (np.bincount(bins, part, len(cuts) + 1)[: len(cuts)].cumsum() for part in (mass * labels, mass))
    curves: dict[str, list[float | None]] = {
        "threshold": cuts.tolist(),
        "cost": cost.tolist(),
        "cost_low": low,
        "cost_high": high,
        "alerts": (alerts / (days or 1.0)).tolist(),
        "precision": (hits / alerts).tolist(),
    }
    positives = float((mass * labels).sum())
    curves["recall"] = (hits / positives).tolist() if positives else [None] * len(cuts)
    return curves


def _cuts(scores: FloatArray) -> FloatArray:
    """Distinct scores, descending, in even steps of the logarithm of their rank; the last one flags every row."""
    ranked = np.sort(scores)[::-1]
    ranks = np.unique(np.geomspace(1, len(ranked), _POINTS).round().astype(np.int64)) - 1
    return np.unique(ranked[ranks])[::-1]


def _bands(
    bins: IntArray, change: FloatArray, missed: FloatArray, cuts: int, resamples: Resamples, confidence: float
) -> tuple[list[float | None], list[float | None]]:
    from scipy.sparse import coo_array

    unit: Any = np.arange(len(bins)) if resamples.unit is None else resamples.unit
    inside = bins < cuts
    by_cut = coo_array((change[inside], (bins[inside], unit[inside])), shape=(cuts, resamples.units)).tocsr()
    nothing = np.bincount(unit, missed, resamples.units)
    drawn = [(draws @ nothing)[:, None] + (by_cut @ draws.T).T.cumsum(axis=1) for draws in resamples.chunks(cuts)]
    ends = [interval(column, confidence) for column in np.concatenate(drawn).T]
    return [low for low, _ in ends], [high for _, high in ends]
