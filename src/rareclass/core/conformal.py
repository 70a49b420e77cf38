"""Scores to conformal p-values: how many normal rows look as unusual as this one.

What is assumed is exchangeability: that rows to come are drawn like the held-out ones. Then the p-value of a normal row
is uniform, whatever the detector, and a cut-off on it keeps its rate of false alarms. Where normal changes, it does
not; that is what drift of the score shows. Source: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World,
2005; Bates et al., Annals of Statistics 2023 (outliers).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rareclass.core.dataset import FloatArray, IntArray
from rareclass.core.jsonable import Jsonable, jsonable
from rareclass.core.log_odds import OPEN
from rareclass.errors import DataError

LEAST_ROWS = 2
"""Held-out normal rows without which no p-value is given; how fine it can be with few, `Conformal.finest` says."""

_KNOTS = 1_000
_LEAST, _MOST = OPEN


@dataclass(frozen=True)
class Conformal:
    """A strictly monotone map of raw scores in [0, 1) to 1 - p, p the conformal p-value: a row is flagged at the rate
    ``a`` when its score is at least 1 - a.

    At the k-th highest of n held-out scores p is k / (n + 1): that share of normal rows to come scores as high. Between
    them the logarithm of p falls on a straight line, so p stays within 1 / (n + 1) of the usual conformal one; beyond
    the highest it goes on falling, by what no row bears out: see ``finest``.

    surprise : (k,) -log(1 - raw score) of held-out rows, rising · log_p : (k,) falling · rows : held out
    """

    surprise: tuple[float, ...]
    log_p: tuple[float, ...]
    rows: int

    kind = "conformal"

    @property
    def finest(self) -> float:
        """The smallest rate that the held-out rows bear out."""
        return 1 / (self.rows + 1)

    @cached_property
    def _knots(self) -> tuple[FloatArray, FloatArray]:
        """``surprise`` and ``log_p`` as arrays, made once: every request is scored through them."""
        return np.array(self.surprise), np.array(self.log_p)

    def __call__(self, score: ArrayLike) -> FloatArray:
        """(n,) raw scores in [0, 1] -> (n,) 1 - p in (0, 1), in the same order."""
        raw = np.clip(np.asarray(score, dtype=np.float64), 0.0, _MOST)
        u, (knots, line) = -np.log1p(-raw), self._knots
        log_p = np.interp(u, knots, line) - np.maximum(u - knots[-1], 0)
        return np.asarray(np.clip(-np.expm1(log_p), _LEAST, _MOST), dtype=np.float64)

    def inverse(self, p: ArrayLike) -> FloatArray:
        """(n,) deployed scores -> the (n,) raw scores behind them."""
        log_p = np.log1p(-np.clip(np.asarray(p, dtype=np.float64), 0.0, _MOST))
        knots, line = self._knots
        u = np.interp(-log_p, -line, knots) + np.maximum(line[-1] - log_p, 0)
        return np.asarray(-np.expm1(-u))

    def to_json(self) -> dict[str, Any]:
        """Return the map's knots and its kind."""
        return {"kind": self.kind, **jsonable(self)}


def fit(score: ArrayLike) -> Conformal:
    """Learn the map from (n,) raw scores of normal rows that the detector was not fitted on.

    Raises DataError for fewer than 2, and for scores outside of [0, 1].
    """
    raw = np.sort(np.asarray(score, dtype=np.float64))
    if len(raw) < LEAST_ROWS:
        raise DataError(
            f"held-out normal rows: {len(raw)}, and a p-value needs at least {LEAST_ROWS}. Bring more rows: data.path"
        )
    if not (raw[0] >= 0 and raw[-1] <= 1):
        raise DataError(f"scores run from {raw[0]:g} to {raw[-1]:g}; a p-value needs them in [0, 1]")
    value, first = np.unique(-np.log1p(-np.clip(raw, 0.0, _MOST)), return_index=True)
    # at the k-th highest p is k / (n + 1): exactly the share of normal rows to come that scores as high
    p = (len(raw) - first) / (len(raw) + 1)
    if value[0] > 0:
        value, p = np.concatenate([[0.0], value]), np.concatenate([[1.0], p])
    keep = knots(len(value))
    return Conformal(tuple(value[keep].tolist()), tuple(np.log(p[keep]).tolist()), len(raw))


def knots(count: int) -> IntArray:
    """Return which of so many rising values a map is drawn through: every one of the highest, where it matters, and
    evenly taken others."""
    if count <= 2 * _KNOTS:
        return np.arange(count)
    rest = np.linspace(0, count - _KNOTS - 1, _KNOTS).astype(np.int64)
    return np.concatenate([rest, np.arange(count - _KNOTS, count)])


def p_values(held_out: ArrayLike, score: ArrayLike) -> FloatArray:
    """Return the (n,) usual conformal p-values of scores: (1 + held-out scores as high) / (1 + held out)."""
    reference = np.sort(np.asarray(held_out, dtype=np.float64))
    return np.asarray(
        (len(reference) - np.searchsorted(reference, np.asarray(score), side="left") + 1) / (len(reference) + 1)
    )


@dataclass(frozen=True)
class Uniformity(Jsonable):
    """Whether p-values of normal rows are uniform. statistic : Kolmogorov-Smirnov's · p : of that · rows : tested"""

    statistic: float
    p: float
    rows: int

    def line(self) -> str:
        """One sentence for a report."""
        said = (
            "as they should be"
            if self.p >= 0.01
            else "they are not: normal is not what it was, or the rows hold rare ones"
        )
        return (
            f"p-values of {self.rows:,} later or held-out rows against uniform: "
            f"Kolmogorov-Smirnov {self.statistic:.3f}, p = {self.p:.2g}; {said}"
        )


def uniformity(p: ArrayLike, *, held_out: int | None = None) -> Uniformity:
    """Test (n,) p-values of normal rows against the uniform distribution.

    held_out : rows the p-values rest on; with it the test allows for their own chance, as one of two samples
    """
    from scipy.stats import kstwo

    values = np.sort(np.asarray(p, dtype=np.float64))
    n = len(values)
    if n == 0:
        return Uniformity(0.0, 1.0, 0)
    at = np.arange(n)
    statistic = float(max(np.max((at + 1) / n - values), np.max(values - at / n)))
    size = n if held_out is None else n * held_out / (n + held_out)
    return Uniformity(statistic, float(kstwo.sf(statistic, max(1, round(size)))), n)


def rate_of(alerts_per_day: float, rows_per_day: float) -> float:
    """Return the share of rows that so many alerts a day are; at most 1/2."""
    return min(0.5, alerts_per_day / max(rows_per_day, 1e-9))


def alerts(rate: float, rows_per_day: float | None) -> float:
    """Return the alerts a day to be expected at a rate; NaN without time."""
    return math.nan if rows_per_day is None else rate * rows_per_day


def describe(rate: float, map_: Conformal) -> str:
    """Return what has to be said of a rate that the held-out rows cannot bear out; empty where they can."""
    if rate >= map_.finest:
        return ""
    return (
        f"a rate of {rate:.2g} is finer than {map_.rows:,} held-out rows can tell (1 in {map_.rows + 1:,}): "
        "the cut-off is continued beyond the most unusual of them and may be off by much"
    )
