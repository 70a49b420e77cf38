"""Bootstrap resamples as weights, and the resampled counts that ranking metrics and thresholds need.

Rows of one day, or of one entity, are not independent: where a block is known, whole blocks are drawn. A resample is a
whole-number weight per *unit* (a block, or a row where rows are independent), so nothing is copied and nothing is
sorted again. What lies between two neighbouring positives matters only as a sum, so a metric of the ranking needs as
many numbers as there are distinct positive scores, however many negatives there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rareclass.config import EvaluateSettings
from rareclass.core.dataset import FloatArray, IntArray
from rareclass.core.estimate import Estimate, wilson
from rareclass.core.log_odds import expit, logit
from rareclass.errors import DataError

MIN_BLOCKS = 5
"""With fewer blocks than this a bootstrap over blocks has too few distinct resamples to mean anything;
rows are drawn.
"""

MAX_UNITS = 20_000
"""More independent units than this are dealt at random into so many groups that are drawn whole: sums of independent
rows vary alike either way, and a million rows cost no more than these."""

_CHUNK = 4_000_000
"""Draws held at once for a chunk of resamples (32 MB of float64)."""

WIDTH = 400_000
"""Sums by step held at once: small enough to stay in a processor's cache."""

_KEPT = 64_000_000
"""Draws kept (as bytes) for the next metric of the same resamples; more are drawn again."""


def as_scores(
    y: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None
) -> tuple[IntArray, FloatArray, FloatArray | None]:
    """Return (y, score, weight) as int64 / float64 arrays of one length.

    Raises DataError when lengths differ, a label is not 0 or 1, a score is not finite or a weight is negative.
    """
    labels = np.asarray(y).astype(np.int64, copy=False)
    scores = np.asarray(score, dtype=np.float64)
    if labels.ndim != 1 or scores.shape != labels.shape:
        raise DataError(f"labels have shape {labels.shape} and scores {scores.shape}. Give one score per label")
    if len(labels) and (labels.min() < 0 or labels.max() > 1):
        raise DataError("labels must be 0 or 1, 1 = the rare class. Encode the target first")
    if not np.isfinite(scores).all():
        raise DataError(
            f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite. "
            "Leave rows without a score out first"
        )
    if weight is None:
        return labels, scores, None
    weights = np.asarray(weight, dtype=np.float64)
    if weights.shape != labels.shape or not np.isfinite(weights).all() or bool((weights < 0).any()):
        raise DataError("weights must be finite, not negative, and one per label. Mend data.propensity")
    return labels, scores, weights


@dataclass(frozen=True, eq=False)
class Sample:
    """Labelled rows with their scores: what travels together to everything that judges.

    Attributes
    ----------
    y : (n,) 0 or 1, 1 = the rare class
    score : (n,) deployed scores of rows that the model was not fitted on; a gate also takes (repeats, n)
    weight : (n,) how many rows each stands for; None: one
    block : (n,) rows that are resampled together (days, entities); None where rows are independent
    time : (n,) when each row was; needed for what is counted by day
    share : of all rows of their days that these are, drawn at random
    """

    y: ArrayLike
    score: ArrayLike
    weight: ArrayLike | None = None
    block: NDArray[Any] | None = None
    time: NDArray[np.datetime64] | None = None
    share: float = 1.0

    def checked(self) -> tuple[IntArray, FloatArray, FloatArray | None]:
        """Return ``as_scores`` of labels, scores and weights. Raises DataError."""
        return as_scores(self.y, self.score, self.weight)


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How intervals are made: from so many resamples, at a confidence, with draws that a seed repeats."""

    resamples: int = 200
    confidence: float = 0.95
    seed: int = 0

    @staticmethod
    def of(config: EvaluateSettings, seed: int) -> Bootstrap:
        """Return what the configuration asks for."""
        return Bootstrap(config.bootstraps, config.confidence, seed)

    @property
    def levels(self) -> tuple[float, float]:
        """The two quantiles of the resamples between which an interval lies."""
        return (1 - self.confidence) / 2, (1 + self.confidence) / 2

    def of_rows(self, n: int, block: NDArray[Any] | None = None) -> Resamples:
        """Return the resamples of ``n`` rows."""
        return Resamples(n, block, self.resamples, self.seed)


DEFAULT_BOOTSTRAP = Bootstrap()
"""200 resamples, 95 %."""


@dataclass(frozen=True, eq=False)
class Resamples:
    """``n_boot`` resamples of ``n`` rows, the same for everything that is computed from them (paired).

    block : (n,) any integers, rows that are drawn together; None where rows are independent
    """

    n: int
    block: NDArray[Any] | None = None
    n_boot: int = 200
    seed: int = 0

    @cached_property
    def _blocks(self) -> IntArray | None:
        """(n,) block of each row as 0..blocks-1, or None where rows are independent."""
        if self.block is None:
            return None
        if len(self.block) != self.n:
            raise DataError(f"{len(self.block)} blocks were given for {self.n} rows. Give one block per row")
        block = np.unique(self.block, return_inverse=True)[1].astype(np.int64)
        blocks = int(block.max()) + 1 if self.n else 0
        return None if blocks < MIN_BLOCKS or blocks == self.n else block

    @property
    def few_blocks(self) -> str | None:
        """What is to be said of the intervals where the blocks are too few to be drawn, so that rows are; None
        otherwise.
        """
        blocks = self.n if self.block is None else len(np.unique(self.block))
        if self.block is None or blocks >= MIN_BLOCKS:
            return None
        return (
            f"the rows lie on {blocks} days or entities, fewer than {MIN_BLOCKS}: rows are drawn one by one, "
            "and intervals are too narrow where rows of one day or entity are alike"
        )

    @property
    def independent(self) -> bool:
        """Whether rows are drawn one by one."""
        return self._blocks is None

    @cached_property
    def unit(self) -> IntArray | None:
        """(n,) unit of each row as 0..units-1, or None where every row is its own unit."""
        block = self._blocks
        size = self.n if block is None else int(block.max()) + 1
        if size <= MAX_UNITS:
            return block
        group = np.random.default_rng(self.seed).permutation(size) % MAX_UNITS
        return np.asarray(group if block is None else group[block], dtype=np.int64)

    @cached_property
    def units(self) -> int:
        """How many units are drawn: entities, days or rows."""
        return self.n if self.unit is None else int(self.unit.max()) + 1

    def chunks(self, width: int = 1) -> Iterator[FloatArray]:
        """Yield (c, units) draws per unit, ``n_boot`` lines in all; c is bounded so that c * width stays in memory."""
        step = max(1, min(_CHUNK // max(self.units, 1), WIDTH // max(width, 1)))
        stored = self._kept
        rng = np.random.default_rng(self.seed)
        for start in range(0, self.n_boot, step):
            size = min(step, self.n_boot - start)
            lines = stored[start : start + size] if stored is not None else (self._draw(rng) for _ in range(size))
            draws = np.empty((size, self.units))
            for position, line in enumerate(lines):
                draws[position] = line
            yield draws

    def _draw(self, rng: np.random.Generator) -> NDArray[np.intp]:
        return np.bincount(rng.integers(0, self.units, self.units), minlength=self.units)

    @cached_property
    def _kept(self) -> NDArray[np.uint8] | None:
        """(n_boot, units) all draws where they are few enough; nothing is drawn 256 times in practice (p < 1e-500)."""
        if not 0 < self.units * self.n_boot <= _KEPT:
            return None
        rng = np.random.default_rng(self.seed)
        return np.stack([self._draw(rng).astype(np.uint8) for _ in range(self.n_boot)])

    def weights(self) -> Iterator[FloatArray]:
        """Yield (c, n) weights per row: how often each row is in the resample."""
        for draws in self.chunks(self.n):
            yield draws if self.unit is None else draws[:, self.unit]

    def sums(self, values: ArrayLike) -> FloatArray:
        """Return the (n_boot,) or (n_boot, d) resampled sums of (n,) or (n, d) values."""
        table = np.asarray(values, dtype=np.float64)
        flat = table.reshape(self.n, -1)
        if self.unit is not None:
            flat = np.stack([np.bincount(self.unit, weights=column, minlength=self.units) for column in flat.T], axis=1)
        total = (
            np.concatenate([draws @ flat for draws in self.chunks()])
            if self.n
            else np.zeros((self.n_boot, flat.shape[1]))
        )
        return total[:, 0] if table.ndim == 1 else total


def interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of resampled values; NaN values (nothing to judge in a resample) are left out.

    (NaN, NaN) when fewer than half of the resamples could be judged. An end is infinite where so many values are: a
    ratio to what a resample holds none of has no bound.
    """
    resampled = np.asarray(values, dtype=np.float64)
    finite = resampled[~np.isnan(resampled)]
    if len(finite) == 0 or 2 * len(finite) < len(resampled):
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(finite, [tail, 1 - tail])
    if math.isnan(low):  # between two infinite values, or a finite and an infinite one, nothing can be interpolated
        low = np.quantile(finite, tail, method="lower")
    if math.isnan(high):
        high = np.quantile(finite, 1 - tail, method="higher")
    return float(low), float(high)


def estimate(value: float, values: ArrayLike, confidence: float, positives: int, rows: int) -> Estimate:
    """Return a value with the percentile interval of its resamples."""
    low, high = (float("nan"), float("nan")) if np.isnan(value) else interval(values, confidence)
    return Estimate(float(value), low, high, int(positives), int(rows))


def share_estimate(
    value: float, values: ArrayLike, size: float, confidence: float, positives: int, rows: int
) -> Estimate:
    """Return a share of ``size`` rows (recall, precision) with Wilson's interval at as many rows as the resamples say
    it is worth.

    The spread of the resamples knows about blocks and weights, but is none where all or nothing was found: 8 of 8 is
    not [1, 1]. There, and at most, ``size`` counts.
    """
    if np.isnan(value) or size <= 0:
        return Estimate(float(value), positives=int(positives), rows=int(rows))
    worth, spread = float(size), _spread(values)
    if 0 < value < 1 and spread > 0:
        worth = min(worth, value * (1 - value) / spread**2)
    low, high = (
        wilson(value * worth, worth, confidence) if 0 < value < 1 else wilson(round(value) * worth, worth, confidence)
    )
    return Estimate(float(value), min(low, float(value)), max(high, float(value)), int(positives), int(rows))


def bounded_estimate(value: float, values: ArrayLike, confidence: float, positives: int, rows: int) -> Estimate:
    """Return a metric between 0 and 1 with an interval that is symmetric on the log-odds: the spread of its resamples,
    carried there, times Student's t for the positives it rests on.

    Percentiles of resamples cover some 90 % with ten positives; this covers 93 to 97 % with 10 to 200 of them.
    Source: Boyd, Eng and Page, ECML 2013, who find the same of intervals on the logit for average precision.
    """
    from scipy.stats import t

    if np.isnan(value) or positives < 1 or np.isnan(interval(values, confidence)[0]):
        return Estimate(float(value), positives=int(positives), rows=int(rows))
    margin = 0.5 / (positives + 1)
    inside = min(max(float(value), margin), 1 - margin)
    spread = _spread(values)
    if spread <= 0 or not 0 < value < 1:
        spread = max(spread, float(np.sqrt(inside * (1 - inside) / positives)))
    width = float(t.ppf(0.5 + confidence / 2, max(positives - 1, 1))) * spread / (inside * (1 - inside))
    centre = logit(inside)
    low, high = expit(centre + width * np.array([-1.0, 1.0]))
    return Estimate(float(value), float(min(low, value)), float(max(high, value)), int(positives), int(rows))


def unbiased_estimate(value: float, values: ArrayLike, confidence: float, positives: int, rows: int) -> Estimate:
    """Return a distance from 0 that resampling makes larger (a calibration error),
    with percentiles less that excess.
    """
    resampled = np.asarray(values, dtype=np.float64)
    excess = float(np.nanmean(resampled)) - value if np.isfinite(resampled).any() else 0.0
    moved = estimate(value, np.maximum(resampled - excess, 0.0), confidence, positives, rows)
    return Estimate(moved.value, min(moved.low, value), max(moved.high, value), moved.positives, moved.rows)


def _spread(values: ArrayLike) -> float:
    resampled = np.asarray(values, dtype=np.float64)
    finite = resampled[np.isfinite(resampled)]
    return float(finite.std(ddof=1)) if len(finite) > 1 else 0.0
