"""Exact figures of rows that lie in many partitions, on any engine: no row but the positives' scores has to travel.

Average precision, ROC-AUC and the best cut-off of any metric depend on how many negatives lie between the scores of
positives.
So the scores of the positives are gathered (``cut_points``), every partition counts its negatives between them
(``count_partition``), and the counts are added: what is sent grows with the positives, not with the rows, and the sums
are those of one process. Resamples draw a Poisson weight for each block from a hash of its id (Hanley and MacGibbon,
2006; online bagging of Oza and Russell, 2001), so that they depend neither on the partitions nor on their order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rareclass.core.bootstrap import as_scores, bounded_estimate
from rareclass.core.dataset import FloatArray
from rareclass.core.estimate import Estimate
from rareclass.core.hashing import mix
from rareclass.core.ranking import Sweep, ap_of_sums, auc_of_sums, step_of
from rareclass.errors import DataError

_SALT = 15_485_863
_AT_ONCE = 4_000_000  # Poisson weights that are drawn at once


@dataclass(frozen=True, eq=False)
class PartitionCounts:
    """Weight of rows by step of the ranking; the counts of partitions over the same cut points can be added, also by
    ``sum``.

    Attributes
    ----------
    cut : ndarray of shape (k,)
        The distinct scores of all positives, descending.
    tp, fp, tied : ndarrays of shape (1 + resamples, k + 1)
        Positives and negatives of each step, the last one being what is below every positive, and negatives that have
        exactly the score of the step. The first line is of the rows themselves, the others of their resamples.
    rows, found : int
        Rows, and positives among them.
    """

    cut: FloatArray
    tp: FloatArray
    fp: FloatArray
    tied: FloatArray
    rows: int
    found: int

    def __add__(self, other: PartitionCounts) -> PartitionCounts:
        if not np.array_equal(self.cut, other.cut) or self.tp.shape != other.tp.shape:
            raise DataError(
                "counts over other cut points, or with another number of resamples, cannot be added. "
                "Count every partition with the same ones"
            )
        return PartitionCounts(
            self.cut,
            self.tp + other.tp,
            self.fp + other.fp,
            self.tied + other.tied,
            self.rows + other.rows,
            self.found + other.found,
        )

    def __radd__(self, other: object) -> PartitionCounts:
        return self if other == 0 else NotImplemented  # what ``sum`` begins with

    def average_precision(self, confidence: float = 0.95) -> Estimate:
        """Return the average precision, with an interval where there are resamples.

        Parameters
        ----------
        confidence : float
            Coverage of the interval.

        Returns
        -------
        Estimate
            Its ``value`` is NaN without positives.
        """
        values = ap_of_sums(self.tp, self.fp)
        return bounded_estimate(float(values[0]), values[1:], confidence, self.found, self.rows)

    def roc_auc(self, confidence: float = 0.95) -> Estimate:
        """Return the area under the ROC curve, with an interval where there are resamples.

        Parameters
        ----------
        confidence : float
            Coverage of the interval.

        Returns
        -------
        Estimate
            Its ``value`` is NaN where a class is missing.
        """
        values = auc_of_sums(self.tp, self.fp, self.tied)
        return bounded_estimate(float(values[0]), values[1:], confidence, self.found, self.rows)

    def sweep(self) -> Sweep:
        """Return the counts at the cut-offs that can be best: of those with as many hits, the one with fewest alarms.

        Returns
        -------
        Sweep
            Hits and false alarms at each cut-off, for thresholds.
        """
        tp, fp = (np.concatenate([[0.0], np.cumsum(counts[0])[:-1]]) for counts in (self.tp, self.fp))
        cutoff = np.concatenate([[np.inf], self.cut])
        return Sweep(cutoff, tp, fp, float(self.tp[0].sum()), float(self.fp[0].sum()))


def cut_points(positives: Iterable[ArrayLike]) -> FloatArray:
    """Gather the scores of the positives of all partitions.

    Parameters
    ----------
    positives : iterable of array-likes
        The scores of each partition's positives, ``score[y == 1]``; a partition without any may be left out.

    Returns
    -------
    ndarray of shape (k,)
        Their distinct values, descending: what every partition is counted with.
    """
    parts = [np.asarray(part, dtype=np.float64).ravel() for part in positives]
    return np.unique(np.concatenate([np.empty(0), *parts]))[::-1]


def count_partition(
    y: ArrayLike,
    score: ArrayLike,
    cut: FloatArray,
    *,
    weight: ArrayLike | None = None,
    block: ArrayLike | None = None,
    resamples: int = 0,
    seed: int = 0,
) -> PartitionCounts:
    """Count the rows of one partition between the scores of all positives.

    Parameters
    ----------
    y, score : array-likes of shape (n,)
        0 or 1 (1 = the rare class), and finite scores; n may be 0.
    cut : ndarray of shape (k,)
        What `cut_points` made of all partitions.
    weight : array-like of shape (n,), optional
        Weights of the rows.
    block : array-like of shape (n,) of integers, optional
        Ids of what is resampled together (a day, a customer), the same in all partitions. Needed for resamples.
    resamples, seed : int
        How many resamples are counted, too, and what they are drawn from.

    Returns
    -------
    PartitionCounts
        To be added up over the partitions.

    Raises
    ------
    DataError
        When a label is not 0 or 1, a score is not finite, a positive's score is no cut point, or blocks are missing.
    """
    labels, scores, weights = as_scores(y, score, weight)
    mass, hit, steps = np.ones(len(labels)) if weights is None else weights, labels == 1, len(cut)
    step = step_of(cut, scores)
    exact = np.zeros(len(labels), dtype=bool)
    if steps:
        exact = cut[np.minimum(step, steps - 1)] == scores
    if not exact[hit].all():
        raise DataError(
            "a positive's score is no cut point. Gather the positives of every partition before they are counted"
        )
    kinds = (hit, ~hit, ~hit & exact)
    columns = [np.bincount(step[kind], mass[kind], steps + 1).astype(np.float64)[None] for kind in kinds]
    if resamples:
        if block is None:
            raise DataError("resamples are drawn by block. Pass block: ids of days, customers or rows")
        drawn = [
            _resampled(step[kind], mass[kind], np.asarray(block)[kind], steps + 1, resamples, seed) for kind in kinds
        ]
        columns = [np.concatenate(pair) for pair in zip(columns, drawn, strict=True)]
    tp, fp, tied = columns
    return PartitionCounts(cut, tp, fp, tied, rows=len(labels), found=int(hit.sum()))


def _resampled(
    step: NDArray[Any], mass: FloatArray, block: NDArray[Any], width: int, resamples: int, seed: int
) -> FloatArray:
    """(resamples, width) sums by step, each block counted as often as its Poisson weight says."""
    from scipy.sparse import coo_array

    out = np.zeros((resamples, width))
    blocks, place = np.unique(block.astype(np.int64, copy=False), return_inverse=True)
    per = max(1, _AT_ONCE // max(1, resamples))
    sums = coo_array((mass, (place, step)), shape=(len(blocks), width)).tocsr()
    for start in range(0, len(blocks), per):
        part = slice(start, start + per)
        out += (sums[part].T @ poisson_weights(blocks[part], resamples, seed).T).T
    return out


def poisson_weights(block: NDArray[np.int64], resamples: int, seed: int = 0) -> FloatArray:
    """Return (resamples, n) Poisson weights of mean 1, drawn from a hash of each block's id and nothing else."""
    from scipy.stats import poisson

    bounds = poisson.cdf(np.arange(20), 1.0)
    ids = np.asarray(block).astype(np.int64).view(np.uint64)
    weights = np.empty((resamples, len(ids)))
    for number in range(resamples):
        place = (mix(ids, (seed * 1_000_003 + number) * 2 + _SALT) >> np.uint64(11)) * 2.0**-53
        weights[number] = np.searchsorted(bounds, place, side="right")
    return weights
