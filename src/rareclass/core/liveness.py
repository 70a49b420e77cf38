"""How good a version is on live rows whose labels come late: matured windows judged, maturing ones estimated.

A window is a stretch of *prediction* time. It is matured when it ended at least one label delay ago; only then are its
labels all in, and only then is quality judged: positives that happen to be reported early would flatter it. Average
precision moves with prevalence alone, so it is compared at the prevalence of the reference. Intervals come from a
bootstrap over days.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rareclass.config import MonitorSettings
from rareclass.core import review
from rareclass.core.bootstrap import MIN_BLOCKS, interval
from rareclass.core.dataset import FloatArray, IntArray
from rareclass.core.estimate import Estimate, normal_quantile, wilson
from rareclass.core.jsonable import Jsonable, jsonable
from rareclass.core.log_odds import expit, fit_logistic, logit
from rareclass.core.moments import naive
from rareclass.core.profile import Profile
from rareclass.core.ranking import BlockRanking, average_precision, estimated_ap

CHUNKS = 12
"""Where a window spans too few days for a bootstrap over them, it is cut into this many stretches of time instead."""

MISSING = Estimate(math.nan)
LOOKED_AT = 0.5
"""Share of the rows that were chosen to be looked at below which a window is not judged by those that were."""
FEW = 20
"""Alerts, and other rows, from which it is asked whether labels came for the ones rather than for the others."""


@dataclass(frozen=True, slots=True)
class Window:
    """One stretch of prediction time of one version.

    state : 'matured' (every label should be there) or 'maturing'
    judged : quality may be read; ``reason`` says why not
    coverage : labelled rows / rows whose label could be observed;  unjudgeable : share of rows of zero propensity
    metrics : name -> Estimate; missing names could not be judged. ``ap_reference`` is the average precision at the
        reference prevalence, ``difference`` that minus the reference's own; ``score_ratio`` mean score / prevalence;
        ``calibration_slope`` and ``calibration_intercept`` of the labels' log-odds over the scores' log-odds
    estimated_ap : what the calibrated scores alone promise, without any label
    violated : the upper bound of the difference lies below the margin
    """

    start: datetime
    end: datetime
    state: str
    rows: int
    labelled: int
    positives: int
    coverage: float
    unjudgeable: float
    mean_score: float
    alert_rate: float
    alerts_per_day: float
    label_delay_p95: float
    estimated_ap: float
    judged: bool
    reason: str
    metrics: Mapping[str, Estimate]
    violated: bool

    def metric(self, name: str) -> Estimate:
        """Return a metric, NaN where it could not be judged."""
        return self.metrics.get(name, MISSING)

    def to_json(self) -> dict[str, Any]:
        """Return the fields, times as ISO text, NaN as None."""
        return {**jsonable(self), "start": self.start.isoformat(), "end": self.end.isoformat()}


@dataclass(frozen=True, slots=True)
class Liveness:
    """All windows of one version in view, oldest first, and what they say together.

    reference_ap : what the difference is taken to;  estimate_error : root mean square of (estimated - true) AP over the
        judged windows, NaN without any
    violations, of : how many of the last ``of`` judged windows are violated
    degraded : at least 2 of the last 5 judged windows are violated, and the latest one is
    starved : the newest matured rows have hardly any labels, though labels are to come (``Settings.expected``);
        recent_coverage : their share with one
    """

    version: str
    now: datetime
    windows: tuple[Window, ...]
    reference_ap: float
    reference_prevalence: float
    estimate_error: float
    violations: int
    of: int
    degraded: bool
    starved: bool
    recent_coverage: float
    recent_rows: int
    label_delay_p95: float
    last_label: datetime | None

    @property
    def matured(self) -> tuple[Window, ...]:
        """Windows whose labels have had their delay."""
        return tuple(window for window in self.windows if window.state == "matured")

    @property
    def judged(self) -> tuple[Window, ...]:
        """Windows with enough labels to be judged."""
        return tuple(window for window in self.windows if window.judged)

    @property
    def latest(self) -> Window | None:
        """The newest matured window."""
        return self.matured[-1] if self.matured else None

    def to_json(self) -> dict[str, Any]:
        """Return the fields, times as ISO text, NaN as None."""
        written = jsonable(self, without={"windows"})
        last = None if self.last_label is None else self.last_label.isoformat()
        windows = [window.to_json() for window in self.windows]
        return {**written, "now": self.now.isoformat(), "last_label": last, "windows": windows}


@dataclass(frozen=True, slots=True)
class Settings:
    """What an evaluation needs besides the rows.

    delay : label delay
    expected : labels are known to come: a delay was configured, or the first one was seen
    beta : of the reported F-beta
    missing_negative_after : age from which a label that never came counts as 0 (None: it stays unknown)
    false_negative, false_positive : costs where the rows carry none
    """

    monitor: MonitorSettings
    delay: timedelta
    expected: bool = True
    beta: float = 1.0
    confidence: float = 0.95
    missing_negative_after: timedelta | None = None
    false_negative: float = 1.0
    false_positive: float = 1.0
    seed: int = 0


def evaluate(
    frame: pd.DataFrame, *, now: datetime, version: str, profile: Profile | None, settings: Settings
) -> Liveness:
    """Judge one version on its joined rows.

    frame : request_id, ts (UTC), version, score, decision, weight, propensity, label (NaN = none yet),
        label_observed_at; optionally false_negative and false_positive per row. Rows of other versions and rows
        from after ``now`` are left out, labels observed after ``now`` are not looked at. Where labels come from rows
        that were chosen to be looked at also review (inclusion probability, NaN = not chosen; in ``propensity``
        already), review_reason, and answered (False: scored in the shadow of another version, by which it was chosen)
    profile : the version's reference; without one nothing is a violation
    """
    now = naive(now)
    rows = _prepared(frame, version, now, settings)
    windows = []
    for start, end, state in boundaries(now, settings.delay, settings.monitor):
        low, high = np.searchsorted(rows.ts, [np.datetime64(start, "us"), np.datetime64(end, "us")])
        if high > low:
            windows.append(_window(rows.take(slice(low, high)), start, end, state, profile, settings))
    return _together(version, now, rows, tuple(windows), profile, settings)


def boundaries(now: datetime, delay: timedelta, limits: MonitorSettings) -> list[tuple[datetime, datetime, str]]:
    """Return (start, end, state) of the disjoint windows in view, oldest first.

    The newest matured window ends at the last full day (or full window, when windows are shorter than a day) that is
    one label delay old; the others lie before it and, up to ``now``, after it.
    """
    grain = min(limits.window, timedelta(days=1))
    epoch = datetime(1970, 1, 1)
    now = naive(now)
    anchor = epoch + ((now - delay - epoch) // grain) * grain
    past = [
        (anchor - k * limits.window, anchor - (k - 1) * limits.window, "matured") for k in range(limits.windows, 0, -1)
    ]
    maturing, start = [], anchor
    while start < now:
        maturing.append((start, min(start + limits.window, now), "maturing"))
        start += limits.window
    return past + maturing


def assumed(
    ts: NDArray[np.datetime64], label: FloatArray, propensity: FloatArray, now: datetime, after: timedelta | None
) -> FloatArray:
    """Return the (n,) labels with 0 where none came within ``after`` although one could have come (None: it stays
    unknown).

    A row of a propensity below 1 may have been blocked: that it has no label says nothing of its truth.
    """
    if after is None:
        return label
    overdue = (ts <= np.datetime64(naive(now) - after, "us")) & (propensity >= 1)
    return np.where(np.isnan(label) & overdue, 0.0, label)


def learned_delay(frame: pd.DataFrame, now: datetime) -> timedelta | None:
    """Return the 95th percentile of the delays of labels that came by ``now``, whole minutes; None before the first
    one.

    frame : ts, label, label_observed_at of rows of any version
    """
    known = ~np.isnan(frame["label"].to_numpy(np.float64))
    observed, ts = _times(frame["label_observed_at"])[known], _times(frame["ts"])[known]
    came = observed <= np.datetime64(naive(now), "us")
    if not came.any():
        return None
    delays = np.maximum((observed[came] - ts[came]) / np.timedelta64(1, "m"), 0)
    return timedelta(minutes=math.ceil(float(np.quantile(delays, 0.95))))


def paired(
    frame: pd.DataFrame,
    *,
    now: datetime,
    settings: Settings,
    since: datetime | None = None,
    confidence: float | None = None,
) -> Paired:
    """Compare a version that scored in the shadow with the one that answered, on the same matured rows.

    frame : as in ``evaluate``, with the other version's ``shadow_score`` (NaN = unscored), ``shadow_decision``
    Rows of zero propensity would be judged by their absence: with any of them decided 1 by either version the
    difference cannot be judged.
    """
    now = naive(now)
    rows = _prepared(frame, None, now, settings)
    shadow, also = (frame[name].to_numpy(np.float64)[rows.index] for name in ("shadow_score", "shadow_decision"))
    chosen = (rows.ts <= np.datetime64(now - settings.delay, "us")) & ~np.isnan(shadow)
    if since is not None:
        chosen &= rows.ts >= np.datetime64(naive(since), "us")
    rows, shadow, also = rows.take(chosen), shadow[chosen], also[chosen]
    blind = rows.propensity <= 0
    seen = ~blind & ~np.isnan(rows.label)
    known, shadow = rows.take(seen), shadow[seen]
    y = known.label.astype(np.int64)
    counts = {"positives": int(y.sum()), "rows": len(y)}
    if bool((blind & ((rows.decision >= 1) | (also >= 1))).any()):
        share = float(blind.mean())
        reason = f"cannot be judged: {share:.0%} of the rows have propensity 0, so their labels are never seen"
        return Paired(Estimate(math.nan, **counts), False, reason)
    if y.sum() < settings.monitor.min_positives or y.sum() == len(y):
        reason = f"{int(y.sum())} positives, {settings.monitor.min_positives} needed"
        return Paired(Estimate(math.nan, **counts), False, reason)
    starts = _starts(known.ts)
    draws = _draws(len(starts), settings)
    values, resampled = [], []
    for score in (shadow, known.score):
        ranking = BlockRanking.of(y, score, known.weights, starts)
        values.append(float(ranking.ap()))
        resampled.append(ranking.ap(draws))
    low, high = _widened(
        values[0] - values[1], resampled[0] - resampled[1], len(starts), confidence or settings.confidence
    )
    return Paired(Estimate(values[0] - values[1], low, high, **counts), True, "", values[0], values[1])


@dataclass(frozen=True, slots=True)
class Paired(Jsonable):
    """Average precision of the shadow minus that of the version that answered, on the same rows."""

    difference: Estimate
    judged: bool
    reason: str
    shadow_ap: float = math.nan
    answering_ap: float = math.nan


# --- rows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Live:
    """Rows of one version in order of time; ``index`` is their place in the frame they came from."""

    index: IntArray
    ts: NDArray[np.datetime64]
    score: FloatArray
    decision: FloatArray
    sampling: FloatArray
    propensity: FloatArray
    label: FloatArray
    observed: NDArray[np.datetime64]
    miss: FloatArray | None
    alarm: FloatArray | None
    review: FloatArray | None = None
    reason: NDArray[np.object_] | None = None
    answered: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.ts)

    def take(self, index: Any) -> _Live:
        found: list[Any] = [getattr(self, name) for name in self.__slots__]
        part: list[Any] = [None if array is None else array[index] for array in found]
        return _Live(*part)

    @property
    def weights(self) -> FloatArray | None:
        """Sampling weight over propensity, or None where every row counts once."""
        if bool((self.sampling == 1).all() and (self.propensity == 1).all()):
            return None
        return np.asarray(self.sampling / np.where(self.propensity > 0, self.propensity, 1.0))

    @property
    def delays(self) -> FloatArray:
        """Seconds from prediction to label, of the rows with a label that was observed."""
        known = ~np.isnat(self.observed) & ~np.isnan(self.label)
        return np.asarray((self.observed[known] - self.ts[known]) / np.timedelta64(1, "s"), dtype=np.float64)


def _times(values: pd.Series[Any]) -> NDArray[np.datetime64]:
    if values.dtype.kind != "M" or getattr(values.dt, "tz", None) is not None:
        values = pd.to_datetime(values, utc=True).dt.tz_localize(None)
    return np.asarray(values.to_numpy("datetime64[us]"))


def _prepared(frame: pd.DataFrame, version: str | None, now: datetime, settings: Settings) -> _Live:
    """Rows of one version up to now, in order of time, with labels as they were known now."""
    ts, moment = _times(frame["ts"]), np.datetime64(now, "us")

    def number(name: str, default: float = math.nan) -> FloatArray:
        values = frame[name].to_numpy(np.float64) if name in frame else np.full(len(frame), default)
        return values if math.isnan(default) else np.where(np.isnan(values), default, values)

    score = number("score")
    keep = (ts <= moment) & ~np.isnan(score)
    if version is not None:
        keep &= (frame["version"].astype(str) == version).to_numpy()
    index = np.flatnonzero(keep)
    if bool((np.diff(ts[index].astype(np.int64)) < 0).any()):
        index = index[np.argsort(ts[index], kind="stable")]
    miss, alarm, asked = (
        number(name)[index] if name in frame else None for name in ("false_negative", "false_positive", "review")
    )
    observed = _times(frame["label_observed_at"])[index]
    label, propensity = number("label")[index], number("propensity", 1.0)[index]
    label = np.where(observed > moment, np.nan, label)
    if asked is None:
        label = assumed(ts[index], label, propensity, now, settings.missing_negative_after)
    else:  # that nobody looked at a row says nothing of it, and a label that came all the same is no sample
        label = np.where(np.isnan(asked), np.nan, label)
    return _Live(
        index,
        ts[index],
        score[index],
        number("decision")[index],
        number("weight", 1.0)[index],
        propensity,
        label,
        observed,
        miss,
        alarm,
        asked,
        frame["review_reason"].to_numpy(object)[index] if "review" in frame else None,
        frame["answered"].to_numpy(bool)[index] if "answered" in frame else None,
    )


def _starts(ts: NDArray[np.datetime64]) -> IntArray:
    """First row of each block: days, or equal stretches of rows where there are too few days."""
    days = np.arange(ts[0].astype("datetime64[D]"), ts[-1].astype("datetime64[D]") + 1)
    starts = np.unique(np.searchsorted(ts, days.astype("datetime64[us]")))
    if len(starts) < MIN_BLOCKS:
        starts = np.unique(np.arange(min(CHUNKS, len(ts))) * len(ts) // min(CHUNKS, len(ts)))
    return starts.astype(np.int64)


def _draws(blocks: int, settings: Settings) -> FloatArray:
    """(blocks, resamples): how often each block is in each resample."""
    rng = np.random.default_rng(settings.seed)
    size = settings.monitor.bootstraps
    return np.asarray(rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=size).T, dtype=np.float64)


# --- one window ------------------------------------------------------------------------------------------------------


def _window(
    rows: _Live, start: datetime, end: datetime, state: str, profile: Profile | None, settings: Settings
) -> Window:
    labelled = ~np.isnan(rows.label) & (rows.propensity > 0)
    known = rows if bool(labelled.all()) else rows.take(labelled)
    y = known.label.astype(np.int64)
    expected = _expected(rows)
    reason = _why_not(state, y, settings.monitor.min_positives)
    unlooked = _unlooked(rows, labelled) if state == "matured" else ""
    selective = _selective(rows, labelled) if state == "matured" else ""
    reason = unlooked or selective or reason
    metrics: dict[str, Estimate] = {}
    if rows.review is not None and len(y):
        known = _for_those_not_looked_at(known, rows)
    if state == "matured" and selective:
        # what is known of alerts says how many of them are right, and nothing of what was missed
        starts = _starts(known.ts)
        counted = _counted(known, y, starts, _draws(len(starts), settings), settings)
        metrics = {name: value for name, value in counted.items() if name == "precision"}
    elif state == "matured" and len(y) and _by_own_score(rows):
        metrics = _completed(rows, known, y, not reason, profile, settings)
    elif state == "matured" and len(y):
        starts = _starts(known.ts)
        draws = _draws(len(starts), settings)
        metrics = _counted(known, y, starts, draws, settings)
        if not reason:
            metrics |= _ranked(known, y, starts, draws, profile, settings)
    elif state == "maturing" and settings.monitor.min_positives <= y.sum() < len(y):
        # Shown, never judged, and without an interval: which labels come early is not chance.
        value = average_precision(y, known.score, known.weights)
        metrics["ap"] = Estimate(value, positives=int(y.sum()), rows=len(y))
    # Scores of a detector that no label judged are ranks, not probabilities: they promise nothing and are off by
    # nothing.
    ranks = profile is not None and profile.unjudged
    if ranks:
        metrics = {name: value for name, value in metrics.items() if name not in _OF_PROBABILITIES}
    delays, total = known.delays, float(rows.sampling.sum())
    days = (end - start) / timedelta(days=1)
    margin = settings.monitor.max_ap_loss * _reference(profile)[0] if profile is not None else math.nan
    difference = metrics.get("difference", MISSING)
    return Window(
        start=start,
        end=end,
        state=state,
        rows=len(rows),
        labelled=len(y),
        positives=int(y.sum()),
        coverage=min(1.0, float(rows.sampling[labelled].sum()) / expected) if expected else math.nan,
        unjudgeable=float((rows.sampling * (rows.propensity <= 0)).sum()) / total,
        mean_score=float((rows.sampling * rows.score).sum()) / total,
        alert_rate=float((rows.sampling * rows.decision).sum()) / total,
        alerts_per_day=float((rows.decision * rows.sampling).sum() / days),
        label_delay_p95=float(np.quantile(delays, 0.95)) if len(delays) else math.nan,
        estimated_ap=math.nan if ranks else estimated_ap(rows.score, rows.sampling),
        judged=not reason,
        reason=reason,
        metrics=metrics,
        violated=bool(not reason and difference.high < -margin),
    )


def _why_not(state: str, y: IntArray, min_positives: int) -> str:
    if state != "matured":
        return "labels are still coming"
    if y.sum() < min_positives:
        return f"{int(y.sum())} positives, {min_positives} needed"
    return "no negatives" if y.sum() == len(y) else ""


def _expected(rows: _Live) -> float:
    """Labels that may be expected, as rows: of those chosen to be looked at, or of all by their propensity."""
    if rows.review is not None:
        return float(rows.sampling[_asked(rows.review, rows.propensity)].sum())
    return float((rows.sampling * np.clip(rows.propensity, 0, 1)).sum())


def _asked(chance: FloatArray, propensity: FloatArray) -> NDArray[np.bool_]:
    """(n,) where a row was chosen to be looked at and can have a label."""
    return np.asarray(~np.isnan(chance) & (propensity > 0))


def _unlooked(rows: _Live, labelled: NDArray[np.bool_]) -> str:
    """Say so where too few of the rows to look at were looked at."""
    if rows.review is None:
        return ""
    asked = int(_asked(rows.review, rows.propensity).sum())
    if asked == 0:
        return "none of its rows was chosen by `rareclass review`"
    seen = int(labelled.sum())
    return "" if seen >= LOOKED_AT * asked else f"{seen} of {asked} rows that were chosen have been looked at"


def _selective(rows: _Live, labelled: NDArray[np.bool_]) -> str:
    """Say so where labels came for alerts rather than for other rows: what was missed is not seen then.

    Source: verification bias (Begg and Greenes, Biometrics, 1983).
    """
    if rows.review is not None:
        return ""
    may, alert = rows.propensity > 0, rows.decision >= 1
    counts = [(int((labelled & part & may).sum()), int((part & may).sum())) for part in (alert, ~alert)]
    (caught, alerts), (others, rest) = counts
    if min(alerts, rest) < FEW or caught / alerts <= 2 * others / rest:
        return ""
    if wilson(caught, alerts)[0] <= wilson(others, rest)[1]:
        return ""
    return (
        f"labels came for {caught / alerts:.0%} of the alerts and {others / rest:.1%} of the other rows, so what was "
        "missed is not seen. Choose rows with `rareclass review` and set review.labels: chosen, or, where no label "
        "means 0, labels.missing: negative"
    )


def _for_those_not_looked_at(known: _Live, rows: _Live) -> _Live:
    """Chosen rows of one kind that have a label stand for those of this kind that have none."""
    assert rows.review is not None and rows.reason is not None and known.reason is not None  # noqa: PT018
    asked = ~np.isnan(rows.review)
    share = review.answered(np.ones(int(asked.sum())), rows.reason[asked], rows.label[asked])
    of = dict(zip(rows.reason[asked], share, strict=True))
    return replace(known, propensity=known.propensity * np.array([of[kind] for kind in known.reason]))


def _by_own_score(rows: _Live) -> bool:
    """Whether rows were chosen by the very scores that are judged: only then scores alone tell of the others."""
    return rows.review is not None and (rows.answered is None or bool(rows.answered.all()))


def _completed(
    rows: _Live, known: _Live, y: IntArray, judged: bool, profile: Profile | None, settings: Settings
) -> dict[str, Estimate]:
    """Metrics of all rows from the labels of chosen ones: the labels that nobody has seen are drawn many times from
    what the seen ones say about the scores (`core.review`); intervals are those of this window's rows.
    """
    ranks = profile is not None and profile.unjudged
    label = np.where(rows.propensity > 0, rows.label, np.nan)
    sampled = review.Sampled(rows.score, label, rows.decision, rows.sampling, ranks)
    found = review.complete(sampled, draws=max(review.DRAWS, settings.monitor.bootstraps), seed=settings.seed)
    n, alerts = float(found.rows.sum()), float(found.rows[1].sum())
    miss, alarm, false = settings.false_negative, settings.false_positive, alerts - found.caught
    sums = (
        n,
        found.total,
        np.full(len(found.total), alerts),
        found.caught,
        float((rows.sampling * rows.score).sum()),
        (found.total - found.caught) * miss + false * alarm,
        found.caught * miss - false * alarm,
    )
    drawn = _ratios(sums, settings.beta)
    starts = _starts(known.ts)
    metrics: dict[str, Estimate] = {}
    if rows.miss is not None:  # costs differ from row to row: by weights
        counted = _counted(known, y, starts, _draws(len(starts), settings), settings)
        metrics = {name: value for name, value in counted.items() if name.endswith("per_1000")}
        drawn = {name: value for name, value in drawn.items() if not name.endswith("per_1000")}
    enough = y.sum() >= settings.monitor.min_positives
    for name, values in drawn.items():
        if (enough or name in ("prevalence", "cost_per_1000", "saving_per_1000")) and np.isfinite(values).any():
            metrics[name] = found.estimate(np.asarray(values), settings.confidence)
    if not judged:
        return metrics
    metrics["ap"] = found.estimate(found.ap(), settings.confidence)
    metrics["roc_auc"] = found.estimate(found.roc_auc(), settings.confidence)
    weighted = review.horvitz_thompson_ap(known.score, y.astype(float), known.propensity, known.sampling)
    metrics["ap_weighted"] = Estimate(weighted, positives=int(y.sum()), rows=len(y))
    # given the score, being chosen says nothing more of the label: the line needs no weights
    metrics |= _calibration(y, known.score, None, starts, settings.confidence)
    if profile is not None and math.isfinite(profile.ap) and 0 < profile.prevalence < 1:
        odds = profile.prevalence / (1 - profile.prevalence)
        metrics["ap_reference"] = found.estimate(found.ap(odds), settings.confidence)
        metrics["difference"] = _difference(metrics["ap_reference"], profile, settings.confidence)
    return metrics


def _counted(known: _Live, y: IntArray, starts: IntArray, draws: FloatArray, settings: Settings) -> dict[str, Estimate]:
    """Metrics that are ratios of sums: prevalence, precision, recall, F-beta, calibration in the large, cost."""
    base = known.weights
    decision, positive = known.decision, y.astype(np.float64)
    miss = settings.false_negative if known.miss is None else known.miss
    alarm = settings.false_positive if known.alarm is None else known.alarm
    caught = positive * decision
    saved, false = caught * miss, (decision - caught) * alarm
    cost = positive * miss - saved + false
    columns = (np.ones(len(y)), positive, decision, caught, known.score, cost, saved - false)
    blocks = np.stack([np.add.reduceat(column if base is None else column * base, starts) for column in columns])
    whole, resampled = _ratios(blocks.sum(axis=1), settings.beta), _ratios(blocks @ draws, settings.beta)
    found = {}
    for name, value in whole.items():
        enough = name in ("prevalence", "cost_per_1000", "saving_per_1000") or y.sum() >= settings.monitor.min_positives
        if enough and np.isfinite(value):
            bounds = _BOUNDS.get(name, (-math.inf, math.inf))
            low, high = _widened(float(value), resampled[name], len(starts), settings.confidence, bounds)
            found[name] = Estimate(float(value), low, high, int(y.sum()), len(y))
    return found


def _ratios(sums: Any, beta: float) -> dict[str, Any]:
    n, positive, alerts, caught, score, cost, saved = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "prevalence": positive / n,
            "precision": caught / alerts,
            "recall": caught / positive,
            "f_beta": (1 + beta**2) * caught / (beta**2 * positive + alerts),
            "score_ratio": score / positive,
            "cost_per_1000": 1000 * cost / n,
            "saving_per_1000": 1000 * saved / n,
        }


def _ranked(
    known: _Live, y: IntArray, starts: IntArray, draws: FloatArray, profile: Profile | None, settings: Settings
) -> dict[str, Estimate]:
    """Average precision as it is and at the reference prevalence, ROC-AUC, and the calibration line."""
    ranking = BlockRanking.of(y, known.score, known.weights, starts)

    def estimate(value: float, resampled: FloatArray) -> Estimate:
        low, high = _widened(float(value), resampled, len(starts), settings.confidence, _SHARE)
        return Estimate(float(value), low, high, int(y.sum()), len(y))

    found = {
        "ap": estimate(ranking.ap(), ranking.ap(draws)),
        "roc_auc": estimate(ranking.roc_auc(), ranking.roc_auc(draws)),
    }
    found |= _calibration(y, known.score, known.weights, starts, settings.confidence)
    if profile is None or not math.isfinite(profile.ap) or not 0 < profile.prevalence < 1:
        return found
    odds = profile.prevalence / (1 - profile.prevalence)
    found["ap_reference"] = estimate(ranking.ap(odds=odds), ranking.ap(draws, odds))
    found["difference"] = _difference(found["ap_reference"], profile, settings.confidence)
    return found


def _reference(profile: Profile) -> tuple[float, float, float]:
    """The reference's AP for a window, its standard error, and how much windows differ among themselves.

    With at least three windows in the reference their mean is what one more window is compared with; pooling over
    time rewards knowing which season is bad, which no single window can show.
    """
    if len(profile.window_ap) >= 3:
        spread = float(np.std(profile.window_ap, ddof=1))
        return float(np.mean(profile.window_ap)), spread / math.sqrt(len(profile.window_ap)), spread
    known = profile.ap_high - profile.ap_low
    return profile.ap, (known / 3.92 if math.isfinite(known) else 0.0), 0.0


def _difference(found: Estimate, profile: Profile, confidence: float) -> Estimate:
    """Live minus reference AP: the window's own error (at least what reference windows show), and the reference's."""
    reference, error, spread = _reference(profile)
    z = normal_quantile(0.5 + confidence / 2)
    own = (found.high - found.low) / (2 * z)
    width = z * math.hypot(max(own, spread), error)
    value = found.value - reference
    return Estimate(value, value - width, value + width, found.positives, found.rows)


CELLS = 1000
"""Cells of equal width on the logit that scores are pooled into for the calibration line."""


def _calibration(
    y: IntArray, score: FloatArray, weight: FloatArray | None, starts: IntArray, confidence: float
) -> dict[str, Estimate]:
    """Slope and intercept of log-odds(label) over log-odds(score): 1 and 0 when calibrated (Cox, 1958).

    A change of prevalence alone moves the intercept and leaves the slope. Intervals from the sandwich over blocks.
    """
    from scipy.stats import t

    z = logit(score)
    low, blocks = float(z.min()), len(starts)
    cell = np.minimum(((z - low) * (CELLS / max(float(z.max()) - low, 1e-12))).astype(np.int64), CELLS - 1)
    cell += CELLS * np.repeat(np.arange(blocks), np.diff(np.append(starts, len(y))))
    base = np.ones(len(y)) if weight is None else weight
    size = CELLS * blocks
    mass = np.bincount(cell, base, size)
    used = np.flatnonzero(mass)
    mass, positive = mass[used], np.bincount(cell, base * y, size)[used]
    x = np.column_stack([np.bincount(cell, base * z, size)[used] / mass, np.ones(len(used))])
    pull = np.full(2, 1e-9)
    weights = np.asarray(mass, dtype=np.float64)
    beta = fit_logistic([*x.T], positive / mass, weights, np.array([1.0, 0.0]), np.ones(2, dtype=bool), pull)
    fitted = expit(x @ beta)
    hessian = x.T @ (x * (mass * fitted * (1 - fitted))[:, None]) + np.diag(pull)
    residual = x * (positive - mass * fitted)[:, None]
    residual = np.stack([np.bincount(used // CELLS, column, blocks) for column in residual.T], axis=1)
    inverse = np.linalg.inv(hessian)
    variance = inverse @ (residual.T @ residual) @ inverse * blocks / max(blocks - 1, 1)
    width = float(t.ppf(0.5 + confidence / 2, max(blocks - 1, 1))) * np.sqrt(np.diag(variance))
    names = ("calibration_intercept", "calibration_slope")
    return {
        name: Estimate(float(b), float(b - e), float(b + e), int(y.sum()), len(y))
        for name, b, e in zip(names, beta[::-1], width[::-1], strict=True)
    }


_SHARE = (0.0, 1.0)
_AMOUNT = (0.0, math.inf)
# What compares scores with how often they come true: of no meaning where scores are ranks.
_OF_PROBABILITIES = frozenset({"score_ratio", "calibration_intercept", "calibration_slope"})
_BOUNDS = {
    "prevalence": _SHARE,
    "precision": _SHARE,
    "recall": _SHARE,
    "f_beta": _SHARE,
    "score_ratio": _AMOUNT,
    "cost_per_1000": _AMOUNT,
}
"""What a metric cannot leave, and so neither can its interval; the others have no bounds."""


def _widened(
    value: float,
    resampled: FloatArray,
    units: int,
    confidence: float,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> tuple[float, float]:
    """Percentile interval, stretched about the value for a small number of blocks (Student's t, and n / (n - 1)),
    inside its bounds.
    """
    from scipy.stats import norm, t

    low, high = interval(resampled, confidence)
    if units >= 2 and not math.isnan(low):
        tail = 0.5 + confidence / 2
        stretch = float(t.ppf(tail, units - 1) / norm.ppf(tail)) * math.sqrt(units / (units - 1))
        low = min(low, value) if stretch <= 1 else value - (value - low) * stretch
        high = value + (high - value) * stretch
    least, most = bounds
    return float(np.clip(low, least, most)), float(np.clip(high, least, most))


# --- all windows -----------------------------------------------------------------------------------------------------


def _together(
    version: str,
    now: datetime,
    rows: _Live,
    windows: tuple[Window, ...],
    profile: Profile | None,
    settings: Settings,
) -> Liveness:
    judged = [window for window in windows if window.judged]
    recent = judged[-5:]
    violations = sum(window.violated for window in recent)
    errors = [window.estimated_ap - window.metric("ap").value for window in judged]
    coverage, count = _recent_coverage(rows, now, settings)
    delays = rows.delays
    observed = rows.observed[~np.isnan(rows.label) & ~np.isnat(rows.observed)]
    return Liveness(
        version=version,
        now=now,
        windows=windows,
        reference_ap=math.nan if profile is None else _reference(profile)[0],
        reference_prevalence=math.nan if profile is None else profile.prevalence,
        estimate_error=float(np.sqrt(np.mean(np.square(errors)))) if errors else math.nan,
        violations=violations,
        of=len(recent),
        degraded=bool(violations >= 2 and recent[-1].violated),
        starved=bool(
            settings.expected and count >= settings.monitor.min_rows and coverage < settings.monitor.starvation
        ),
        recent_coverage=coverage,
        recent_rows=count,
        label_delay_p95=float(np.quantile(delays, 0.95)) if len(delays) else math.nan,
        last_label=observed.max().astype(datetime) if len(observed) else None,
    )


def _recent_coverage(rows: _Live, now: datetime, settings: Settings) -> tuple[float, int]:
    """Coverage of the newest matured rows: half a window, so that labels that stop are noticed before it is full."""
    grain = min(settings.monitor.window, timedelta(days=1))
    end = now - settings.delay
    start = end - max(settings.monitor.window / 2, grain)
    bounds = np.searchsorted(rows.ts, [np.datetime64(start, "us"), np.datetime64(end, "us")], side="right")
    part = rows.take(slice(*bounds))
    expected = _expected(part)
    seen = float(part.sampling[~np.isnan(part.label) & (part.propensity > 0)].sum())
    return (min(1.0, seen / expected) if expected else math.nan), len(part)
