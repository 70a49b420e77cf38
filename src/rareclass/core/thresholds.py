"""Exact threshold tuning: every distinct score is a candidate cut-off, for any objective, under constraints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rareclass import config
from rareclass.core.bootstrap import DEFAULT_BOOTSTRAP, Bootstrap, Resamples, Sample, estimate, interval, share_estimate
from rareclass.core.costs import CostArrays
from rareclass.core.dataset import BoolArray, FloatArray, IntArray
from rareclass.core.estimate import Estimate
from rareclass.core.jsonable import Jsonable
from rareclass.core.ranking import RankingTable
from rareclass.errors import ConfigError, NoPositivesError, unknown


@dataclass(frozen=True, eq=False)
class Counts:
    """Counts behind cut-offs; arrays of any one shape (cut-offs last), totals broadcast against them.

    cost : total cost at each cut-off, in the currency; None where the objective does not ask for it
    days : days that the rows span; NaN where there is no time
    """

    tp: FloatArray
    fp: FloatArray
    positives: FloatArray
    negatives: FloatArray
    cost: FloatArray | None = None
    days: float = math.nan
    beta: float = 1.0

    def at(self, index: int) -> Counts:
        """The counts at one cut-off."""
        place = np.s_[..., index : index + 1]
        return replace(self, tp=self.tp[place], fp=self.fp[place], cost=None if self.cost is None else self.cost[place])

    @property
    def alerts(self) -> FloatArray:
        """(steps,) flagged rows at each cut-off."""
        return self.tp + self.fp

    @property
    def precision(self) -> FloatArray:
        """Share of alerts that are right; 0 where nothing is flagged."""
        return _ratio(self.tp, self.alerts)

    @property
    def false_alarm_rate(self) -> FloatArray:
        """Share of negatives that is flagged; 0 without negatives."""
        return _ratio(self.fp, self.negatives)

    @property
    def recall(self) -> FloatArray:
        """(steps,) caught positives / positives at each cut-off."""
        return _ratio(self.tp, self.positives)


def _ratio(top: FloatArray, bottom: FloatArray) -> FloatArray:
    """top / bottom, 0 where both are 0; a top above 0 never stands over 0 here."""
    return np.asarray(top / np.maximum(bottom, 1e-300), dtype=np.float64)


def f_beta(counts: Counts, beta: float) -> FloatArray:
    """(1 + b2) tp / ((1 + b2) tp + b2 fn + fp); 0 where nothing is found."""
    square = beta * beta
    return _ratio((1 + square) * counts.tp, square * counts.positives + counts.alerts)


def matthews(counts: Counts) -> FloatArray:
    """Matthews correlation; 0 where a row or a column of the confusion matrix is empty."""
    total = counts.positives + counts.negatives
    alerts, rest = counts.alerts, total - counts.alerts
    # With weights the rest of "flag everything" is a rounding error, not a row.
    scale = np.sqrt(alerts * np.where(rest > 1e-11 * total, rest, 0.0) * counts.positives * counts.negatives)
    top = counts.tp * total - alerts * counts.positives
    return np.asarray(np.divide(top, scale, out=np.zeros(np.shape(top)), where=scale > 0))


def _cost(counts: Counts) -> FloatArray:
    assert counts.cost is not None
    return counts.cost


@dataclass(frozen=True)
class Objective:
    """What a cut-off is chosen for.

    value : counts -> the number reported, per cut-off
    sign : 1 where more is better, -1 where less is
    needs : the constraint without which it has no meaning
    text : what it says in a sentence
    """

    value: Callable[[Counts], FloatArray]
    sign: int = 1
    needs: str | None = None
    text: str = ""


OBJECTIVES: dict[str, Objective] = {
    "f1": Objective(lambda c: f_beta(c, 1.0), text="F1"),
    "f2": Objective(lambda c: f_beta(c, 2.0), text="F2"),
    "fbeta": Objective(lambda c: f_beta(c, c.beta), text="F-beta"),
    "mcc": Objective(matthews, text="Matthews correlation"),
    "cost": Objective(_cost, sign=-1, text="total cost"),
    "recall_at_precision": Objective(lambda c: c.recall, needs="min_precision", text="recall"),
    "precision_at_recall": Objective(lambda c: c.precision, needs="min_recall", text="precision"),
    "alerts_per_day": Objective(lambda c: c.recall, needs="max_alerts", text="recall"),
    "false_alarm_rate": Objective(lambda c: c.recall, needs="max_false_alarms", text="recall"),
}

FIXED = "fixed"
"""Name of the operating point that ``threshold.fixed`` sets; it is not tuned and never decides."""


@dataclass(frozen=True)
class Constraint:
    """A bound that cut-offs have to keep.

    setting : of ``threshold`` · value : (counts, days) -> what is bounded, per cut-off
    most : the bound is the most that it may be; else the least
    asked : the bound in a sentence, without its number · best : the best that is reachable, in a sentence
    """

    setting: str
    value: Callable[[Counts, float], FloatArray]
    most: bool
    asked: str
    best: str

    def missed(self, counts: Counts, days: float, bound: float) -> FloatArray | float:
        """How far each cut-off misses the bound, relative to it."""
        if self.most:
            return np.asarray(np.maximum(self.value(counts, days) / bound - 1, 0))
        return np.asarray(np.maximum(1 - self.value(counts, days) / bound, 0)) if bound > 0 else 0.0


CONSTRAINTS: dict[str, Constraint] = {
    "min_precision": Constraint(
        "min_precision",
        lambda c, days: c.precision,
        False,
        "precision >=",
        "the highest precision{under} is {best:.3f}",
    ),
    "min_recall": Constraint(
        "min_recall", lambda c, days: c.recall, False, "recall >=", "the highest recall{under} is {best:.3f}"
    ),
    "max_alerts": Constraint(
        "max_alerts_per_day",
        lambda c, days: c.alerts / days,
        True,
        "alerts a day <=",
        "the fewest alerts a day{under} are {best:.3g}",
    ),
    "max_false_alarms": Constraint(
        "max_false_alarm_rate",
        lambda c, days: c.false_alarm_rate,
        True,
        "share of normal rows flagged <=",
        "the least share of normal rows flagged{under} is {best:.3g}",
    ),
}


@dataclass(frozen=True)
class TunedThreshold(Jsonable):
    """A cut-off on the deployed score (decision = score >= value) and what it rests on.

    low, high : percentile interval of the cut-off, tuned again on each resample
    objective_value, precision, recall : at ``value``, with intervals over the resamples (cut-off held)
    alerts_per_day : NaN where there is no time
    feasible : False where no cut-off meets the constraints; ``value`` then misses them least, ``message`` says what is
        reachable
    """

    value: float
    low: float
    high: float
    objective: str
    objective_value: Estimate
    precision: Estimate
    recall: Estimate
    alerts_per_day: float
    feasible: bool
    message: str
    crossfitted: Mapping[str, Estimate] = field(default_factory=dict)
    """precision and recall of rows whose cut-off was tuned on others; empty where positives are too few, and for a
    fixed one
    """


_FOLDS = 5
"""Parts of the rows that a cut-off is cross-fitted over."""


def place(table: RankingTable) -> FloatArray:
    """Return the (K + 1,) thresholds behind "flag nothing" and each step: midway to the next lower score.

    Decisions on the table's own rows are those of the sweep; between rows the cut lies as far from either as it can.
    """
    top = float(table.score.max()) if len(table.score) else 1.0
    nothing = (top + 1) / 2 if top < 1 else np.inf
    nothing = nothing if top < nothing < np.inf else float(np.nextafter(top, np.inf))
    below = np.where(np.isfinite(table.below), table.below, np.where(table.cut > 0, 0.0, table.cut))
    middle = below + (table.cut - below) / 2
    return np.concatenate([[nothing], np.where((middle > below) & (middle < table.cut), middle, table.cut)])


@dataclass(frozen=True)
class _Task:
    """One tuning: the objective, its constraints, and what the counts need."""

    objective: Objective
    constraints: Mapping[str, float]
    days: float
    beta: float

    def violation(self, counts: Counts) -> FloatArray:
        """How far each cut-off misses its constraints, as a sum of relative shortfalls; 0 where it meets all."""
        total = np.zeros(np.broadcast_shapes(counts.tp.shape, counts.positives.shape))
        for name, bound in self.constraints.items():
            total = total + CONSTRAINTS[name].missed(counts, self.days, bound)
        return np.where(total < 1e-12, 0.0, total)

    def choose(self, counts: Counts) -> NDArray[np.intp]:
        """Index of the best cut-off on the last axis: least violation, then the objective, then the higher cut-off."""
        worth = self.objective.sign * self.objective.value(counts)
        if self.constraints:
            missed = self.violation(counts)
            worth = np.where(missed <= missed.min(axis=-1, keepdims=True), worth, -np.inf)
        # Sums of the same costs in another order differ in the last digits: that is a tie, and the higher cut-off wins.
        best = worth.max(axis=-1, keepdims=True)
        chosen: NDArray[np.intp] = np.argmax(worth >= best - 1e-12 * np.abs(best), axis=-1)
        return chosen


@dataclass(frozen=True, slots=True)
class Aim:
    """What a cut-off is tuned for, and what binds it.

    max_alerts : alerts a day at most · max_false_alarms : share of negatives flagged
    days : days that the rows span, which alerts a day are counted by
    """

    objective: str = "f1"
    beta: float = 1.0
    min_precision: float | None = None
    min_recall: float | None = None
    max_alerts: float | None = None
    max_false_alarms: float | None = None
    days: float | None = None

    @staticmethod
    def of(point: config.ThresholdSettings | config.OperatingPoint, objective: str, days: float | None) -> Aim:
        """Return what the configuration asks of an operating point, for the objective that ``auto`` stands for."""
        return Aim(
            objective,
            point.beta,
            point.min_precision,
            point.min_recall,
            point.max_alerts_per_day,
            point.max_false_alarm_rate,
            days,
        )


DEFAULT_AIM = Aim()
"""The best F1, bound by nothing."""


def tune(
    sample: Sample,
    aim: Aim = DEFAULT_AIM,
    *,
    costs: CostArrays | None = None,
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP,
) -> TunedThreshold:
    """Return the cut-off that is best for the objective among those that meet the constraints, exactly.

    All distinct scores are candidates, and flagging nothing is. Ties go to the higher cut-off. Constraints that no
    cut-off meets are no error: see `TunedThreshold.feasible`.

    Parameters
    ----------
    sample : Sample
        Rows the model was not fitted on.
    aim : Aim
        The objective and its constraints.
    costs : CostArrays, optional
        Needed by the objective "cost" only.
    bootstrap : Bootstrap
        How the intervals are made.

    Returns
    -------
    TunedThreshold

    Raises
    ------
    NoPositivesError
        Without a positive.
    ConfigError
        For an unknown objective, or one that lacks its constraint.

    References
    ----------
    Elkan, IJCAI 2001: for calibrated scores the cost-optimal cut-off tends to fp / (fp + fn).
    """
    objective, confidence = aim.objective, bootstrap.confidence
    task = _task(aim)
    table = RankingTable.build(sample.y, sample.score, sample.weight)
    if table.steps == 0:
        raise NoPositivesError(
            "no row of the rare class among the rows that tune the threshold. Give more rows: split.validation"
        )
    resamples = bootstrap.of_rows(len(table.y), sample.block)
    money = (costs or CostArrays()) if objective == "cost" else None
    exact = _exact(table, task, money)
    chosen = int(task.choose(exact))
    thresholds = place(table)
    drawn: list[FloatArray] = []
    for counts in _resampled(table, resamples, task, money):
        held = counts.at(chosen)
        values = [task.objective.value(held), held.precision, held.recall]
        drawn.append(np.stack([thresholds[task.choose(counts)], *(v[:, 0] for v in values)]))
    draws = np.concatenate(drawn, axis=1)
    reached = [values[chosen] for values in (task.objective.value(exact), exact.precision, exact.recall)]
    positives, rows = int(table.y.sum()), len(table.y)
    worth = estimate(float(reached[0]), draws[1], confidence, positives, rows)
    precision, recall = (
        share_estimate(float(v), line, size, confidence, positives, rows)
        for v, line, size in zip(reached[1:], draws[2:], (float(exact.alerts[chosen]), positives), strict=True)
    )
    low, high = interval(draws[0], confidence)
    feasible = not task.constraints or float(task.violation(exact)[chosen]) == 0
    message = _message(objective, task, exact, chosen, thresholds, feasible)
    value = float(thresholds[chosen])
    alerts = float(exact.alerts[chosen] / task.days)
    crossed = _crossfitted(table, resamples, task, money, confidence)
    return TunedThreshold(value, low, high, objective, worth, precision, recall, alerts, feasible, message, crossed)


def _crossfitted(
    table: RankingTable, resamples: Resamples, task: _Task, costs: CostArrays | None, confidence: float
) -> dict[str, Estimate]:
    """Precision and recall of rows whose cut-off was tuned on the others, whole units together; empty where that cannot
    be.

    The figures of the cut-off itself are those of the rows it was chosen on, and flatter it where positives are few.
    """
    y, score, weight = table.y, table.score, table.weight
    if resamples.unit is None:
        part = _dealt(y, resamples.seed)
    else:
        part = (np.random.default_rng(resamples.seed).permutation(resamples.units) % _FOLDS)[resamples.unit]
    flagged = np.zeros(len(y), dtype=bool)
    for fold in range(_FOLDS):
        held, rest = part == fold, part != fold
        if not 0 < y[rest].sum() < rest.sum():
            return {}
        own = RankingTable.build(y[rest], score[rest], None if weight is None else weight[rest])
        less = replace(task, days=task.days * rest.mean())
        chosen = int(less.choose(_exact(own, less, None if costs is None else costs.take(rest))))
        flagged[held] = score[held] >= place(own)[chosen]
    return _shares(y, flagged, np.ones(len(y)) if weight is None else weight, resamples, confidence)


def _shares(
    y: IntArray, flagged: BoolArray, mass: FloatArray, resamples: Resamples, confidence: float
) -> dict[str, Estimate]:
    """Precision and recall of decisions, with intervals."""
    columns = np.stack([mass * (flagged & (y == 1)), mass * flagged, mass * y], axis=1)
    total, drawn = columns.sum(axis=0), resamples.sums(columns)
    positives = int(y.sum())
    sizes = {"precision": (1, float(flagged.sum())), "recall": (2, float(positives))}
    return {
        name: share_estimate(
            float(_ratio(total[0], total[i])), _ratio(drawn[:, 0], drawn[:, i]), size, confidence, positives, len(y)
        )
        for name, (i, size) in sizes.items()
    }


def _dealt(y: IntArray, seed: int) -> IntArray:
    """(n,) part of each row, both classes dealt out evenly."""
    rng, part = np.random.default_rng(seed), np.empty(len(y), dtype=np.int64)
    for label in (0, 1):
        rows = rng.permutation(np.flatnonzero(y == label))
        part[rows] = np.arange(len(rows)) % _FOLDS
    return part


def _task(aim: Aim) -> _Task:
    """Check what was asked for. Raises ConfigError."""
    objective, days = aim.objective, aim.days
    if objective not in OBJECTIVES:
        raise unknown("objective", objective, OBJECTIVES, "threshold.objective")
    given = {name: bound for name in CONSTRAINTS if (bound := getattr(aim, name)) is not None}
    needs = OBJECTIVES[objective].needs
    if needs and needs not in given:
        raise ConfigError(f"objective '{objective}' needs a bound. Set threshold.{CONSTRAINTS[needs].setting}")
    span = math.nan if days is None or days <= 0 else float(days)
    if "max_alerts" in given and math.isnan(span):
        raise ConfigError(
            "threshold.max_alerts_per_day needs days to count by. Set data.time to the column with the time of a row"
        )
    return _Task(OBJECTIVES[objective], given, span, aim.beta)


def _cumulated(by_step: FloatArray) -> FloatArray:
    """(..., K + 1) sums by step -> (..., K + 1) sums at "flag nothing" and at each step."""
    total = np.empty_like(by_step)
    total[..., 0] = 0
    np.cumsum(by_step[..., :-1], axis=-1, out=total[..., 1:])
    return total


def _counts(task: _Task, positive: FloatArray, negative: FloatArray, cost: FloatArray | None) -> Counts:
    return Counts(
        _cumulated(positive),
        _cumulated(negative),
        positive.sum(axis=-1, keepdims=True),
        negative.sum(axis=-1, keepdims=True),
        cost,
        task.days,
        task.beta,
    )


def _total_cost(missed: FloatArray, alarmed: FloatArray) -> FloatArray:
    """Total cost at each cut-off from the costs of missing and of flagging, by step."""
    total: FloatArray = missed.sum(axis=-1, keepdims=True) - _cumulated(missed) + _cumulated(alarmed)
    return total


def _columns(table: RankingTable, costs: CostArrays) -> list[tuple[FloatArray, bool]]:
    n = len(table.y)
    weight = 1.0 if table.weight is None else table.weight
    return [(costs.misses(n) * weight, True), (costs.alarms(n) * weight, False)]


def _exact(table: RankingTable, task: _Task, costs: CostArrays | None) -> Counts:
    positive, negative = table.totals(None, True), table.totals(None, False)
    cost = None
    if costs is not None:
        if _fixed(costs):
            cost = _total_cost(positive * costs.false_negative, negative * costs.false_positive)
        else:
            cost = _total_cost(*(table.totals(values, is_positive) for values, is_positive in _columns(table, costs)))
    return _counts(task, positive, negative, cost)


def _fixed(costs: CostArrays) -> bool:
    return not (isinstance(costs.false_negative, np.ndarray) or isinstance(costs.false_positive, np.ndarray))


def _resampled(table: RankingTable, resamples: Resamples, task: _Task, costs: CostArrays | None) -> Any:
    """Yield the counts of chunks of resamples."""
    if costs is None or _fixed(costs):
        for positive, negative in table.counted(resamples):
            cost = None
            if costs is not None:
                cost = _total_cost(positive * costs.false_negative, negative * costs.false_positive)
            yield _counts(task, positive, negative, cost)
        return
    columns: list[tuple[FloatArray | None, bool]] = [(None, True), (None, False), *_columns(table, costs)]
    for positive, negative, missed, alarmed in table.resampled(resamples, columns=columns):
        yield _counts(task, positive, negative, _total_cost(missed, alarmed))


def _message(objective: str, task: _Task, exact: Counts, chosen: int, thresholds: FloatArray, feasible: bool) -> str:
    """One sentence: what the cut-off reaches, or why the constraints cannot be met and what is reachable."""
    reached = f"precision {exact.precision[chosen]:.3f}, recall {exact.recall[chosen]:.3f}"
    if not math.isnan(task.days):
        reached += f", {exact.alerts[chosen] / task.days:.3g} alerts a day"
    used = f"threshold {thresholds[chosen]:.4g} gives {reached}"
    if feasible:
        return f"{used}; it flags nothing" if chosen == 0 else used
    asked = " and ".join(_asked(name, bound) for name, bound in task.constraints.items())
    return f"no threshold reaches {asked}: {'; '.join(_reachable(task, exact))}. Nearest: {used}"


def _asked(name: str, bound: float) -> str:
    return f"{CONSTRAINTS[name].asked} {bound:g}"


def _reachable(task: _Task, exact: Counts) -> list[str]:
    """For each constraint, the best that the others leave reachable; two by two where all others are too many."""
    names = list(task.constraints)
    for size in range(len(names) - 1, -1, -1):
        said = [
            _best_under(task, exact, name, others)
            for name in names
            for others in combinations([other for other in names if other != name], size)
        ]
        if any(said):
            return [part for part in said if part]
    return []


def _best_under(task: _Task, exact: Counts, name: str, others: Sequence[str]) -> str:
    """What is reachable of one constraint under others; empty where those cannot be met themselves."""
    bounds = {other: task.constraints[other] for other in others}
    open_: BoolArray = replace(task, constraints=bounds).violation(exact) == 0
    if not open_.any():
        return ""
    under = f" with {' and '.join(_asked(*item) for item in bounds.items())}" if bounds else ""
    constraint = CONSTRAINTS[name]
    reached = constraint.value(exact, task.days)[open_]
    return constraint.best.format(under=under, best=reached.min() if constraint.most else reached.max())


def tune_points(
    sample: Sample,
    settings: config.ThresholdSettings,
    *,
    days: float | None = None,
    costs: CostArrays | None = None,
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP,
) -> dict[str, TunedThreshold]:
    """Return the tuned threshold of each operating point, in order; the first, "default", is the one that decides.

    ``objective: auto`` is the cost where costs were given, else F1. The last is "fixed" where ``settings.fixed`` is
    set.
    """
    wanted = settings.objective
    if wanted == "auto":
        wanted = "cost" if costs is not None and costs.given else "f1"
    asked: dict[str, tuple[str, config.ThresholdSettings | config.OperatingPoint]] = {"default": (wanted, settings)}
    for point in settings.points:
        if point.name in asked:
            raise ConfigError(
                f"operating point '{point.name}' is named twice. Give each of threshold.points its own name (not "
                "'default')"
            )
        if point.name == FIXED:
            raise ConfigError(
                f"operating point '{FIXED}' is the name of threshold.fixed. Give each of threshold.points another name"
            )
        asked[point.name] = (point.objective, point)
    tuned = {
        name: tune(sample, Aim.of(point, objective, days), costs=costs, bootstrap=bootstrap)
        for name, (objective, point) in asked.items()
    }
    if settings.fixed is None:
        return tuned
    return {**tuned, FIXED: hold(sample, settings.fixed, days=days, bootstrap=bootstrap)}


def hold(
    sample: Sample,
    threshold: float,
    *,
    days: float | None = None,
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP,
) -> TunedThreshold:
    """Return what a threshold that somebody set does on the rows that the others are tuned on; it has no interval
    itself.
    """
    labels, scores, weights = sample.checked()
    mass = np.ones(len(labels)) if weights is None else weights
    flagged = scores >= threshold
    shares = _shares(labels, flagged, mass, bootstrap.of_rows(len(labels), sample.block), bootstrap.confidence)
    precision, recall = shares["precision"], shares["recall"]
    span = math.nan if days is None or days <= 0 else float(days)
    alerts = float((mass * flagged).sum()) / span
    said = f"threshold {threshold:.4g}, set by hand, gives precision {precision.value:.3f}, recall {recall.value:.3f}"
    said += "" if math.isnan(span) else f", {alerts:.3g} alerts a day"
    nothing = Estimate(math.nan)
    return TunedThreshold(threshold, math.nan, math.nan, FIXED, nothing, precision, recall, alerts, True, said)
