"""Which scored rows to look at next, with known probabilities, and what the labels of so few rows say of all.

**Choosing** is Poisson sampling with permanent random numbers: a row has one number in [0, 1) for ever, drawn from its
id, and is chosen when its number lies below its inclusion probability. A second draw with a larger budget therefore
holds the first one, and a row that any of several draws chose has the largest of its probabilities: what is recorded
for a chosen row is exact without a look at those that were not chosen. Probabilities follow from scores alone.

**Estimating** never takes the few labels for all rows. Two ways, both honest about what they assume:

- `horvitz_thompson_ap` weights each label by its inverse probability. Unbiased whatever the scores are worth; from
  some hundred labels its error is large, and so skewed that no interval from its own resamples holds.
- `complete` learns from the labels how true the scores are (a smooth curve over the log-odds of the score, how much it
  may bend decided by the labels themselves) and draws the labels that nobody has seen from it, many times. What it
  assumes is that the truth moves smoothly with the score.

Sources: Ohlsson, Journal of Official Statistics, 1995 (permanent random numbers); Horvitz and Thompson, Journal of the
American Statistical Association, 1952; Little and Rubin, Statistical Analysis with Missing Data (that a choice by the
score alone may be left out of the likelihood given the score).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rareclass.core.dataset import BoolArray, FloatArray, IntArray
from rareclass.core.estimate import Estimate
from rareclass.core.hashing import name_hash, text_hash, unit
from rareclass.core.log_odds import expit, logit

TOP, UNCERTAIN, CONTROL = "top", "uncertain", "control"
REASONS = (TOP, UNCERTAIN, CONTROL)
"""Why a row was chosen: among the highest scores, because its label is uncertain, or by an equal chance for all."""

FIT_WEIGHT = 5.0
"""Weight with which a chosen row enters a fit at most. What is judged with it keeps its own: one row that stands for
hundreds pulls trees about (decision 0042)."""

DRAWS = 400
"""Completions behind an interval."""


# --- choosing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Design:
    """How a budget is spent.

    budget : rows to be looked at, on average over draws
    top : share of the budget for the highest scores, each of which is taken for certain
    control : share of the budget that gives all other rows the same chance; what is left goes to rows in proportion to
        ``sqrt(p (1 - p))`` of their score p
    ranks : scores are ranks of a detector and no probabilities
    """

    budget: float
    top: float = 0.3
    control: float = 0.1
    ranks: bool = False


@dataclass(frozen=True, slots=True)
class Chances:
    """Inclusion probabilities of (n,) rows. total : of being chosen at all; control : of being chosen as a control"""

    total: FloatArray
    control: FloatArray

    def chosen(self, number: FloatArray) -> IntArray:
        """Return the places of the rows whose permanent ``number`` lies below their probability."""
        return np.flatnonzero(number < self.total)

    def reasons(self, number: FloatArray) -> NDArray[np.object_]:
        """Return (n,) why each row is chosen where it is."""
        found = np.where(number < self.control, CONTROL, UNCERTAIN).astype(object)
        found[self.total >= 1] = TOP
        return found


def permanent_numbers(request_id: pd.Series[Any], row: pd.Series[Any], *, model: str, seed: int) -> FloatArray:
    """Return (n,) numbers in [0, 1), one for ever per row of a model: uniform, and blind to everything but the id."""
    name = request_id.astype(str) + ":" + row.astype(str)
    return unit(text_hash(name) ^ name_hash(f"review:{model}"), seed)


def believed(score: FloatArray, *, ranks: bool = False) -> FloatArray:
    """Return (n,) what scores say of the probability of the rare class, inside (0, 1).

    ranks : of a detector only the order means something; its r-th row counts as 1 in r + 1
    """
    if not ranks:
        return np.asarray(np.clip(score, 1e-7, 1 - 1e-7), dtype=np.float64)
    order = np.argsort(np.argsort(-score, kind="stable"), kind="stable")
    return np.asarray(1.0 / (order + 2.0), dtype=np.float64)


def chances(score: FloatArray, design: Design) -> Chances:
    """Return the inclusion probabilities of rows with these scores; they sum to the budget.

    The highest scores have probability 1 as far as their share goes (equal scores share one fate, so that no chance
    decides which of them is certain). All others have the control's chance plus one in proportion to the uncertainty.
    """
    n = len(score)
    if design.budget >= n:
        return Chances(np.ones(n), np.zeros(n))
    total, control = np.zeros(n), np.zeros(n)
    most = int(design.top * design.budget)
    order = np.argsort(-score, kind="stable")
    sure = score > score[order[most]]
    rest, left = ~sure, design.budget - sure.sum()
    total[sure] = 1.0
    p = believed(score, ranks=design.ranks)[rest]
    control[rest] = min(1.0, min(design.control * design.budget, left) / rest.sum())
    size = np.sqrt(p * (1 - p))
    total[rest] = _filled(control[rest], size, left)
    return Chances(total, control)


def _filled(base: FloatArray, size: FloatArray, total: float) -> FloatArray:
    """Return min(1, base + c x size) with the c at which it sums to ``total``."""
    full = np.zeros(len(base), dtype=bool)
    while not full.all():
        c = (total - full.sum() - base[~full].sum()) / size[~full].sum()
        found = np.where(full, 1.0, base + max(c, 0.0) * size)
        over = (found >= 1) & ~full
        if not over.any():
            return found
        full |= over
    return np.ones(len(base))


# --- estimating by weights -------------------------------------------------------------------------------------------


def horvitz_thompson_ap(
    score: FloatArray, label: FloatArray, probability: FloatArray, mass: FloatArray | None = None
) -> float:
    """Return average precision of all (n,) rows from the labels of the chosen ones, each weighted by 1 / probability.

    label : 0, 1 or NaN where nobody looked;  probability : of being chosen, read where there is a label
    mass : (n,) rows each stands for; None: one

    How many rows lie above a score is known, so only hits are estimated. A pair of hits has the product of both weights
    and a hit with itself one of them: the sum over hits is unbiased, and only its division by the estimated number of
    positives is not, by an error that falls with the number of labels. NaN without a positive.
    """
    hit = np.flatnonzero(label == 1)
    if not len(hit):
        return math.nan
    hit = hit[np.argsort(-score[hit], kind="stable")]
    own = np.ones(len(hit)) if mass is None else mass[hit]
    weight, value = own / probability[hit], score[hit]
    order = np.argsort(-score, kind="stable")
    alerts = np.cumsum(np.ones(len(score)) if mass is None else mass[order])
    alerts = alerts[np.searchsorted(-score[order], -value, side="right") - 1]
    above = np.cumsum(weight)
    last = np.searchsorted(-value, -value, side="right") - 1  # equal scores are one cut-off
    return float((weight * (above[last] - weight + own) / alerts).sum() / above[-1])


def answered(probability: FloatArray, reason: NDArray[np.object_], label: FloatArray) -> FloatArray:
    """Return (n,) probabilities of being chosen *and* answered: each reason's, times the share of it that has a label.

    probability, reason, label : of the chosen rows (NaN: not looked at yet). Who stops half-way down a list leaves out
    one kind of rows more than another; within a kind the answered ones stand for the others. 0 where nobody of a kind
    has been looked at.
    """
    found = probability.astype(np.float64, copy=True)
    known = ~np.isnan(label)
    for kind in REASONS:
        mine = reason == kind
        if mine.any():
            found[mine] *= known[mine].mean()
    return found


# --- estimating by completion ----------------------------------------------------------------------------------------

KNOTS = (4, 16)
"""Points at which the curve is free, at least and at most: one each .8 of log-odds."""
REACH = 14.0
"""Log-odds beyond which scores are as good as certain."""
EXACT, CELLS = 200, 300
"""Ranks that are cells of their own, and cells that all the others are pooled into, ever wider."""

POOLS = 500
"""Stretches of log-odds that labels are pooled into, where there are more labels."""

_LEVEL, _TILT, _BEND = (0.1, 0.4, 1.0), (0.03, 0.1, 0.3), (0.05, 0.2, 0.6)
_BELIEF = (0.5, 0.3, 0.2)
"""Standard deviations of what may be wrong with the scores' log-odds: their level, their slope and their shape, each
small, middling or large; and how much each is believed before the labels speak (chosen on data, decision 0042)."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """All rows of a window, the labels of some of which are known.

    score : (n,);  label : (n,) 0, 1, NaN = unknown
    decision : (n,) 0 or 1;  mass : (n,) rows each stands for, at least 1 (None: one)
    ranks : scores are ranks of a detector
    """

    score: FloatArray
    label: FloatArray
    decision: FloatArray | None = None
    mass: FloatArray | None = None
    ranks: bool = False

    @property
    def known(self) -> BoolArray:
        """(n,) where a label is known."""
        return ~np.isnan(self.label)


@dataclass(frozen=True, slots=True)
class Completed:
    """Many completions of a window, pooled into cells of neighbouring ranks, best first.

    positives : (R, 2, C) rows of the rare class in each completion, among those decided 0 and those decided 1
    rows : (2, C) all rows;  tied : (C,) whether all of a cell's scores are equal
    labelled, found : how many labels, and how many of the rare class, it rests on
    """

    positives: FloatArray
    rows: FloatArray
    tied: BoolArray
    labelled: int
    found: int

    def ap(self, odds: float | None = None) -> FloatArray:
        """(R,) average precision, with ``odds`` at these odds of a positive."""
        hits, rows = self.positives.sum(axis=1), self.rows.sum(axis=0)
        factor: Any = 1.0
        if odds is not None:
            total = hits.sum(axis=1, keepdims=True)
            factor = total / (odds * np.maximum(rows.sum() - total, 1e-12))
        ahead, alarms = np.cumsum(hits, axis=1) - hits, rows - hits
        before = np.cumsum(alarms, axis=1) - alarms
        # within a cell of several scores a hit has, on average, half of the cell's rows before it
        own = np.where(self.tied, hits, (hits + 1) / 2)
        beside = np.where(self.tied, alarms, alarms / 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = (ahead + own) / (ahead + own + factor * (before + beside))
            return np.asarray(np.where(hits > 0, hits * precision, 0.0).sum(axis=1) / hits.sum(axis=1))

    def roc_auc(self) -> FloatArray:
        """(R,) area under the ROC curve, equal scores and those of one cell counting half."""
        hits, rows = self.positives.sum(axis=1), self.rows.sum(axis=0)
        alarms = rows - hits
        ahead = np.cumsum(alarms, axis=1) - alarms / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(1 - (hits * ahead).sum(axis=1) / (hits.sum(axis=1) * alarms.sum(axis=1)))

    @property
    def total(self) -> FloatArray:
        """(R,) positives."""
        return np.asarray(self.positives.sum(axis=(1, 2)))

    @property
    def caught(self) -> FloatArray:
        """(R,) positives that were decided 1."""
        return np.asarray(self.positives[:, 1].sum(axis=1))

    def estimate(self, drawn: FloatArray, confidence: float = 0.95) -> Estimate:
        """Return the middle of completions with the interval that holds ``confidence`` of them."""
        kept = drawn[np.isfinite(drawn)]
        if not len(kept):
            return Estimate(math.nan, positives=self.found, rows=self.labelled)
        low, middle, high = np.quantile(kept, [(1 - confidence) / 2, 0.5, (1 + confidence) / 2])
        return Estimate(float(middle), float(low), float(high), self.found, self.labelled)


def complete(rows: Sampled, *, draws: int = DRAWS, seed: int = 0) -> Completed:
    """Draw the labels that nobody has seen, many times, from what the known ones say about the scores.

    Rows have to be chosen by their score alone (`chances`), or all be known.
    """
    rng = np.random.default_rng(seed)
    n, known = len(rows.score), rows.known
    order = np.argsort(-rows.score, kind="stable")
    score, label, known = rows.score[order], rows.label[order], known[order]
    decided = (np.zeros(n) if rows.decision is None else rows.decision[order] >= 1).astype(np.int64)
    mass = np.ones(n) if rows.mass is None else rows.mass[order]
    z = np.clip(logit(believed(score, ranks=rows.ranks)), -REACH, REACH)
    cell, tied = _cells(score)
    count = len(tied)
    middle = np.bincount(cell, mass * z, count) / np.bincount(cell, mass, count)
    place = decided * count + cell
    unseen = np.bincount(place, mass - known, 2 * count)
    found = np.bincount(place[known], label[known], 2 * count)
    knots = np.linspace(z.min(), z.max() + 1e-9, int(np.clip((z.max() - z.min()) / 0.8 + 2, *KNOTS)))
    curves = _curves(z[known], label[known], knots, draws, rng)
    left = np.rint(np.maximum(unseen, 0)).astype(np.int64)
    used = np.flatnonzero(left)
    drawn = np.tile(found, (draws, 1))
    drawn[:, used] += rng.binomial(left[used], expit(middle + curves @ _hats(middle, knots).T)[:, used % count])
    total = np.bincount(place, mass, 2 * count)
    cells = np.asarray(drawn.reshape(draws, 2, count), dtype=np.float64)
    masses = np.asarray(total.reshape(2, count), dtype=np.float64)
    return Completed(cells, masses, tied, int(known.sum()), int((label == 1).sum()))


def _cells(score: FloatArray) -> tuple[IntArray, BoolArray]:
    """Cell of each of (n,) scores in falling order, and whether a cell has one score only; equal scores stay
    together.
    """
    n = len(score)
    starts = np.flatnonzero(np.r_[True, score[1:] != score[:-1]])
    wanted = np.r_[np.arange(min(EXACT, n)), np.geomspace(min(EXACT, n), n, CELLS).astype(np.int64)]
    edges = np.unique(starts[np.searchsorted(starts, wanted[wanted < n], side="right") - 1])
    ends = np.r_[edges[1:], n] - 1
    return np.searchsorted(edges, np.arange(n), side="right") - 1, score[edges] == score[ends]


def _hats(z: FloatArray, knots: FloatArray) -> FloatArray:
    """(n, k) share of each knot in the straight line between two of them."""
    return np.stack([np.interp(z, knots, one) for one in np.eye(len(knots))], axis=1)


def _curves(z: FloatArray, y: FloatArray, knots: FloatArray, draws: int, rng: np.random.Generator) -> FloatArray:
    """(draws, k) what is to be added to log-odds at the knots, given labels ``y`` at log-odds ``z``.

    A Gaussian process whose scales are averaged over, each scale weighted by how well it explains the labels (Laplace's
    approximation of the evidence): labels that agree with the scores make the curve stiff.
    """
    z, seen, hits = _pooled(z, y)
    kernels, belief = _kernels(knots, float(np.average(z, weights=hits)) if hits.any() else float(knots[-1]))
    modes, precisions, evidence = _laplace(z, seen, hits, _hats(z, knots), kernels)
    evidence += np.log(belief)
    weight = np.exp(evidence - evidence.max())
    parts = []
    for mode, precision, size in zip(modes, precisions, rng.multinomial(draws, weight / weight.sum()), strict=True):
        if size:
            factor = np.linalg.cholesky(np.linalg.inv(precision))
            parts.append(mode + rng.standard_normal((size, len(mode))) @ factor.T)
    return np.concatenate(parts)


def _pooled(z: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean log-odds, labels and hits of at most POOLS stretches of log-odds: what many labels cost no more than few."""
    if len(z) <= POOLS:
        return z, np.ones(len(z)), y
    at = np.minimum((z - z.min()) / max(float(np.ptp(z)), 1e-12) * POOLS, POOLS - 1).astype(np.int64)
    seen = np.bincount(at, minlength=POOLS).astype(np.float64)
    used = seen > 0
    hits = np.asarray(np.bincount(at, y, POOLS), dtype=np.float64)
    return np.bincount(at, z, POOLS)[used] / seen[used], seen[used], hits[used]


def _kernels(knots: FloatArray, centre: float) -> tuple[FloatArray, FloatArray]:
    """(m, k, k) covariances of the curve, and (m,) how much each is believed before the labels speak.

    Away from the ``centre``, where hits are known, a bend is a random walk: what is seen last is carried on, less and
    less surely.
    """
    apart = knots - centre
    side = np.sign(apart)[:, None] == np.sign(apart)
    walk = np.where(side, np.minimum(np.abs(apart)[:, None], np.abs(apart)), 0.0)
    scales = np.array(list(itertools.product(_LEVEL, _TILT, _BEND)))
    belief = np.prod(list(itertools.product(_BELIEF, repeat=3)), axis=1)
    parts = np.stack([np.ones_like(walk), np.outer(apart, apart), walk])
    return np.einsum("ms,sab->mab", scales**2, parts) + 1e-6 * np.eye(len(knots)), belief


def _laplace(
    z: FloatArray, seen: FloatArray, hits: FloatArray, hats: FloatArray, kernels: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(m, k) mode, (m, k, k) precision there and (m,) log evidence of the curve under m kernels: damped Newton on
    all at once.
    """
    inverse = np.linalg.inv(kernels)
    curve = np.zeros(kernels.shape[:2])
    pairs = (hats[:, :, None] * hats[:, None, :]).reshape(len(hats), -1)
    for _ in range(60):
        p = expit(z + curve @ hats.T)
        gradient = (hits - seen * p) @ hats - (inverse @ curve[..., None])[..., 0]
        precision = ((seen * p * (1 - p)) @ pairs).reshape(kernels.shape) + inverse
        step = np.linalg.solve(precision, gradient[..., None])[..., 0]
        largest = np.abs(step).max(axis=1)
        curve = curve + step * np.minimum(1.0, 2.0 / np.maximum(largest, 1e-12))[:, None]
        if largest.max() < 1e-5:
            break
    margin = z + curve @ hats.T
    likely = (hits * margin - seen * np.logaddexp(0, margin)).sum(axis=1)
    pulled = (curve * (inverse @ curve[..., None])[..., 0]).sum(axis=1)
    spread = np.linalg.slogdet(precision)[1] + np.linalg.slogdet(kernels)[1]
    return curve, precision, likely - 0.5 * (pulled + spread)


# --- planning --------------------------------------------------------------------------------------------------------


def expected_width(
    score: FloatArray,
    probability: FloatArray,
    *,
    ranks: bool = False,
    repeats: int = 8,
    confidence: float = 0.95,
    seed: int = 0,
) -> float:
    """Return how wide the interval of average precision is on average, if the scores are calibrated.

    Labels are drawn from the scores, rows by their inclusion ``probability``, and the interval is made as it will be;
    NaN where no repetition finds anything.
    """
    rng = np.random.default_rng(seed)
    p, n, widths = believed(score, ranks=ranks), len(score), []
    for _ in range(repeats):
        label = np.where(rng.random(n) < probability, rng.random(n) < p, np.nan)
        found = complete(Sampled(score, label, ranks=ranks), draws=200, seed=int(rng.integers(2**31)))
        ap = found.estimate(found.ap(), confidence)
        widths.append(ap.high - ap.low)
    kept = [width for width in widths if math.isfinite(width)]
    return float(np.mean(kept)) if kept else math.nan
