"""How good a version is on live rows whose labels come late: matured windows judged, maturing ones estimated.

A window is a stretch of *prediction* time. It is matured when it ended at least one label delay ago; only then are its
labels all in, and only then is quality judged: positives that happen to be reported early would flatter it. Average
precision moves with prevalence alone, so it is compared at the prevalence of the reference. Intervals come from a
bootstrap over days.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rareclass.config import Monitor
from rareclass.core.bootstrap import MIN_BLOCKS, Ladder, Resamples, interval
from rareclass.core.drift import Profile
from rareclass.core.estimate import Estimate
from rareclass.core.rows import FloatArray, IntArray

CHUNKS = 12
"""Where a window spans too few days for a bootstrap over them, it is cut into this many stretches of time instead."""

MISSING = Estimate(math.nan)


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
        plain = {key: _finite(value) for key, value in asdict(self).items() if key not in ("start", "end", "metrics")}
        metrics = {name: value.to_json() for name, value in self.metrics.items()}
        return {"start": self.start.isoformat(), "end": self.end.isoformat(), **plain, "metrics": metrics}


@dataclass(frozen=True, slots=True)
class Liveness:
    """All windows of one version in view, oldest first, and what they say together.

    reference_ap : what the difference is taken to;  estimate_error : root mean square of (estimated - true) AP over the
        judged windows, NaN without any
    violations, of : how many of the last ``of`` judged windows are violated
    degraded : at least 2 of the last 5 judged windows are violated, and the latest one is
    starved : the newest matured rows have hardly any labels;  recent_coverage : their share with one
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
        return tuple(window for window in self.windows if window.state == "matured")

    @property
    def judged(self) -> tuple[Window, ...]:
        return tuple(window for window in self.windows if window.judged)

    @property
    def latest(self) -> Window | None:
        """The newest matured window."""
        return self.matured[-1] if self.matured else None

    def to_json(self) -> dict[str, Any]:
        plain = {
            key: _finite(getattr(self, key)) for key in self.__slots__ if key not in ("windows", "now", "last_label")
        }
        last = None if self.last_label is None else self.last_label.isoformat()
        return {
            **plain,
            "now": self.now.isoformat(),
            "last_label": last,
            "windows": [w.to_json() for w in self.windows],
        }


@dataclass(frozen=True, slots=True)
class Settings:
    """What an evaluation needs besides the rows.

    delay : label delay;  beta : of the reported F-beta;  missing_negative_after : age from which a label that never
    came counts as 0 (None: it stays unknown);  false_negative, false_positive : costs where the rows carry none
    """

    monitor: Monitor
    delay: timedelta
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
        from after ``now`` are left out, labels observed after ``now`` are not looked at.
    profile : the version's reference; without one nothing is a violation
    """
    now = _naive(now)
    rows = _prepared(frame, version, now, settings)
    ts = rows["ts"].to_numpy("datetime64[us]")
    windows = []
    for start, end, state in boundaries(now, settings.delay, settings.monitor):
        low, high = np.searchsorted(ts, [np.datetime64(start, "us"), np.datetime64(end, "us")])
        if high > low:
            windows.append(_window(rows.iloc[low:high], start, end, state, profile, settings))
    return _together(version, now, rows, tuple(windows), profile, settings)


def boundaries(now: datetime, delay: timedelta, limits: Monitor) -> list[tuple[datetime, datetime, str]]:
    """Return (start, end, state) of the disjoint windows in view, oldest first.

    The newest matured window ends at the last full day (or full window, when windows are shorter than a day) that is
    one label delay old; the others lie before it and, up to ``now``, after it.
    """
    grain = min(limits.window, timedelta(days=1))
    epoch = datetime(1970, 1, 1)
    now = _naive(now)
    anchor = epoch + ((now - delay - epoch) // grain) * grain
    past = [
        (anchor - k * limits.window, anchor - (k - 1) * limits.window, "matured") for k in range(limits.windows, 0, -1)
    ]
    maturing, start = [], anchor
    while start < now:
        maturing.append((start, min(start + limits.window, now), "maturing"))
        start += limits.window
    return past + maturing


def estimated_ap(score: FloatArray, weight: FloatArray | None = None) -> float:
    """Return the average precision that calibrated scores promise without labels; NaN without rows.

    Every row counts as ``score`` positives and ``1 - score`` negatives.
    Source: confidence-based performance estimation (Garg et al., ICLR 2022, for accuracy), carried over to the ranking.
    """
    if not len(score):
        return math.nan
    cut, place = np.unique(-score, return_inverse=True)
    base = np.ones(len(score)) if weight is None else weight
    positive = np.bincount(place, base * score, len(cut)).astype(np.float64)
    negative = np.bincount(place, base * (1 - score), len(cut)).astype(np.float64)
    return float(_average_precision(positive, negative))


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
    now = _naive(now)
    rows = _prepared(frame, None, now, settings)
    ts = rows["ts"].to_numpy("datetime64[us]")
    mature = ts <= np.datetime64(now - settings.delay, "us")
    if since is not None:
        mature &= ts >= np.datetime64(_naive(since), "us")
    rows = rows[mature & rows["shadow_score"].notna().to_numpy()]
    blind = rows["propensity"].to_numpy() <= 0
    known = rows[~blind & rows["label"].notna().to_numpy()]
    y = known["label"].to_numpy(np.int64)
    counts = {"positives": int(y.sum()), "rows": len(known)}
    acted = (rows["decision"].to_numpy(np.float64) >= 1) | (rows["shadow_decision"].to_numpy(np.float64) >= 1)
    if bool((blind & acted).any()):
        share = float(blind.mean())
        return Paired(
            Estimate(math.nan, **counts),
            False,
            f"cannot be judged: {share:.0%} of the rows have propensity 0, so their labels are never seen",
        )
    if y.sum() < settings.monitor.min_positives or y.sum() == len(y):
        return Paired(
            Estimate(math.nan, **counts), False, f"{int(y.sum())} positives, {settings.monitor.min_positives} needed"
        )
    weight = _weights(known)
    draws = Resamples(
        len(y), _blocks(known["ts"].to_numpy("datetime64[us]")), settings.monitor.bootstraps, settings.seed
    )
    values, resampled = [], []
    for column in ("shadow_score", "score"):
        ladder = Ladder.build(y, known[column].to_numpy(np.float64), weight)
        values.append(float(_average_precision(ladder.totals(None, True), ladder.totals(None, False))))
        chunks = ladder.resampled(draws, columns=[(None, True), (None, False)])
        resampled.append(np.concatenate([_average_precision(tp, fp) for tp, fp in chunks]))
    low, high = _widened(
        values[0] - values[1], resampled[0] - resampled[1], draws.units, confidence or settings.confidence
    )
    return Paired(Estimate(values[0] - values[1], low, high, **counts), True, "", values[0], values[1])


@dataclass(frozen=True, slots=True)
class Paired:
    """Average precision of the shadow minus that of the version that answered, on the same rows."""

    difference: Estimate
    judged: bool
    reason: str
    shadow_ap: float = math.nan
    answering_ap: float = math.nan

    def to_json(self) -> dict[str, Any]:
        return {
            "difference": self.difference.to_json(),
            "judged": self.judged,
            "reason": self.reason,
            "shadow_ap": _finite(self.shadow_ap),
            "answering_ap": _finite(self.answering_ap),
        }


# --- rows ------------------------------------------------------------------------------------------------------------


def _naive(moment: datetime) -> datetime:
    """The same moment in UTC without a zone: one kind of time inside."""
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


def _times(values: pd.Series[Any]) -> pd.Series[Any]:
    return pd.to_datetime(values, utc=True).dt.tz_localize(None).astype("datetime64[us]")


def _prepared(frame: pd.DataFrame, version: str | None, now: datetime, settings: Settings) -> pd.DataFrame:
    """Rows of one version up to now, in order of time, with labels as they were known now."""
    rows = frame if version is None else frame[frame["version"].astype(str).to_numpy() == version]
    rows = rows.assign(
        ts=_times(rows["ts"]), label_observed_at=_times(rows["label_observed_at"]), label=rows["label"].astype(float)
    )
    for column in ("weight", "propensity"):
        rows[column] = rows[column].fillna(1.0).astype(float) if column in rows.columns else 1.0
    moment = pd.Timestamp(now)
    rows = rows[(rows["ts"] <= moment).to_numpy() & rows["score"].notna().to_numpy()]
    rows = rows.sort_values("ts", kind="stable")
    future = (rows["label_observed_at"] > moment).to_numpy()
    label = rows["label"].to_numpy().copy()
    label[future] = np.nan
    if settings.missing_negative_after is not None:
        old = (rows["ts"] <= pd.Timestamp(now - settings.missing_negative_after)).to_numpy()
        label[old & np.isnan(label) & (rows["propensity"].to_numpy() >= 1)] = 0.0
    return rows.assign(label=label)


def _weights(rows: pd.DataFrame) -> FloatArray | None:
    """Sampling weight over propensity, or None where every row counts once."""
    propensity = rows["propensity"].to_numpy(np.float64)
    weight = rows["weight"].to_numpy(np.float64) / np.where(propensity > 0, propensity, 1.0)
    return None if bool((weight == 1).all()) else weight


def _blocks(ts: NDArray[np.datetime64]) -> IntArray:
    """Days, or equal stretches of time where there are too few days."""
    day = np.unique(ts.astype("datetime64[D]"), return_inverse=True)[1].astype(np.int64)
    if len(day) and day.max() + 1 >= MIN_BLOCKS:
        return day
    return np.arange(len(ts)) * CHUNKS // max(len(ts), 1)


# --- one window ------------------------------------------------------------------------------------------------------


def _window(
    rows: pd.DataFrame, start: datetime, end: datetime, state: str, profile: Profile | None, settings: Settings
) -> Window:
    score, decision = rows["score"].to_numpy(np.float64), rows["decision"].to_numpy(np.float64)
    sampling, propensity = rows["weight"].to_numpy(np.float64), rows["propensity"].to_numpy(np.float64)
    labelled = rows["label"].notna().to_numpy() & (propensity > 0)
    known = rows[labelled]
    y = known["label"].to_numpy(np.int64)
    expected = float((sampling * np.clip(propensity, 0, 1)).sum())
    reason = _why_not(state, y, settings.monitor.min_positives)
    metrics: dict[str, Estimate] = {}
    if state == "matured" and len(y):
        metrics = _counted(known, y, settings)
        if not reason:
            metrics |= _ranked(known, y, profile, settings)
    delays = (known["label_observed_at"] - known["ts"]).dt.total_seconds().dropna()
    days = (end - start) / timedelta(days=1)
    margin = settings.monitor.max_ap_loss * _reference(profile)[0] if profile is not None else math.nan
    difference = metrics.get("difference", MISSING)
    return Window(
        start=start,
        end=end,
        state=state,
        rows=len(rows),
        labelled=int(labelled.sum()),
        positives=int(y.sum()),
        coverage=min(1.0, float(sampling[labelled].sum()) / expected) if expected else math.nan,
        unjudgeable=float(np.average(propensity <= 0, weights=sampling)),
        mean_score=float(np.average(score, weights=sampling)),
        alert_rate=float(np.average(decision, weights=sampling)),
        alerts_per_day=float((decision * sampling).sum() / days),
        label_delay_p95=float(delays.quantile(0.95)) if len(delays) else math.nan,
        estimated_ap=estimated_ap(score, sampling),
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


def _counted(known: pd.DataFrame, y: IntArray, settings: Settings) -> dict[str, Estimate]:
    """Metrics that are ratios of sums: prevalence, precision, recall, F-beta, calibration in the large, cost."""
    weight = _weights(known)
    base = np.ones(len(y)) if weight is None else weight
    decision, score = known["decision"].to_numpy(np.float64), known["score"].to_numpy(np.float64)
    miss = known["false_negative"].to_numpy(np.float64) if "false_negative" in known else settings.false_negative
    alarm = known["false_positive"].to_numpy(np.float64) if "false_positive" in known else settings.false_positive
    cost = np.where(y == 1, (1 - decision) * miss, decision * alarm)
    saved = np.where(y == 1, decision * miss, -decision * alarm)
    table = np.column_stack([np.ones(len(y)), y, decision, y * decision, score, cost, saved]) * base[:, None]
    draws = Resamples(
        len(y), _blocks(known["ts"].to_numpy("datetime64[us]")), settings.monitor.bootstraps, settings.seed
    )
    whole, resampled = _ratios(table.sum(axis=0), settings.beta), _ratios(draws.sums(table).T, settings.beta)
    found = {}
    for name, value in whole.items():
        enough = name in ("prevalence", "cost_per_1000", "saving_per_1000") or y.sum() >= settings.monitor.min_positives
        if enough and np.isfinite(value):
            low, high = _widened(float(value), resampled[name], draws.units, settings.confidence)
            found[name] = Estimate(float(value), low, high, int(y.sum()), len(y))
    return found


def _ratios(sums: FloatArray, beta: float) -> dict[str, Any]:
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


def _ranked(known: pd.DataFrame, y: IntArray, profile: Profile | None, settings: Settings) -> dict[str, Estimate]:
    """Average precision as it is and at the reference prevalence, ROC-AUC, and the calibration line."""
    weight, score = _weights(known), known["score"].to_numpy(np.float64)
    draws = Resamples(
        len(y), _blocks(known["ts"].to_numpy("datetime64[us]")), settings.monitor.bootstraps, settings.seed
    )
    ladder = Ladder.build(y, score, weight)
    whole = (ladder.totals(None, True), ladder.totals(None, False))
    parts = list(ladder.resampled(draws, columns=[(None, True), (None, False)]))
    odds = profile.prevalence / (1 - profile.prevalence) if profile is not None else math.nan

    def estimate(metric: Any) -> Estimate:
        value = float(metric(*whole))
        low, high = _widened(
            value, np.concatenate([metric(tp, fp) for tp, fp in parts]), draws.units, settings.confidence
        )
        return Estimate(value, low, high, int(y.sum()), len(y))

    def reweighted(tp: FloatArray, fp: FloatArray) -> Any:
        factor = tp.sum(axis=-1, keepdims=True) / (odds * np.maximum(fp.sum(axis=-1, keepdims=True), 1e-12))
        return _average_precision(tp, fp * factor)

    auc = estimate(_roc_auc)
    ties = _tied(y, score, weight)
    found = {
        "ap": estimate(_average_precision),
        "roc_auc": replace(auc, value=auc.value + ties, low=auc.low + ties, high=auc.high + ties),
    }
    found |= _calibration(y, score, weight, draws.unit, settings.confidence)
    if profile is None or not math.isfinite(profile.ap):
        return found
    found["ap_reference"] = estimate(reweighted)
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
    from scipy.stats import norm

    reference, error, spread = _reference(profile)
    z = float(norm.ppf(0.5 + confidence / 2))
    own = (found.high - found.low) / (2 * z)
    width = z * math.hypot(max(own, spread), error)
    value = found.value - reference
    return Estimate(value, value - width, value + width, found.positives, found.rows)


def _average_precision(positive: FloatArray, negative: FloatArray) -> Any:
    """AP from (…, K) sums by rung, best rung first; NaN without positives."""
    tp, fp = np.cumsum(positive, axis=-1), np.cumsum(negative, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(tp + fp > 0, tp / (tp + fp), 0.0)
        return (positive * precision).sum(axis=-1) / tp[..., -1]


def _roc_auc(positive: FloatArray, negative: FloatArray) -> Any:
    """Area under the ROC curve from sums by rung; a negative tied with a positive counts as ranked above it."""
    fp = np.cumsum(negative, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - (positive * fp[..., : positive.shape[-1]]).sum(axis=-1) / (positive.sum(axis=-1) * fp[..., -1])


def _tied(y: IntArray, score: FloatArray, weight: FloatArray | None) -> float:
    """What pairs of equal score add to the area under the ROC curve when they count half."""
    base = np.ones(len(y)) if weight is None else weight
    place = np.unique(score, return_inverse=True)[1]
    positive, negative = np.bincount(place, base * y), np.bincount(place, base * (1 - y))
    return float(0.5 * (positive * negative).sum() / (positive.sum() * negative.sum()))


def _calibration(
    y: IntArray, score: FloatArray, weight: FloatArray | None, unit: IntArray | None, confidence: float
) -> dict[str, Estimate]:
    """Slope and intercept of log-odds(label) over log-odds(score): 1 and 0 when calibrated (Cox, 1958).

    A change of prevalence alone moves the intercept and leaves the slope. Intervals from the sandwich over blocks.
    """
    from scipy.stats import norm, t

    p = np.clip(score, 1e-9, 1 - 1e-9)
    x = np.column_stack([np.ones(len(p)), np.log(p / (1 - p))])
    w, beta = np.ones(len(p)) if weight is None else weight, np.array([0.0, 1.0])
    for _ in range(30):
        fitted = 1 / (1 + np.exp(-np.clip(x @ beta, -30, 30)))
        hessian = x.T @ (x * (w * fitted * (1 - fitted))[:, None]) + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, x.T @ (w * (y - fitted)))
        beta = beta + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-8:
            break
    residual = x * (w * (y - fitted))[:, None]
    if unit is not None:
        residual = np.stack([np.bincount(unit, column) for column in residual.T], axis=1)
    inverse = np.linalg.inv(hessian)
    blocks = len(residual)
    variance = inverse @ (residual.T @ residual) @ inverse * blocks / max(blocks - 1, 1)
    quantile = norm.ppf(0.5 + confidence / 2) if unit is None else t.ppf(0.5 + confidence / 2, blocks - 1)
    width = float(quantile) * np.sqrt(np.diag(variance))
    names = ("calibration_intercept", "calibration_slope")
    return {
        name: Estimate(float(b), float(b - e), float(b + e), int(y.sum()), len(y))
        for name, b, e in zip(names, beta, width, strict=True)
    }


def _widened(value: float, resampled: FloatArray, units: int, confidence: float) -> tuple[float, float]:
    """Percentile interval, stretched about the value for a small number of blocks (Student's t, and n / (n - 1))."""
    from scipy.stats import norm, t

    low, high = interval(resampled, confidence)
    if units < 2 or math.isnan(low):
        return low, high
    tail = 0.5 + confidence / 2
    stretch = float(t.ppf(tail, units - 1) / norm.ppf(tail)) * math.sqrt(units / (units - 1))
    return min(low, value) if stretch <= 1 else value - (value - low) * stretch, value + (high - value) * stretch


# --- all windows -----------------------------------------------------------------------------------------------------


def _together(
    version: str,
    now: datetime,
    rows: pd.DataFrame,
    windows: tuple[Window, ...],
    profile: Profile | None,
    settings: Settings,
) -> Liveness:
    judged = [window for window in windows if window.judged]
    recent = judged[-5:]
    violations = sum(window.violated for window in recent)
    errors = [window.estimated_ap - window.metric("ap").value for window in judged]
    coverage, count = _recent_coverage(rows, now, settings)
    delays = (rows["label_observed_at"] - rows["ts"]).dt.total_seconds().dropna()
    observed = rows["label_observed_at"][rows["label"].notna()]
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
        starved=bool(count >= settings.monitor.min_rows and coverage < settings.monitor.starvation),
        recent_coverage=coverage,
        recent_rows=count,
        label_delay_p95=float(delays.quantile(0.95)) if len(delays) else math.nan,
        last_label=None if observed.dropna().empty else observed.max().to_pydatetime(),
    )


def _recent_coverage(rows: pd.DataFrame, now: datetime, settings: Settings) -> tuple[float, int]:
    """Coverage of the newest matured rows: half a window, so that labels that stop are noticed before it is full."""
    grain = min(settings.monitor.window, timedelta(days=1))
    end = now - settings.delay
    start = end - max(settings.monitor.window / 2, grain)
    part = rows[((rows["ts"] > pd.Timestamp(start)) & (rows["ts"] <= pd.Timestamp(end))).to_numpy()]
    expected = float((part["weight"] * part["propensity"].clip(0, 1)).sum())
    seen = float(part["weight"][(part["label"].notna() & (part["propensity"] > 0)).to_numpy()].sum())
    return (min(1.0, seen / expected) if expected else math.nan), len(part)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
