"""Weights of training rows, and the sampling factor each amounts to.

Weighting positives w times as much as negatives is, for the probabilities learned, the same as keeping the share
b = 1 / w of the negatives: the prior correction of core.calibration undoes it exactly. Where the weight differs from
row to row inside a class, w is the ratio of the mean weights: it brings the scores near, and the calibrator learns the
rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rareclass.core.costs import CostArrays
from rareclass.core.dataset import FloatArray, Rows
from rareclass.errors import ConfigError, NoPositivesError, unknown


@dataclass(frozen=True, slots=True)
class Weights:
    """weight : (n,) positive, mean 1 over all rows; negative_sampling_rate : share of negatives it amounts to, by the
    mean weights of the classes.
    """

    weight: FloatArray
    negative_sampling_rate: float


Weighting = Callable[[Rows, "CostArrays | None"], Weights]


def _by_class(rows: Rows, factor: float) -> Weights:
    """Weight positives ``factor`` times as much as negatives."""
    weight = np.where(rows.y == 1, factor, 1.0)
    return Weights(weight / weight.mean(), 1 / factor)


def _ratio(rows: Rows) -> float:
    positives = rows.positives
    if positives == 0 or positives == len(rows):
        raise NoPositivesError(
            f"class weights need both classes; {positives} of {len(rows)} training rows are positive. "
            "Give the split more rows"
        )
    return (len(rows) - positives) / positives


def none(rows: Rows, costs: CostArrays | None) -> Weights:
    """Every row counts the same."""
    return Weights(np.ones(len(rows)), 1.0)


def balanced(rows: Rows, costs: CostArrays | None) -> Weights:
    """Both classes count the same in all."""
    return _by_class(rows, _ratio(rows))


def sqrt_balanced(rows: Rows, costs: CostArrays | None) -> Weights:
    """Half way to balanced, on the scale of ratios: positives weigh sqrt(negatives / positives)."""
    return _by_class(rows, float(np.sqrt(_ratio(rows))))


def cost(rows: Rows, costs: CostArrays | None) -> Weights:
    """Cost matrix: a row weighs what getting it wrong costs (Elkan, IJCAI 2001)."""
    if costs is None:
        raise ConfigError(
            "weighting 'cost' needs the costs of mistakes. Set costs.false_negative and costs.false_positive"
        )
    missed = np.broadcast_to(np.asarray(costs.false_negative, dtype=np.float64), len(rows))
    alarm = np.broadcast_to(np.asarray(costs.false_positive, dtype=np.float64), len(rows))
    weight = np.where(rows.y == 1, missed, alarm)
    if np.ptp(missed) == 0 and np.ptp(alarm) == 0:
        _ratio(rows)
        return Weights(weight / weight.mean(), float(alarm[0] / missed[0]))
    _ratio(rows)
    return _positive(rows, weight)


def amount(rows: Rows, costs: CostArrays | None) -> Weights:
    """Per-row amounts: inside each class a row weighs its amount relative to the mean amount of that class.

    Large losses are learned first while the two classes keep their natural total weights.
    """
    if rows.amount is None:
        raise ConfigError(
            "weighting 'amount' needs the amount at stake in each row. Set data.amount to the column that holds it"
        )
    _ratio(rows)
    size = np.abs(np.nan_to_num(rows.amount.astype(np.float64)))
    weight = np.ones(len(rows))
    for label in (0, 1):
        inside = rows.y == label
        mean = size[inside].mean()
        weight[inside] = size[inside] / mean if mean > 0 else 1.0
    return _positive(rows, weight)


def _positive(rows: Rows, weight: FloatArray) -> Weights:
    """Keep rows of (almost) no amount from vanishing: nothing weighs less than a hundredth of the mean."""
    weight = np.maximum(weight, 0.01 * weight.mean())
    rate = weight[rows.y == 0].mean() / weight[rows.y == 1].mean()
    return Weights(weight / weight.mean(), float(rate))


WEIGHTINGS: dict[str, Weighting] = {
    "none": none,
    "balanced": balanced,
    "sqrt_balanced": sqrt_balanced,
    "cost": cost,
    "amount": amount,
}


def weigh(rows: Rows, name: str, costs: CostArrays | None = None) -> Weights:
    """Return the training weights of ``rows`` by a member of WEIGHTINGS, times their inverse-propensity weights.

    costs : of these very rows (scalars, or arrays as long as ``rows``)
    Raises ConfigError for an unknown name or missing costs, NoPositivesError when a class is absent.
    """
    if name not in WEIGHTINGS:
        raise unknown("weighting", name, WEIGHTINGS, "candidates.weighting")
    weights = WEIGHTINGS[name](rows, costs)
    return weights if rows.weight is None else Weights(weights.weight * rows.weight, weights.negative_sampling_rate)
