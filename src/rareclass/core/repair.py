"""The cheap repairs, fitted on earlier matured rows and judged on later ones, and how much history a retrain uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rareclass.config import ThresholdSettings
from rareclass.core import calibration, thresholds
from rareclass.core.bootstrap import DEFAULT_BOOTSTRAP, Bootstrap, Sample
from rareclass.core.costs import CostArrays
from rareclass.core.dataset import AnyArray, FloatArray, IntArray, Rows, Schema
from rareclass.core.estimate import Estimate
from rareclass.core.jsonable import Jsonable
from rareclass.core.model import RareModel
from rareclass.core.profile import Profile, reference_profile
from rareclass.core.ranking import at_prevalence

MIN_JUDGES = 10
"""Positives without which a repair is not judged."""
TUNING_RESAMPLES = 50
"""Resamples for the interval of a cut-off: what decides is the gain on later rows."""


@dataclass(frozen=True)
class MaturedRows:
    """Matured rows of one version, in order of time.

    score : (n,) deployed scores;  time : (n,) datetime64;  weight : (n,) inverse-propensity and sampling weights or
        None
    """

    y: IntArray
    score: FloatArray
    time: NDArray[np.datetime64]
    weight: FloatArray | None
    costs: CostArrays

    def __len__(self) -> int:
        return len(self.y)

    @property
    def prevalence(self) -> float:
        """Weighted share of positives; NaN without rows."""
        return float(np.average(self.y, weights=self.weight)) if len(self.y) else math.nan

    @property
    def days(self) -> float:
        """Days from the first row to the last, 1 at least."""
        return max(float((self.time[-1] - self.time[0]) / np.timedelta64(1, "D")), 1.0) if len(self.time) else 1.0

    @property
    def block(self) -> NDArray[Any]:
        """(n,) the day of each row, the unit of resampling."""
        return self.time.astype("datetime64[D]").astype(np.int64)

    def take(self, index: AnyArray) -> MaturedRows:
        """Return the rows at these positions."""
        weight = None if self.weight is None else self.weight[index]
        return MaturedRows(self.y[index], self.score[index], self.time[index], weight, self.costs.take(index))


@dataclass(frozen=True)
class Repair(Jsonable):
    """A tried repair. ``gain`` is on the judging rows, positive where it helps, in the units of ``objective``."""

    adopted: bool
    reason: str
    objective: str
    gain: Estimate
    prevalence: float
    fitted_rows: int
    judged_rows: int
    thresholds: Mapping[str, float]
    before: Mapping[str, float]
    calibrator: Any = None
    UNWRITTEN = frozenset({"calibrator"})


def halves(rows: MaturedRows, newest: datetime) -> tuple[MaturedRows, MaturedRows]:
    """Split matured rows into those that fit and those that judge: the later half of the positives since ``newest``.

    ``newest`` is the start of the newest matured window, where what is to be repaired shows.
    """
    since = np.flatnonzero((rows.time >= np.datetime64(newest, "us")) & (rows.y == 1))
    if not len(since):
        return rows, rows.take(np.arange(0))
    cut = rows.time[since[len(since) // 2]]
    return rows.take(rows.time < cut), rows.take(rows.time >= cut)


def rethreshold(
    fit: MaturedRows,
    judge: MaturedRows,
    *,
    newest: datetime,
    before: Mapping[str, float],
    settings: ThresholdSettings,
    shifted: bool,
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP,
) -> Repair:
    """Tune the operating points again at the prevalence of the newest rows, and compare on rows that come after.

    fit : earlier matured rows; where prevalence moved (``shifted``) their negatives are reweighted to its new value, so
        that all of them serve, not only the few since it moved
    before : the cut-offs in force
    """
    recent = fit.take(fit.time >= np.datetime64(newest, "us"))
    prevalence = recent.prevalence if len(recent) and recent.y.any() else fit.prevalence
    if fit.y.sum() < MIN_JUDGES or judge.y.sum() < MIN_JUDGES:
        counts = f"{int(fit.y.sum())} positives to fit on and {int(judge.y.sum())} to judge on, {MIN_JUDGES} needed"
        return Repair(False, counts, "", Estimate(math.nan), prevalence, len(fit), len(judge), before, before)
    weight = at_prevalence(fit.y, prevalence, fit.weight) if shifted and not fit.y.all() else fit.weight
    points = _tuned(fit, fit.score, weight, settings, bootstrap)
    found = {name: float(point.value) for name, point in points.items()}
    first = next(iter(points))
    objective = points[first].objective
    gain = _gain(judge, (found[first], before.get(first, math.nan)), objective, settings.beta, bootstrap)
    breaks = _breaks(judge, found[first], settings)
    adopted = gain.value > 0 and not (breaks and not _breaks(judge, before.get(first, math.nan), settings))
    moved = f"cut-off {before.get(first, math.nan):.4g} -> {found[first]:.4g}"
    told = (
        f"{moved}: {objective} better by {gain} on {len(judge)} later rows"
        if adopted
        else f"{moved} was no better on later rows ({gain}{breaks})"
    )
    return Repair(adopted, told, objective, gain, prevalence, len(fit), len(judge), found, before)


def recalibrate(
    fit: MaturedRows,
    judge: MaturedRows,
    raw_fit: FloatArray,
    raw_judge: FloatArray,
    *,
    before: Mapping[str, float],
    settings: ThresholdSettings,
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP,
) -> Repair:
    """Fit the calibrator anew on the learner's raw scores of earlier rows, and compare log loss on later ones."""
    if fit.y.sum() < MIN_JUDGES or judge.y.sum() < MIN_JUDGES:
        counts = f"{int(fit.y.sum())} positives to fit on and {int(judge.y.sum())} to judge on, {MIN_JUDGES} needed"
        return Repair(
            False, counts, "log_loss", Estimate(math.nan), fit.prevalence, len(fit), len(judge), before, before
        )
    method = "auto" if settings.calibration == "none" else settings.calibration
    fitted = calibration.fit(
        Sample(fit.y, raw_fit, weight=fit.weight, block=fit.block), method=method, seed=bootstrap.seed
    )
    old, new = _losses(judge.y, judge.score), _losses(judge.y, fitted(raw_judge))
    weight = np.ones(len(judge)) if judge.weight is None else judge.weight
    sums = bootstrap.of_rows(len(judge), judge.block).sums(np.column_stack([(old - new) * weight, weight]))
    gain = _estimate(float(np.average(old - new, weights=weight)), sums[:, 0] / sums[:, 1], judge, bootstrap)
    score = np.asarray(fitted(raw_fit))
    points = _tuned(fit, score, fit.weight, settings, bootstrap)
    found = {name: float(point.value) for name, point in points.items()}
    told = (
        f"{fitted.chosen}: log loss {'better' if gain.value > 0 else 'no better'} by {gain.value:.4g} "
        f"[{gain.low:.4g}, {gain.high:.4g}] on {len(judge)} later rows"
    )
    return Repair(
        gain.value > 0, told, "log_loss", gain, fit.prevalence, len(fit), len(judge), found, before, fitted.calibrator
    )


def _tuned(
    fit: MaturedRows,
    score: FloatArray,
    weight: FloatArray | None,
    settings: ThresholdSettings,
    bootstrap: Bootstrap,
) -> dict[str, thresholds.TunedThreshold]:
    return thresholds.tune_points(
        Sample(fit.y, score, weight=weight, block=fit.block),
        settings,
        costs=fit.costs,
        days=fit.days,
        bootstrap=replace(bootstrap, resamples=TUNING_RESAMPLES),
    )


def recalibrated(
    model: RareModel,
    repair: Repair,
    scored: MaturedRows,
    raw: FloatArray,
    *,
    window: timedelta,
    meta: Mapping[str, Any],
) -> RareModel:
    """Return the new version: the same learner, another calibrator and thresholds.

    Its reference keeps the features and the average precision of the old one, whose ranking it shares; what depends
    on the scale of the scores comes from the given matured rows. Its golden rows are those of the old one: no served
    row gets into a version.
    """
    score = np.asarray(repair.calibrator(raw), dtype=np.float64)
    cut = float(repair.thresholds[model.primary])
    bare = Rows(
        Schema(()),
        np.empty((len(scored), 0), np.float32),
        scored.y,
        np.arange(len(scored), dtype=np.uint64),
        time=scored.time,
        weight=scored.weight,
    )
    fresh = reference_profile(bare, score, threshold=cut, window=window)
    profile: Mapping[str, Any] = fresh.to_json()
    if model.profile:
        old = Profile.from_json(model.profile)
        profile = replace(
            old,
            score=fresh.score,
            threshold=cut,
            alert_rate=fresh.alert_rate,
            precision=fresh.precision,
            recall=fresh.recall,
            score_ratio=fresh.score_ratio,
            window_alert_rate=fresh.window_alert_rate,
        ).to_json()
    changed = replace(
        model,
        calibrator=repair.calibrator,
        thresholds={**model.thresholds, **repair.thresholds},
        profile=profile,
        meta={**model.meta, **meta},
        golden=None,
    )
    return changed if model.golden is None else changed.with_golden(model.matrix(model.golden))


def _gain(judge: MaturedRows, cuts: tuple[float, float], objective: str, beta: float, bootstrap: Bootstrap) -> Estimate:
    """Value of the objective at the new cut-off minus that at the old one, signed so that more is better."""
    table = np.column_stack([_sums(judge, cut) for cut in cuts])
    sign = thresholds.OBJECTIVES[objective].sign

    def value(sums: FloatArray) -> FloatArray:
        both = [_value(part, objective, judge.days, beta) for part in (sums[:, :5], sums[:, 5:])]
        return np.asarray(sign * (both[0] - both[1]), dtype=np.float64)

    resampled = value(bootstrap.of_rows(len(judge), judge.block).sums(table))
    return _estimate(float(value(table.sum(axis=0)[None])[0]), resampled, judge, bootstrap)


def _sums(judge: MaturedRows, cut: float) -> FloatArray:
    """Per row: found, false alarm, positive, negative, cost at a cut-off."""
    weight = np.ones(len(judge)) if judge.weight is None else judge.weight
    flagged, y = (judge.score >= cut).astype(np.float64), judge.y.astype(np.float64)
    cost = np.where(
        judge.y == 1, (1 - flagged) * judge.costs.misses(len(judge)), flagged * judge.costs.alarms(len(judge))
    )
    return np.column_stack([flagged * y, flagged * (1 - y), y, 1 - y, cost]) * weight[:, None]


def _value(sums: FloatArray, objective: str, days: float, beta: float) -> FloatArray:
    tp, fp, positives, negatives, cost = sums.T
    counts = thresholds.Counts(tp, fp, positives, negatives, cost, days, beta)
    return np.asarray(thresholds.OBJECTIVES[objective].value(counts), dtype=np.float64)


def _breaks(judge: MaturedRows, cut: float, settings: ThresholdSettings) -> str:
    """Which constraint a cut-off breaks on the judging rows, in words; empty when none."""
    tp, fp, positives, _, _ = _sums(judge, cut).sum(axis=0)
    precision, recall = (tp / (tp + fp) if tp + fp else 1.0), (tp / positives if positives else 1.0)
    if settings.min_precision is not None and precision < settings.min_precision:
        return f"; precision {precision:.3f} below {settings.min_precision}"
    if settings.min_recall is not None and recall < settings.min_recall:
        return f"; recall {recall:.3f} below {settings.min_recall}"
    alerts = (tp + fp) / judge.days
    if settings.max_alerts_per_day is not None and alerts > settings.max_alerts_per_day:
        return f"; {alerts:.1f} alerts a day above {settings.max_alerts_per_day:g}"
    return ""


def _losses(y: IntArray, score: FloatArray) -> FloatArray:
    p = np.clip(score, 1e-12, 1 - 1e-12)
    return np.asarray(-np.where(y == 1, np.log(p), np.log1p(-p)), dtype=np.float64)


def _estimate(value: float, resampled: FloatArray, judge: MaturedRows, bootstrap: Bootstrap) -> Estimate:
    low, high = np.nanquantile(resampled, bootstrap.levels)
    return Estimate(value, float(low), float(high), int(judge.y.sum()), len(judge))


# --- how much history ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class History:
    """The window of history that a retrain learns from.

    table : variant -> average precision forward in time on the newest matured rows, paired
    """

    chosen: str
    rows: Rows
    table: Mapping[str, Estimate]
    reason: str


Fit = Callable[[Rows], Callable[[AnyArray], FloatArray]]
"""Fits a quick model on rows; returns what scores a matrix."""


def variant(rows: Rows, name: str, change: datetime | None, half_life: timedelta) -> Rows | None:
    """Return the rows (or weights) of one way to use history; None where it has no meaning for these rows."""
    if rows.time is None or name == "all":
        return rows if name == "all" else None
    if name == "since_change":
        return None if change is None else rows.take(rows.time >= np.datetime64(change, "us"))
    span = rows.time.max() - rows.time.min()
    if name == "recent":
        return rows.take(rows.time >= rows.time.max() - span / 3)
    age = (rows.time.max() - rows.time) / np.timedelta64(half_life)
    base = np.ones(len(rows)) if rows.weight is None else rows.weight
    fading = np.exp2(-np.minimum(age, 20))
    scale = fading / (base * fading).mean()
    return replace(rows, weight=base * scale, most=None if rows.most is None else rows.most * scale)


def choose_history(
    rows: Rows,
    fit: Fit,
    *,
    windows: Sequence[str],
    half_life: timedelta,
    change: datetime | None,
    bootstrap: Bootstrap,
    judge_share: float = 0.5,
) -> History:
    """Choose how much history to learn from, forward in time on the newest rows.

    rows : all labelled rows, oldest first.  change : when the trouble began, None if nobody knows
    windows : what is tried beside "all" (`retrain.windows`).  half_life : of the weight of a row, for "weighted"
    Each variant is fitted on rows before a cut and scored after it; the cut leaves ``judge_share`` of the positives
    since the change (or a tenth of all) to judge. 'all' stays unless another one is better in four of five resamples.
    """
    whole = History("all", rows, {}, "all history: nothing to choose from")
    if rows.time is None or not rows.positives:
        return whole
    since = (
        np.datetime64(change, "us")
        if change is not None
        else rows.time[np.flatnonzero(rows.y == 1)[-max(rows.positives // 10, 1)]]
    )
    late = np.flatnonzero((rows.time >= since) & (rows.y == 1))
    if len(late) < 2 * MIN_JUDGES:
        return replace(
            whole, reason=f"all history: {len(late)} positives since the change, {2 * MIN_JUDGES} needed to choose"
        )
    cut = rows.time[late[int(len(late) * (1 - judge_share))]]
    early, judge = rows.take(rows.time < cut), rows.take(rows.time >= cut)
    scores: dict[str, FloatArray] = {}
    for name in dict.fromkeys(("all", *windows)):
        part = variant(early, name, change, half_life)
        if part is not None and part.positives >= MIN_JUDGES and part.positives < len(part):
            scores[name] = fit(part)(judge.x)
    table, better = _compared(judge, scores, bootstrap)
    allowed = [name for name in scores if name in windows or name == "all"]
    chosen = max(allowed, key=lambda name: table[name].value if name == "all" or better[name] >= 0.8 else -1.0)
    final = variant(rows, chosen, change, half_life)
    assert final is not None
    told = ", ".join(f"{name} {table[name].value:.3f}" for name in allowed)
    return History(
        chosen,
        final,
        table,
        f"{chosen}: average precision forward in time on {judge.positives} newest positives: {told}",
    )


def _compared(
    judge: Rows, scores: Mapping[str, FloatArray], bootstrap: Bootstrap
) -> tuple[dict[str, Estimate], dict[str, float]]:
    from rareclass.core import ranking

    names: Sequence[str] = list(scores)
    draws = ranking.bootstrap_average_precision(
        judge.y,
        np.stack([scores[name] for name in names]),
        block=judge.block(),
        n_boot=bootstrap.resamples,
        seed=bootstrap.seed,
        weight=judge.weight,
    )
    table, better = {}, {}
    for name, line in zip(names, draws, strict=True):
        low, high = np.nanquantile(line, bootstrap.levels)
        value = ranking.average_precision(judge.y, scores[name], judge.weight)
        table[name] = Estimate(float(value), float(low), float(high), judge.positives, len(judge))
        better[name] = float(np.mean(line > draws[0]))
    return table, better
