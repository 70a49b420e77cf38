"""What a model is worth on rows it has not seen: ranking, decisions, calibration and money, all with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import xlogy

from rareclass import config
from rareclass.core.bootstrap import (
    DEFAULT_BOOTSTRAP,
    Bootstrap,
    Resamples,
    Sample,
    as_scores,
    bounded_estimate,
    estimate,
    share_estimate,
    unbiased_estimate,
)
from rareclass.core.costs import CostArrays
from rareclass.core.dataset import AnyArray, BoolArray, FloatArray, IntArray, Rows, Schema
from rareclass.core.estimate import Estimate, wilson
from rareclass.core.jsonable import Jsonable
from rareclass.core.ranking import (
    RankingTable,
    ap_of_sums,
    auc_of_sums,
    average_precision,
    bootstrap_average_precision,
    curves,
)
from rareclass.errors import ConfigError, DataError, nearest

UNTUNED = 0.5
"""The threshold of somebody who tunes none."""

_BINS = 15
_MAX_LEVELS = 20
_BOUNDED = ("f1", "f2", "gmean", "balanced_accuracy", "macro_precision", "macro_recall", "macro_f1")
"""Metrics of a decision between 0 and 1 that are no share of some rows."""


def thinned(y: ArrayLike, ratio: float, seed: int = 0) -> IntArray:
    """Return the sorted index of all positives and of at most ``ratio`` random negatives for each."""
    labels = np.asarray(y)
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    size = min(len(negative), round(ratio * len(positive)))
    chosen = np.random.default_rng(seed).choice(negative, size, replace=False) if size else negative[:0]
    return np.sort(np.concatenate([positive, chosen])).astype(np.int64)


# --------------------------------------------------------------------------------------------- calibration


def _mean(values: FloatArray, weight: FloatArray | None) -> float:
    if len(values) == 0:
        return math.nan
    return float(values.mean()) if weight is None else float(values @ weight / weight.sum())


def _row_log_loss(y: IntArray, score: FloatArray) -> FloatArray:
    p = np.clip(score, 1e-15, 1 - 1e-15)
    return np.asarray(-(xlogy(y, p) + xlogy(1 - y, 1 - p)), dtype=np.float64)


def brier(y: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Return the mean squared error of the scores as probabilities."""
    labels, scores, weights = as_scores(y, score, weight)
    return _mean((scores - labels) ** 2, weights)


def log_loss(y: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Return the mean log loss in nats per row; scores are kept 1e-15 away from 0 and 1."""
    labels, scores, weights = as_scores(y, score, weight)
    return _mean(_row_log_loss(labels, scores), weights)


def equal_mass_bins(score: ArrayLike, bins: int = _BINS) -> IntArray:
    """Return (n,) bin 0..bins-1 of about equally many rows, in the order of the scores; equal scores share a bin."""
    scores = np.asarray(score, dtype=np.float64)
    if len(scores) == 0:
        return np.zeros(0, dtype=np.int64)
    edges = np.quantile(scores, np.arange(1, bins) / bins, method="inverted_cdf")
    return np.searchsorted(edges, scores, side="left").astype(np.int64)


def ece(y: ArrayLike, score: ArrayLike, bins: int = _BINS, weight: ArrayLike | None = None) -> float:
    """Return the expected calibration error: mean |observed rate - mean score| over bins of equal mass."""
    labels, scores, weights = as_scores(y, score, weight)
    mass = np.ones(len(labels)) if weights is None else weights
    where = equal_mass_bins(scores, bins)
    observed, expected = np.bincount(where, mass * labels, bins), np.bincount(where, mass * scores, bins)
    return float(np.abs(observed - expected).sum() / mass.sum()) if len(labels) else math.nan


def mean_score_ratio(y: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Return mean score / prevalence: 1 where calibrated in the large, NaN without positives."""
    labels, scores, weights = as_scores(y, score, weight)
    prevalence = _mean(labels.astype(np.float64), weights)
    return _mean(scores, weights) / prevalence if prevalence > 0 else math.nan


# ----------------------------------------------------------------------------------------------- decisions


def _share(top: FloatArray, bottom: FloatArray) -> FloatArray:
    """A share of what is there; NaN where nothing is."""
    return np.asarray(np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0))


def _multiple(top: FloatArray, bottom: FloatArray) -> FloatArray:
    """How many times ``bottom`` a positive amount is; without any bound where that is 0."""
    return np.asarray(np.divide(top, bottom, out=np.full(np.shape(top), np.inf), where=bottom > 0))


@dataclass(frozen=True)
class _Sums:
    """Sums of quantities of rows by name, so that no column is known by its number.

    total : over the rows, (repeats,) or (repeats, k);  drawn : over each resample, (repeats * n_boot,) or with k
    """

    total: Mapping[str, FloatArray]
    drawn: Mapping[str, FloatArray]

    @staticmethod
    def of(quantities: Mapping[str, FloatArray], resamples: Resamples) -> _Sums:
        """Sum quantities of (n,) rows, or of (n, k), all on the same resamples, which are drawn once."""
        tables = [values.reshape(len(values), -1) for values in quantities.values()]
        ends = np.cumsum([table.shape[1] for table in tables])[:-1]
        columns = np.concatenate(tables, axis=1)

        def by_name(sums: FloatArray) -> dict[str, FloatArray]:
            parts = dict(zip(quantities, np.split(sums, ends, axis=1), strict=True))
            return {name: part[:, 0] if quantities[name].ndim == 1 else part for name, part in parts.items()}

        return _Sums(by_name(columns.sum(axis=0)[None]), by_name(resamples.sums(columns)))

    @staticmethod
    def together(repeats: Sequence[_Sums]) -> _Sums:
        """Put the sums of repeats one after the other."""
        return _Sums(
            {name: np.concatenate([sums.total[name] for sums in repeats]) for name in repeats[0].total},
            {name: np.concatenate([sums.drawn[name] for sums in repeats]) for name in repeats[0].drawn},
        )

    def share(self, top: str, bottom: str) -> tuple[FloatArray, FloatArray]:
        """One sum / another: of each repeat, and of each resample."""
        return _share(self.total[top], self.total[bottom]), _share(self.drawn[top], self.drawn[bottom])


def confusion_metrics(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike, tn: ArrayLike) -> dict[str, FloatArray]:
    """Return the metrics of a decision from its confusion, for numbers or arrays of them.

    precision without alerts, recall without positives and specificity without negatives are NaN (nothing to judge);
    the F measures, MCC and G-mean are then 0 where the rare class was missed, as scikit-learn has it.
    """
    tp, fp, fn, tn = (np.asarray(part, dtype=np.float64) for part in (tp, fp, fn, tn))
    alerts, positives, negatives = tp + fp, tp + fn, tn + fp
    precision, recall, specificity = _share(tp, alerts), _share(tp, positives), _share(tn, negatives)
    f1 = np.where(positives > 0, np.nan_to_num(_share(2 * tp, positives + alerts)), np.nan)
    f2 = np.where(positives > 0, np.nan_to_num(_share(5 * tp, 4 * positives + alerts)), np.nan)
    other = np.nan_to_num(_share(2 * tn, 2 * tn + fp + fn))
    scale = np.sqrt(alerts * positives * negatives * (tn + fn))
    return {
        "precision": precision,
        "recall": recall,
        "specificity": specificity,
        "f1": f1,
        "f2": f2,
        "mcc": np.nan_to_num(_share(tp * tn - fp * fn, scale)),
        "gmean": np.sqrt(recall * specificity),
        "balanced_accuracy": (recall + specificity) / 2,
        "macro_precision": (np.nan_to_num(precision) + np.nan_to_num(_share(tn, tn + fn))) / 2,
        "macro_recall": (np.nan_to_num(recall) + np.nan_to_num(specificity)) / 2,
        "macro_f1": (np.nan_to_num(f1) + other) / 2,
        "micro_f1": _share(tp + tn, alerts + tn + fn),
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "tn": tn,
        "alerts": alerts,
    }


def decision_metrics(y: ArrayLike, decision: ArrayLike, weight: ArrayLike | None = None) -> dict[str, float]:
    """Return precision, recall, specificity, f1, f2, mcc, gmean,
    macro and micro averages and the (weighted) confusion.
    """
    labels, flags, weights = as_scores(y, np.asarray(decision, dtype=np.float64), weight)
    mass = np.ones(len(labels)) if weights is None else weights
    yes, rare = flags > 0, labels == 1
    cells = [float(mass[cell].sum()) for cell in (rare & yes, ~rare & yes, rare & ~yes, ~rare & ~yes)]
    return {name: float(value) for name, value in confusion_metrics(*cells).items()}


@dataclass(frozen=True)
class Money(Jsonable):
    """What decisions cost, in ``currency``, against doing nothing (every positive missed) and flagging every row."""

    cost: Estimate
    cost_nothing: Estimate
    cost_everything: Estimate
    saving_vs_nothing: Estimate
    saving_vs_everything: Estimate
    per_1000_rows: Estimate
    currency: str = "cost units"
    given: bool = True
    note: str = ""


def money(
    y: ArrayLike,
    decision: ArrayLike,
    *,
    costs: CostArrays,
    weight: ArrayLike | None = None,
    block: NDArray[Any] | None = None,
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP,
) -> Money:
    """Return the cost of decisions with intervals; savings are paired on the same resamples."""
    labels, flags, weights = as_scores(y, np.asarray(decision, dtype=np.float64), weight)
    mass = np.ones(len(labels)) if weights is None else weights
    resamples = bootstrap.of_rows(len(labels), block)
    sums = _Sums.of({"rows": mass, **_spent(labels, flags > 0, costs, mass)}, resamples)
    return _money(sums, costs, bootstrap.confidence, int(labels.sum()), len(labels))


def _spent(y: IntArray, flagged: BoolArray, costs: CostArrays, mass: FloatArray) -> dict[str, FloatArray]:
    """(n,) each: cost of the decision, of doing nothing, of flagging everything."""
    miss = np.where(y == 1, costs.misses(len(y)), 0.0) * mass
    alarm = np.where(y == 0, costs.alarms(len(y)), 0.0) * mass
    return {"cost": np.where(flagged, alarm, miss), "nothing": miss, "everything": alarm}


def _money(sums: _Sums, costs: CostArrays, confidence: float, positives: int, rows: int) -> Money:
    """Money from the sums of the rows' weights ("rows") and of what `_spent` names; of repeats, their mean."""
    exact = {name: total.mean(axis=0, keepdims=True) for name, total in sums.total.items()}

    def judged(pick: Callable[[Mapping[str, FloatArray]], FloatArray]) -> Estimate:
        return estimate(float(pick(exact)[0]), pick(sums.drawn), confidence, positives, rows)

    return Money(
        judged(lambda sums: sums["cost"]),
        judged(lambda sums: sums["nothing"]),
        judged(lambda sums: sums["everything"]),
        judged(lambda sums: sums["nothing"] - sums["cost"]),
        judged(lambda sums: sums["everything"] - sums["cost"]),
        judged(lambda sums: _share(1000 * sums["cost"], sums["rows"])),
        costs.currency,
        costs.given,
        costs.note,
    )


def precision_at_k_per_day(sample: Sample, k: int, *, bootstrap: Bootstrap = DEFAULT_BOOTSTRAP) -> Estimate:
    """Return the mean over days of the precision among the k best rows of each day (all rows on days with fewer).

    sample : with its ``time``, its weights, and its ``share`` of all rows of a day
    NaN where the first row of some day stands for so many rows that the best k cannot be told (`_BestOfDays`).
    Rows that tie for the last places count with their expected precision. Days are resampled.
    Source: Le Borgne et al., Fraud Detection Handbook, 2022 (card precision top-k, here on rows).
    """
    return _precisions_per_day(sample, (k,), bootstrap)[k]


def _precisions_per_day(sample: Sample, ks: Sequence[int], bootstrap: Bootstrap) -> dict[int, Estimate]:
    """The same of several k: the days are sorted once."""
    labels, scores, weights = sample.checked()
    if len(labels) == 0:
        return dict.fromkeys(ks, Estimate(math.nan))
    best, positives = _BestOfDays.of(labels, scores, weights, np.asarray(sample.time), sample.share), int(labels.sum())
    by_k = dict.fromkeys(ks, Estimate(math.nan, positives=positives, rows=len(labels)))
    for k in ks:
        if best.told_from > k:
            continue
        by_day = best.precision(k)
        mean = float(by_day.mean())
        if len(by_day) > 1:
            drawn = bootstrap.of_rows(len(by_day)).sums(by_day) / len(by_day)
            by_k[k] = estimate(mean, drawn, bootstrap.confidence, positives, len(labels))
        else:
            by_k[k] = Estimate(mean, positives=positives, rows=len(labels))
    return by_k


def _since(running: FloatArray, first: IntArray, day: IntArray) -> FloatArray:
    """(n,) running sums that begin anew with the ``first`` row of each day."""
    before = np.append(0.0, running)[first]
    return np.asarray(running - before[day])


@dataclass(frozen=True)
class _BestOfDays:
    """Rows by day, the best first, and how many rows of all of the day each stands for.

    That is its weight over the share that was drawn. A row that stands for w rows is not the first of those but, on
    average, the last: so that what it stands for lies around it, (w - 1) / 2 less of the best k is left for it and what
    follows, with the w that is usual from the top of the day down to it. Without that the figure would reach further
    down, where the rate of positives is lower. A k of less than one row cannot be told.

    Attributes
    ----------
    day, expected, stands, above, late : (n,) number of the day, rate of positives among the rows of this score on this
        day, rows it stands for, those that rows before it stand for, and (w - 1) / 2
    total : (n_days,) rows that all stand for
    told_from : the least k that can be told on every day
    """

    day: IntArray
    expected: FloatArray
    stands: FloatArray
    above: FloatArray
    late: FloatArray
    total: FloatArray
    told_from: float

    @staticmethod
    def of(
        y: IntArray, score: FloatArray, weight: FloatArray | None, time: NDArray[np.datetime64], share: float
    ) -> _BestOfDays:
        """share : of all rows of a day that these are, drawn at random"""
        day = np.unique(np.asarray(time).astype("datetime64[D]"), return_inverse=True)[1]
        order = np.lexsort((-score, day))
        day, ranked = day[order], score[order]
        stands = (np.ones(len(y)) if weight is None else weight[order]) / share
        tie = np.cumsum(np.append(True, (day[1:] != day[:-1]) | (ranked[1:] != ranked[:-1]))) - 1
        expected = (np.bincount(tie, stands * y[order]) / np.bincount(tie, stands))[tie]
        first = np.searchsorted(day, np.arange(day[-1] + 1))
        last = np.searchsorted(tie, tie, side="right") - 1
        mass, squares = (_since(np.cumsum(values), first, day) for values in (stands, stands**2))
        usual = squares[last] / mass[last]  # by what they stand for, and the same for all rows of one score
        told_from = float((1.5 * usual[first] - 0.5).max())
        total = np.asarray(np.bincount(day, stands), dtype=np.float64)
        return _BestOfDays(day, expected, stands, mass - stands, (usual - 1) / 2, total, told_from)

    def precision(self, k: int) -> FloatArray:
        """(n_days,) precision of the best k of each day, of all rows on days with no more than k."""
        counts = np.where(self.total[self.day] <= k, self.stands, np.clip(k - self.late - self.above, 0.0, self.stands))
        return np.asarray(np.bincount(self.day, self.expected * counts) / np.bincount(self.day, counts))


# -------------------------------------------------------------------------------------------------- slices


@dataclass(frozen=True)
class SliceResult(Jsonable):
    """One level of one column."""

    column: str
    level: str
    rows: int
    positives: int
    ap: Estimate
    recall: Estimate
    precision: Estimate


def slices(
    rows: Rows,
    score: ArrayLike,
    flagged: ArrayLike,
    columns: Sequence[str] = (),
    *,
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP,
) -> list[SliceResult]:
    """Return AP, recall and precision by level of each column (default: up to three categories of the schema).

    score, flagged : (n,) scores and decisions, or (repeats, n) of cross-fitting; then values are means of the repeats,
        and intervals those of the resamples of all of them
    Numbers are cut at their quartiles; of a category the 20 most frequent levels are shown; missing is a level.
    Raises ConfigError for a column that is no feature.
    """
    names = sliced(rows.schema, columns)
    lines, decided = np.atleast_2d(np.asarray(score, dtype=np.float64)), np.atleast_2d(np.asarray(flagged, dtype=bool))
    block, results = rows.block(), []
    for name in names:
        for level, mask in levels(rows, name):
            own = bootstrap.of_rows(int(mask.sum()), None if block is None else block[mask])
            weight = None if rows.weight is None else rows.weight[mask]
            ap, recall, precision = _slice(
                rows.y[mask], lines[:, mask], decided[:, mask], weight, own, bootstrap.confidence
            )
            positives = int(rows.y[mask].sum())
            results.append(SliceResult(name, level, int(mask.sum()), positives, ap, recall, precision))
    return results


def sliced(schema: Schema, columns: Sequence[str] = ()) -> list[str]:
    """Return the columns that are reported by: those asked for, else up to three categories.

    Raises ConfigError for no feature.
    """
    for name in columns:
        if name not in schema.names:
            raise ConfigError(
                f"evaluate.slices: '{name}' is no feature.{nearest(name, schema.names)} Set it to features of the model"
            )
    return list(columns) or [f.name for f in schema.features if f.kind == "categorical" and len(f.categories) > 1][:3]


def levels(rows: Rows, name: str) -> list[tuple[str, BoolArray]]:
    """Return the levels of a column with the rows they hold, most frequent first; quartiles in their order."""
    position = rows.schema.names.index(name)
    values, feature = rows.x[:, position], rows.schema.features[position]
    there = ~np.isnan(values)
    named: list[tuple[str, BoolArray]]
    if feature.kind == "categorical":
        codes, counts = np.unique(values[there].astype(np.int64), return_counts=True)
        best = codes[np.argsort(-counts, kind="stable")][:_MAX_LEVELS]
        named = [(feature.categories[code], values == code) for code in best]
    else:
        distinct = np.unique(values[there])
        if len(distinct) <= 5:
            named = [(f"{value:g}", values == value) for value in distinct]
        else:
            edges = np.unique(np.quantile(values[there], [0, 0.25, 0.5, 0.75, 1]))
            named = []
            for i, (low, high) in enumerate(pairwise(edges)):
                inside = (values >= low if i == 0 else values > low) & (values <= high)
                named.append((f"{low:g} to {high:g}" if i == 0 else f"above {low:g} to {high:g}", inside))
    if not there.all():
        named.append(("missing", ~there))
    return named


def _slice(
    y: IntArray,
    score: FloatArray,
    flagged: BoolArray,
    weight: FloatArray | None,
    resamples: Resamples,
    confidence: float,
) -> tuple[Estimate, Estimate, Estimate]:
    """AP, recall and precision of the rows of one level; score, flagged : (repeats, n)"""
    mass, rare = np.ones(len(y)) if weight is None else weight, y == 1
    options = (confidence, int(rare.sum()), len(y))
    sums = _Sums.together(
        [
            _Sums.of({"hits": mass * (yes & rare), "positives": mass * rare, "flagged": mass * yes}, resamples)
            for yes in flagged
        ]
    )

    def share_of_hits(of: str, size: float) -> Estimate:
        exact, drawn = sums.share("hits", of)
        return share_estimate(_mean_of(exact), drawn, size, *options)

    recall = share_of_hits("positives", float(rare.sum()))
    precision = share_of_hits("flagged", float(flagged.sum(axis=1).mean()))
    ap = [average_precision(y, line, weight) for line in score]
    spread = bootstrap_average_precision(
        y, score, block=resamples.block, n_boot=resamples.n_boot, seed=resamples.seed, weight=weight
    )
    return bounded_estimate(_mean_of(np.array(ap)), spread.ravel(), *options), recall, precision


def _mean_of(values: FloatArray) -> float:
    """Mean of the repeats that could be judged; NaN without any."""
    judged = values[~np.isnan(values)]
    return float(judged.mean()) if len(judged) else math.nan


# ---------------------------------------------------------------------------------------------- evaluation

Estimates = dict[str, Estimate]


@dataclass(frozen=True)
class Evaluation(Jsonable):
    """Everything reported about one model on one set of rows.

    metrics : ranking, calibration, the decisions of the primary operating point, and their cost
    points : decision metrics and cost by operating point
    untuned : decision metrics and cost at 0.5, and positives it misses that the tuned threshold finds
    money : cost of the primary operating point against doing nothing and flagging everything
    top_k : precision among the k best rows of each day, by k; empty where there is no time
    thinned : the main metrics on a test thinned to ``evaluate.test_ratio`` negatives per positive; empty unless asked
        for
    curves : {"pr": {"recall", "precision"}, "roc": {"fpr", "tpr"}}, at most 400 points each
    calibration : bins of equally many positives with mean score, observed rate and rows
    counts : rows, positives, prevalence, blocks
    notes : sentences about what the intervals rest on, where that is not what it should be
    """

    metrics: Estimates
    points: dict[str, Estimates]
    untuned: Estimates
    money: Money
    thresholds: dict[str, float]
    primary: str
    slices: tuple[SliceResult, ...] = ()
    top_k: dict[int, Estimate] = field(default_factory=dict)
    thinned: Estimates = field(default_factory=dict)
    curves: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    calibration: tuple[dict[str, float], ...] = ()
    counts: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def evaluate(
    sample: Sample,
    *,
    thresholds: Mapping[str, float],
    primary: str,
    costs: CostArrays,
    config: config.EvaluateSettings,
    rows: Rows | None = None,
    seed: int = 0,
) -> Evaluation:
    """Return everything that is reported about calibrated scores and their operating points.

    Parameters
    ----------
    sample : Sample
        Rows never used before, with their deployed scores; with ``time`` also the precision among the best of a day.
    thresholds : mapping of str to float
        Operating points by name.
    primary : str
        The one that decides.
    costs : CostArrays
    config : EvaluateSettings
    rows : Rows, optional
        The rows themselves, for slices.
    seed : int

    Returns
    -------
    Evaluation

    Raises
    ------
    DataError
        Without rows.
    ConfigError
        When ``primary`` is not among the thresholds.
    """
    labels, scores, weights = sample.checked()
    block, time, share, bootstrap = sample.block, sample.time, sample.share, Bootstrap.of(config, seed)
    if len(labels) == 0:
        raise DataError("there are no rows to evaluate. Raise split.test")
    if primary not in thresholds:
        raise ConfigError(
            f"operating point '{primary}' has no threshold.{nearest(primary, thresholds)} Name one of: "
            f"{', '.join(thresholds)}"
        )
    judge = _Judge(labels, scores, weights, costs, config, bootstrap.of_rows(len(labels), block))
    points, moneys = {}, {}
    for name, threshold in thresholds.items():
        points[name], moneys[name] = judge.decisions(scores >= threshold)
    untuned, _ = judge.decisions(scores >= UNTUNED)
    untuned["missed_but_tuned_finds"] = judge.rescued(scores >= thresholds[primary])
    top_k = _precisions_per_day(sample, config.top_k, bootstrap) if time is not None else {}
    return Evaluation(
        metrics={**judge.ranking(), **judge.probabilities(), **points[primary]},
        points=points,
        untuned=untuned,
        money=moneys[primary],
        thresholds=dict(thresholds),
        primary=primary,
        slices=tuple(slices(rows, scores, scores >= thresholds[primary], config.slices, bootstrap=bootstrap))
        if rows is not None
        else (),
        top_k={k: value for k, value in top_k.items() if not math.isnan(value.value)},
        thinned=_thinned(judge, block, thresholds[primary], config.test_ratio, seed),
        curves=curves(labels, scores, weights),
        calibration=calibration_bins(labels, scores, weights),
        counts={
            "rows": len(labels),
            "positives": int(labels.sum()),
            "prevalence": _mean(labels.astype(np.float64), weights),
            "blocks": judge.resamples.units,
        },
        notes=tuple(note for note in (judge.resamples.few_blocks, _best_untold(top_k, share)) if note),
    )


def _best_untold(top_k: Mapping[int, Estimate], share: float) -> str | None:
    """What is to be said where the best k rows of a day are less than one of those that were scored."""
    untold = [k for k, value in top_k.items() if math.isnan(value.value)]
    if not untold:
        return None
    scored = f"only {share:.0%} of the rows of a day were scored" if share < 1 else "its rows were observed so seldom"
    return (
        f"precision of the best {', '.join(map(str, untold))} of a day is not told: {scored}, "
        "too few to say which were the best of it"
    )


def pooled(
    rows: Rows,
    score: FloatArray,
    flagged: BoolArray,
    *,
    costs: CostArrays,
    config: config.EvaluateSettings,
    seed: int = 0,
) -> Evaluation:
    """Return what repeated scores of the same rows say together: the mean of the repeats, and an interval that holds
    the spread over the rows and that between the repeats, because it is that of the resamples of all of them.

    score, flagged : (repeats, n) calibrated scores and decisions
    Only what a gate asks for: average precision, mean score / prevalence, recall, precision, the money, and the slices.
    """
    labels, _, weights = as_scores(rows.y, score[0], rows.weight)
    block, bootstrap = rows.block(), Bootstrap.of(config, seed)
    resamples = bootstrap.of_rows(len(labels), block)
    mass, rare = np.ones(len(labels)) if weights is None else weights, labels == 1
    drawn_ap = bootstrap_average_precision(
        labels, score, block=block, n_boot=config.bootstraps, seed=seed, weight=weights
    )
    ap = [average_precision(labels, line, weights) for line in score]
    repeats = []
    for line, flags in zip(score, flagged, strict=True):
        quantities = {
            "rows": mass,
            **_spent(labels, flags, costs, mass),
            "positives": mass * rare,
            "scores": mass * line,
            "hits": mass * (rare & flags),
            "flagged": mass * flags,
        }
        repeats.append(_Sums.of(quantities, resamples))
    sums = _Sums.together(repeats)
    options = (config.confidence, int(labels.sum()), len(labels))
    mean_score = _share(sums.total["scores"], sums.total["positives"])
    scores = _multiple(sums.drawn["scores"], sums.drawn["positives"])
    recall, recalls = sums.share("hits", "positives")
    precision, precisions = sums.share("hits", "flagged")
    return Evaluation(
        metrics={
            "ap": bounded_estimate(float(np.mean(ap)), drawn_ap.ravel(), *options),
            "mean_score_ratio": estimate(float(mean_score.mean()), scores, *options),
            "recall": share_estimate(float(recall.mean()), recalls, float(rare.sum()), *options),
            "precision": share_estimate(
                float(precision.mean()), precisions, float(flagged.sum(axis=1).mean()), *options
            ),
        },
        points={},
        untuned={},
        money=_money(sums, costs, *options),
        thresholds={},
        primary="",
        slices=tuple(slices(rows, score, flagged, config.slices, bootstrap=bootstrap)),
        counts={
            "rows": len(labels),
            "positives": int(labels.sum()),
            "prevalence": _mean(labels.astype(np.float64), weights),
            "blocks": resamples.units,
        },
        notes=() if resamples.few_blocks is None else (resamples.few_blocks,),
    )


@dataclass(frozen=True, eq=False)
class _Judge:
    """Metrics with intervals over one set of resamples."""

    y: IntArray
    score: FloatArray
    weight: FloatArray | None
    costs: CostArrays
    config: config.EvaluateSettings
    resamples: Resamples

    def _estimate(self, value: ArrayLike, drawn: FloatArray) -> Estimate:
        number = float(np.asarray(value))
        return estimate(number, drawn, self.config.confidence, int(self.y.sum()), len(self.y))

    def _bounded(self, value: ArrayLike, drawn: FloatArray) -> Estimate:
        number = float(np.asarray(value))
        return bounded_estimate(number, drawn, self.config.confidence, int(self.y.sum()), len(self.y))

    @property
    def mass(self) -> FloatArray:
        return np.ones(len(self.y)) if self.weight is None else self.weight

    def ranking(self) -> Estimates:
        """AP and ROC-AUC, on the same resamples."""
        table = RankingTable.build(self.y, self.score, self.weight)
        tied = np.isin(self.score, table.cut) * self.mass
        columns: list[tuple[FloatArray | None, bool]] = [(None, True), (None, False), (tied, False)]
        exact = [table.totals(values, positive) for values, positive in columns]
        drawn_ap, drawn_auc = [], []
        for tp, fp, tie in table.resampled(self.resamples, columns=columns):
            drawn_ap.append(ap_of_sums(tp, fp))
            drawn_auc.append(auc_of_sums(tp, fp, tie))
        estimates = {
            "ap": self._bounded(ap_of_sums(exact[0], exact[1]), np.concatenate(drawn_ap)),
            "roc_auc": self._bounded(auc_of_sums(*exact), np.concatenate(drawn_auc)),
        }
        prevalence = _mean(self.y.astype(np.float64), self.weight)
        if prevalence > 0:
            ap = estimates["ap"]
            estimates["ap_lift"] = Estimate(
                ap.value / prevalence, ap.low / prevalence, ap.high / prevalence, ap.positives, ap.rows
            )
        return estimates

    def probabilities(self) -> Estimates:
        """Brier score, log loss, ECE and mean score / prevalence; the bins of ECE are those of the whole."""
        bins = equal_mass_bins(self.score)
        mass, k = self.mass, int(bins.max()) + 1
        gap = np.zeros((len(self.y), k))
        gap[np.arange(len(self.y)), bins] = mass * (self.y - self.score)
        quantities = {
            "rows": mass,
            "positives": mass * self.y,
            "scores": mass * self.score,
            "square error": mass * (self.score - self.y) ** 2,
            "log loss": mass * _row_log_loss(self.y, self.score),
            "gap by bin": gap,
        }
        sums = _Sums.of(quantities, self.resamples)

        def metrics(sums: Mapping[str, FloatArray], ratio: Callable[..., FloatArray] = _share) -> dict[str, FloatArray]:
            return {
                "brier": _share(sums["square error"], sums["rows"]),
                "log_loss": _share(sums["log loss"], sums["rows"]),
                "ece": _share(np.abs(sums["gap by bin"]).sum(axis=1), sums["rows"]),
                "mean_score_ratio": ratio(sums["scores"], sums["positives"]),
            }

        resampled = metrics(sums.drawn, _multiple)
        estimates = {name: self._estimate(value[0], resampled[name]) for name, value in metrics(sums.total).items()}
        options = (self.config.confidence, int(self.y.sum()), len(self.y))
        return {**estimates, "ece": unbiased_estimate(estimates["ece"].value, resampled["ece"], *options)}

    def decisions(self, flagged: BoolArray) -> tuple[Estimates, Money]:
        """Decision metrics, confusion and cost of flagged rows."""
        rare, mass = self.y == 1, self.mass
        cells = {
            "tp": mass * (rare & flagged),
            "fp": mass * (~rare & flagged),
            "fn": mass * (rare & ~flagged),
            "tn": mass * (~rare & ~flagged),
        }
        sums = _Sums.of({**cells, "rows": mass, **_spent(self.y, flagged, self.costs, mass)}, self.resamples)
        resampled = confusion_metrics(**{name: sums.drawn[name] for name in cells})
        exact = confusion_metrics(**{name: sums.total[name][0] for name in cells})
        estimates = {name: self._estimate(value, resampled[name]) for name, value in exact.items()}
        sizes = {
            "recall": rare.sum(),
            "specificity": (~rare).sum(),
            "precision": flagged.sum(),
            "micro_f1": len(rare),
        }
        options = (self.config.confidence, int(rare.sum()), len(self.y))
        for name in estimates.keys() & {*sizes, *_BOUNDED}:
            value = float(exact[name])
            if name in sizes:
                estimates[name] = share_estimate(value, resampled[name], float(sizes[name]), *options)
            else:
                estimates[name] = bounded_estimate(value, resampled[name], *options)
        spent = _money(sums, self.costs, self.config.confidence, int(rare.sum()), len(self.y))
        return {**estimates, "cost": spent.cost}, spent

    def rescued(self, flagged: BoolArray) -> Estimate:
        """Positives that the untuned threshold misses and the tuned one finds."""
        caught = self.mass * ((self.y == 1) & flagged & (self.score < UNTUNED))
        return self._estimate(caught.sum(), self.resamples.sums(caught))


def _thinned(judge: _Judge, block: AnyArray | None, threshold: float, ratio: float | None, seed: int) -> Estimates:
    if ratio is None or judge.y.sum() == 0:
        return {}
    index = thinned(judge.y, ratio, seed)
    weight = None if judge.weight is None else judge.weight[index]
    own = None if block is None else block[index]
    resamples = Resamples(len(index), own, judge.config.bootstraps, seed)
    small = _Judge(judge.y[index], judge.score[index], weight, judge.costs.take(index), judge.config, resamples)
    return {**small.ranking(), **small.decisions(small.score >= threshold)[0]}


def calibration_bins(
    y: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None, bins: int = 10
) -> tuple[dict[str, float], ...]:
    """Return bins with about equally many positives: rows, positives, mean score and observed rate with a Wilson
    interval (95 %).

    Bins of equally many rows would put nearly every positive in the last one. Fewer bins where positives are few, five
    in each.
    """
    labels, scores, weights = as_scores(y, score, weight)
    mass = np.ones(len(labels)) if weights is None else weights
    rare = scores[labels == 1]
    bins = min(bins, len(rare) // 5)
    edges = np.unique(np.quantile(rare, np.arange(1, bins) / bins, method="inverted_cdf")) if bins > 1 else np.zeros(0)
    where = np.searchsorted(edges, scores, side="right")
    cells = []
    for k in np.unique(where):
        inside = where == k
        size, hits = float(mass[inside].sum()), float((mass * labels)[inside].sum())
        if size == 0:
            continue
        low, high = wilson(hits, size)
        cells.append(
            {
                "rows": int(inside.sum()),
                "positives": int(labels[inside].sum()),
                "mean_score": float((mass * scores)[inside].sum() / size),
                "rate": hits / size,
                "rate_low": low,
                "rate_high": high,
            }
        )
    return tuple(cells)
