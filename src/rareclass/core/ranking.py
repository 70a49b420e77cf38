"""Rankings: average precision, the area under the ROC curve, their resamples, and curves of a few hundred points.

Everything that ranks rows is computed in here, each by one way; ties are one step everywhere, as scikit-learn has it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rareclass.core.bootstrap import (
    DEFAULT_BOOTSTRAP,
    WIDTH,
    Bootstrap,
    Resamples,
    as_scores,
    bounded_estimate,
    estimate,
)
from rareclass.core.dataset import FloatArray, IntArray
from rareclass.core.estimate import Estimate
from rareclass.errors import DataError

_CURVE_POINTS = 400


# ------------------------------------------------------------------------------------- the table of a ranking


@dataclass(frozen=True, eq=False)
class RankingTable:
    """The ranking of n rows, cut down to the steps that matter: the K distinct scores of positives, best first.

    For a fixed number of positives found, every metric of a decision gets no better with more false alarms, and average
    precision counts negatives only where a positive is met. So a row needs only its step: a positive's own score, a
    negative's next lower (or equal) positive score; negatives below the last positive are in the tail, step K.

    cut : (K,) distinct scores with a positive, descending
    below : (K,) the next lower distinct score of any row; -inf where there is none
    negatives : scores of the negatives, ascending
    """

    y: IntArray
    score: FloatArray
    weight: FloatArray | None
    cut: FloatArray
    below: FloatArray
    negatives: FloatArray

    @staticmethod
    def build(y: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> RankingTable:
        """Sort once. Raises DataError as `as_scores`."""
        labels, scores, weights = as_scores(y, score, weight)
        cut = np.unique(scores[labels == 1])[::-1]
        negatives = np.sort(scores[labels == 0])
        place = np.searchsorted(negatives, cut, side="left")
        below = np.where(place > 0, negatives[np.maximum(place - 1, 0)] if len(negatives) else -np.inf, -np.inf)
        below = np.maximum(below, np.append(cut[1:], -np.inf))
        return RankingTable(labels, scores, weights, cut, below, negatives)

    @property
    def steps(self) -> int:
        """How many distinct cut-offs there are."""
        return len(self.cut)

    @cached_property
    def step(self) -> IntArray:
        """(n,) step of each row, K for the tail."""
        return step_of(self.cut, self.score)

    def totals(self, values: FloatArray | None, positive: bool) -> FloatArray:
        """Return the (K + 1,) sums by step of ``values`` (weights where None) over the positives or the negatives."""
        if values is None and self.weight is None and not positive:
            place = np.searchsorted(self.negatives, self.cut, side="left")
            return -np.diff(np.concatenate([[len(self.negatives)], place, [0]])).astype(np.float64)
        rows = self.y == int(positive)
        amounts = self.weight if values is None else values
        step = step_of(self.cut, self.score[rows]) if positive else self.step[rows]
        return np.bincount(step, None if amounts is None else amounts[rows], self.steps + 1).astype(np.float64)

    def resampled(
        self, resamples: Resamples, *, columns: Sequence[tuple[FloatArray | None, bool]]
    ) -> Iterator[list[FloatArray]]:
        """Yield chunks of resampled sums by step, one (c, K + 1) array per (values, positive) column."""
        matrices = [self._by_unit(resamples, values, positive) for values, positive in columns]
        for draws in resamples.chunks(self.steps + 1):
            across = np.ascontiguousarray(draws.T)
            yield [(matrix @ across).T for matrix in matrices]

    def _by_unit(self, resamples: Resamples, values: FloatArray | None, positive: bool) -> Any:
        from scipy.sparse import coo_array

        rows = np.flatnonzero(self.y == int(positive))
        amounts = self.weight if values is None else values
        data = np.ones(len(rows)) if amounts is None else amounts[rows]
        unit = rows if resamples.unit is None else resamples.unit[rows]
        return coo_array((data, (self.step[rows], unit)), shape=(self.steps + 1, resamples.units)).tocsr()

    def counted(self, resamples: Resamples) -> Iterator[list[FloatArray]]:
        """Yield chunks of resampled (positives, negatives) by step, each (c, K + 1).

        With independent rows of weight 1 the counts are multinomial, and drawn as such: no row is touched. This gives
        the distribution of `resampled`, not the same draws, so paired comparisons use `resampled`.
        """
        if self.weight is not None or not resamples.independent:
            yield from self.resampled(resamples, columns=[(None, True), (None, False)])
            return
        positive, negative = self.totals(None, True), self.totals(None, False)
        n, step = len(self.y), max(1, WIDTH // (self.steps + 1))
        sizes = [min(step, resamples.n_boot - start) for start in range(0, resamples.n_boot, step)]
        seeds = np.random.SeedSequence(resamples.seed).spawn(len(sizes))

        def draw(seed: np.random.SeedSequence, size: int) -> list[FloatArray]:
            rng = np.random.default_rng(seed)
            hits = rng.binomial(n, positive.sum() / n, size) if n else np.zeros(size, dtype=np.int64)
            return [_scatter(rng, hits, positive), _scatter(rng, n - hits, negative)]

        if len(sizes) == 1:
            yield draw(seeds[0], sizes[0])
            return
        # Each chunk has its own stream, so the result does not depend on the number of threads.
        with ThreadPoolExecutor(2) as pool:
            yield from pool.map(draw, seeds, sizes)


def step_of(cut: FloatArray, score: FloatArray) -> IntArray:
    """Return the (n,) step of each score between (K,) cut points, descending: K for what is below all of them."""
    return (len(cut) - np.searchsorted(cut[::-1], score, side="right")).astype(np.int64)


def _scatter(rng: np.random.Generator, total: IntArray, counts: FloatArray) -> FloatArray:
    """Return (len(total), K) multinomial draws with probabilities in the proportion of ``counts``."""
    used = np.flatnonzero(counts)
    drawn = np.zeros((len(total), len(counts)))
    if len(used) == 0:
        return drawn
    if counts.sum() <= 4 * len(used):
        # Cells of a few rows each: drawing the rows is faster than one binomial per cell.
        owner = np.repeat(np.arange(len(counts)), counts.astype(np.int64))
        for line, size in zip(drawn, total, strict=True):
            line[:] = np.bincount(owner[rng.integers(0, len(owner), size)], minlength=len(counts))
        return drawn
    shares = counts[used] / counts.sum()
    drawn[:, used] = rng.multinomial(total, shares)
    return drawn


# -------------------------------------------------------------------------------------------- one ranking


@dataclass(frozen=True, eq=False)
class Sweep:
    """What each cut-off decides: line 0 flags nothing, line i the rows with score >= cutoff[i].

    cutoff : (m + 1,) inf, then the distinct scores, descending
    tp, fp : (m + 1,) weight of positives and negatives at or above the cut-off
    """

    cutoff: FloatArray
    tp: FloatArray
    fp: FloatArray
    positives: float
    negatives: float


def sweep(y: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> Sweep:
    """Return the counts at every distinct cut-off. Raises DataError for labels or scores that cannot be swept."""
    labels, scores, weights = as_scores(y, score, weight)
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    hit = labels[order] if weights is None else labels[order] * weights[order]
    every = np.ones(len(order)) if weights is None else weights[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(ranked) else np.zeros(0, dtype=np.int64)
    tp = np.concatenate([[0.0], np.cumsum(hit)[last]])
    fp = np.concatenate([[0.0], np.cumsum(every)[last]]) - tp
    return Sweep(np.concatenate([[np.inf], ranked[last]]), tp, fp, float(tp[-1]), float(fp[-1]))


def ap_of_sums(tp: FloatArray, fp: FloatArray) -> FloatArray:
    """Average precision from (..., K + 1) positives and negatives by step; NaN without positives."""
    caught = np.cumsum(tp, axis=-1)
    alerts = caught + np.cumsum(fp, axis=-1)
    precision = np.divide(caught, alerts, out=np.zeros_like(caught), where=alerts > 0)
    total = caught[..., -1]
    hits = np.einsum("...k,...k->...", tp, precision)
    return np.asarray(np.divide(hits, total, out=np.full(np.shape(total), np.nan), where=total > 0))


def average_precision(y: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Return the exact average precision: mean precision over the positives, equal scores taken together.

    The same number as scikit-learn's, without its thresholds.

    Parameters
    ----------
    y : array-like of shape (n,)
        1 for the rare class, 0 otherwise.
    score : array-like of shape (n,)
        Finite; the higher, the likelier a positive.
    weight : array-like of shape (n,), optional
        How much a row counts.

    Returns
    -------
    float
        In [0, 1]; NaN without positives.
    """
    table = RankingTable.build(y, score, weight)
    return float(ap_of_sums(table.totals(None, True), table.totals(None, False)))


def roc_auc(y: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Return the area under the ROC curve; NaN where one class is missing."""
    swept = sweep(y, score, weight)
    if swept.positives == 0 or swept.negatives == 0:
        return math.nan
    return float(np.trapezoid(swept.tp, swept.fp) / (swept.positives * swept.negatives))


def at_prevalence(y: ArrayLike, prevalence: float, weight: ArrayLike | None = None) -> FloatArray:
    """Return (n,) weights that give the rows a prevalence: positives keep theirs, negatives are scaled.

    Raises DataError when the prevalence is not inside (0, 1) or a class is missing.
    """
    labels = np.asarray(y)
    mass = np.ones(len(labels)) if weight is None else np.asarray(weight, dtype=np.float64)
    positive, negative = float(mass[labels == 1].sum()), float(mass[labels == 0].sum())
    if not 0 < prevalence < 1 or positive == 0 or negative == 0:
        raise DataError(
            f"{positive:g} positives and {negative:g} negatives cannot be weighted to prevalence {prevalence}. "
            "Both classes and a prevalence between 0 and 1 are needed"
        )
    return np.where(labels == 1, mass, mass * (1 - prevalence) / prevalence * positive / negative)


def auc_of_sums(tp: FloatArray, fp: FloatArray, tied: FloatArray) -> FloatArray:
    """ROC-AUC from sums by step; ``tied`` are the negatives with exactly the step's score, counted half."""
    above = np.cumsum(fp, axis=-1)
    negatives = above[..., -1:]
    won = np.einsum("...k,...k->...", tp, negatives - above + 0.5 * tied)
    pairs = tp.sum(axis=-1) * negatives[..., 0]
    return np.asarray(np.divide(won, pairs, out=np.full(np.shape(pairs), np.nan), where=pairs > 0))


class FastPrecision:
    """Average precision of labelled rows: exact, ties grouped, without a sort of all rows (called in every step)."""

    def __init__(self, y: IntArray, weight: FloatArray | None = None) -> None:
        self.positive, self.negative = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
        self.weight = weight

    def __call__(self, score: Any) -> float:
        hits, rest = score[self.positive], score[self.negative]
        if self.weight is None:
            hits, rest = np.sort(hits), np.sort(rest)
            tp = len(hits) - np.searchsorted(hits, hits, side="left")
            fp = len(rest) - np.searchsorted(rest, hits, side="left")
            return float(np.mean(tp / (tp + fp)))
        hits, hit_mass, own = _weight_above(hits, self.weight[self.positive])
        rest, alarm_mass, _ = _weight_above(rest, self.weight[self.negative])
        caught, alarms = hit_mass[np.searchsorted(hits, hits)], alarm_mass[np.searchsorted(rest, hits)]
        return float(np.average(caught / (caught + alarms), weights=own))


def _weight_above(score: FloatArray, weight: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return scores in ascending order, the (n + 1,) weight of those from each one up, and their own weights."""
    order = np.argsort(score, kind="stable")
    ranked = weight[order]
    return score[order], np.append(np.cumsum(ranked[::-1])[::-1], 0.0), ranked


def estimated_ap(score: FloatArray, weight: FloatArray | None = None) -> float:
    """Return the average precision that calibrated scores promise without labels; NaN without rows.

    Every row counts as ``score`` positives and ``1 - score`` negatives.
    Source: confidence-based performance estimation (Garg et al., ICLR 2022, for accuracy), carried over to the ranking.
    """
    if not len(score):
        return math.nan
    if weight is None or bool((weight == weight[0]).all()):
        p = np.sort(score)[::-1]
        expected, flagged = np.cumsum(p), np.arange(1, len(p) + 1, dtype=np.float64)
    else:
        order = np.argsort(-score)
        p = score[order]
        expected, flagged = np.cumsum(weight[order] * p), np.cumsum(weight[order])
    last = np.append(p[1:] != p[:-1], True)  # equal scores are one cut-off
    expected, flagged = expected[last], flagged[last]
    return float((np.diff(expected, prepend=0.0) * expected / flagged).sum() / expected[-1])


# ------------------------------------------------------------------------------------------- with resamples


def bootstrap_average_precision(
    y: ArrayLike,
    scores: ArrayLike | Sequence[FloatArray],
    *,
    block: NDArray[Any] | None = None,
    n_boot: int = 200,
    seed: int = 0,
    weight: ArrayLike | None = None,
) -> FloatArray:
    """Return the (m, n_boot) resampled average precision of m scores, the same resamples for all of them.

    scores : (m, n), or one (n,)
    block : (n,) rows drawn together; None where rows are independent
    """
    lines = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    tables = [RankingTable.build(y, line, weight) for line in lines]
    resamples = Resamples(lines.shape[1], block, n_boot, seed)
    if len(tables) == 1:
        return np.concatenate([ap_of_sums(tp, fp) for tp, fp in tables[0].counted(resamples)])[None, :]
    both = [(None, True), (None, False)]
    drawn = [[ap_of_sums(tp, fp) for tp, fp in table.resampled(resamples, columns=both)] for table in tables]
    return np.stack([np.concatenate(parts) for parts in drawn])


def estimate_ap(
    y: ArrayLike,
    score: ArrayLike,
    *,
    block: NDArray[Any] | None = None,
    weight: ArrayLike | None = None,
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP,
) -> Estimate:
    """Return average precision with its bootstrap interval; rows of a ``block`` are drawn together."""
    table = RankingTable.build(y, score, weight)
    value = float(ap_of_sums(table.totals(None, True), table.totals(None, False)))
    resamples = bootstrap.of_rows(len(table.y), block)
    drawn = np.concatenate([ap_of_sums(tp, fp) for tp, fp in table.counted(resamples)]) if table.steps else np.zeros(0)
    return bounded_estimate(value, drawn, bootstrap.confidence, int(table.y.sum()), len(table.y))


def compare(
    y: ArrayLike,
    score_a: ArrayLike,
    score_b: ArrayLike,
    *,
    block: NDArray[Any] | None = None,
    weight: ArrayLike | None = None,
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP,
) -> Estimate:
    """Return the difference of average precision, a - b, paired: both on the same resamples of the same rows.

    Parameters
    ----------
    y : array-like of shape (n,)
        1 for the rare class, 0 otherwise.
    score_a, score_b : array-like of shape (n,)
        Scores of the same rows.
    block : ndarray of shape (n,), optional
        Rows of one block are drawn together.
    weight : array-like of shape (n,), optional
    bootstrap : Bootstrap
        How the interval is made.

    Returns
    -------
    Estimate

    Raises
    ------
    DataError
        Where labels are not 0 and 1, a score is not finite, or lengths differ.
    """
    pair = np.stack([np.asarray(score_a, dtype=np.float64), np.asarray(score_b, dtype=np.float64)])
    drawn = bootstrap_average_precision(
        y, pair, block=block, n_boot=bootstrap.resamples, seed=bootstrap.seed, weight=weight
    )
    value = average_precision(y, pair[0], weight) - average_precision(y, pair[1], weight)
    labels = np.asarray(y)
    return estimate(value, drawn[0] - drawn[1], bootstrap.confidence, int(labels.sum()), len(labels))


@dataclass(frozen=True, slots=True)
class BlockRanking:
    """A ranking cut down to its K distinct scores of positives, best first, with its B blocks kept apart.

    Average precision and the area under the ROC curve look at the rows above each positive only, so (K, B) sums are
    all that a resample of blocks needs: no row is sorted or touched again.
    at : positives at a score;  found, alarms : positives and negatives at or above it;  ahead : negatives above it,
    those tied counted half
    """

    at: FloatArray
    found: FloatArray
    alarms: FloatArray
    ahead: FloatArray
    total: FloatArray
    """(2, B) positives and negatives"""

    @staticmethod
    def of(y: IntArray, score: FloatArray, weight: FloatArray | None, starts: IntArray) -> BlockRanking:
        """Count hits and alarms of each block of rows at every score that a positive has."""
        cut = np.unique(score[y == 1])[::-1]
        ends = np.append(starts[1:], len(y))
        columns = [
            _by_cut(y[a:b], score[a:b], None if weight is None else weight[a:b], cut)
            for a, b in zip(starts, ends, strict=True)
        ]
        hits, alarms, above, positives, negatives = (np.stack(part, axis=-1) for part in zip(*columns, strict=True))
        at = np.diff(hits, axis=0, prepend=0.0)
        return BlockRanking(at, hits, alarms, (alarms + above) / 2, np.stack([positives, negatives]))

    def ap(self, draws: FloatArray | None = None, odds: float | None = None) -> Any:
        """Average precision, of the whole or (R,) of resamples; with ``odds`` at these odds of a positive."""
        weights = np.ones((self.at.shape[1], 1)) if draws is None else draws
        result = np.empty(weights.shape[1])
        for low in range(0, len(result), 32):
            part = weights[:, low : low + 32]
            positives, negatives = self.total @ part
            with np.errstate(divide="ignore", invalid="ignore"):
                factor = 1.0 if odds is None else positives / (odds * np.maximum(negatives, 1e-12))
                hits, alarms = self.found @ part, (self.alarms @ part) * factor
                alarms += hits
                np.divide(hits, alarms, out=hits, where=alarms > 0)
                result[low : low + 32] = np.einsum("kr,kr->r", self.at @ part, hits) / positives
        return result[0] if draws is None else result

    def roc_auc(self, draws: FloatArray | None = None) -> Any:
        """Area under the ROC curve, equal scores counting half."""
        weights = np.ones((self.at.shape[1], 1)) if draws is None else draws
        positives, negatives = self.total @ weights
        with np.errstate(divide="ignore", invalid="ignore"):
            # sum over steps of positives x negatives ahead, as a form in the block draws: (B, B) is all that is needed
            form = self.at.T @ self.ahead
            result = 1 - np.einsum("br,bc,cr->r", weights, form, weights) / (positives * negatives)
        return result[0] if draws is None else result


def _by_cut(y: IntArray, score: FloatArray, weight: FloatArray | None, cut: FloatArray) -> tuple[Any, ...]:
    """Of one block: positives at or above each cut, negatives at or above, negatives above, and both totals."""
    sums = []
    for value, sides in ((1, ("left",)), (0, ("left", "right"))):
        mine = score[y == value]
        if weight is None:
            ranked, below = np.sort(mine), np.arange(len(mine) + 1, dtype=np.float64)
        else:
            order = np.argsort(mine)
            ranked, below = mine[order], np.concatenate([[0.0], np.cumsum(weight[y == value][order])])
        sums += [below[-1] - below[np.searchsorted(ranked, cut, side=side)] for side in sides]  # type: ignore[call-overload]
        sums.append(below[-1])
    hits, positives, alarms, above, negatives = sums
    return hits, alarms, above, positives, negatives


# ------------------------------------------------------------------------------------------------- curves


def curves(y: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> dict[str, dict[str, list[float]]]:
    """Return the PR and ROC curves, at most 400 points each, evenly along their length."""
    swept = sweep(y, score, weight)
    if swept.positives == 0:
        return {"pr": {"recall": [], "precision": []}, "roc": {"fpr": [], "tpr": []}}
    recall = swept.tp / swept.positives
    alerts = swept.tp + swept.fp
    precision = np.divide(swept.tp, alerts, out=np.ones_like(alerts), where=alerts > 0)
    if len(precision) > 1:
        precision[0] = precision[1]
    pr = _evenly(recall, precision)
    fpr = swept.fp / swept.negatives if swept.negatives else np.zeros_like(swept.fp)
    roc = _evenly(fpr, recall)
    return {
        "pr": {"recall": recall[pr].tolist(), "precision": precision[pr].tolist()},
        "roc": {"fpr": fpr[roc].tolist(), "tpr": recall[roc].tolist()},
    }


def _evenly(x: FloatArray, y: FloatArray) -> IntArray:
    """Index of at most 400 points, evenly along the curve's length; the ends are kept."""
    if len(x) <= _CURVE_POINTS:
        return np.arange(len(x))
    length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    wanted = np.linspace(0, length[-1], _CURVE_POINTS)
    return np.unique(np.minimum(np.searchsorted(length, wanted), len(x) - 1))
