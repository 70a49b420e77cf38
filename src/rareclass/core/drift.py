"""What serving rows look like against the rows a model learned from: distribution drift, and signs of broken data.

Drift of numbers is the population stability index (PSI) over the deciles of the reference, and the Kolmogorov-Smirnov
distance on its percentiles; both come out of one histogram per column, so the stored profile is all that is compared
against. How much a column usually moves from one window to the next inside the reference is kept with it: what every
season does is no drift.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rareclass.config import MonitorSettings
from rareclass.core.dataset import OTHER, FloatArray, FloatMatrix, Rows, Schema

Float32 = NDArray[np.float32]

USUAL_MARGIN = 1.5
"""PSI counts as drift above this many times what the reference windows reach among themselves."""

TEMPERATURE = "Celsius and Fahrenheit"
CONVERSIONS: dict[str, float] = {
    "tens": 10,
    "percent or cents": 100,
    "thousands": 1000,
    "millions": 1e6,
    "bytes and kibibytes": 1024,
    "minutes or seconds": 60,
    "hours and seconds": 3600,
    "days and hours": 24,
    "days and seconds": 86400,
    "weeks": 7,
    "months": 12,
    TEMPERATURE: 1.8,
    "inches and centimetres": 2.54,
    "feet and metres": 3.28084,
    "miles and kilometres": 1.609344,
    "pounds and kilograms": 2.20462,
    "metres per second and km/h": 3.6,
}
"""Factors between units in common use; a column that is another one's multiple by one of them (or its inverse) is
suspected of a changed unit. Any other factor of ``LARGE_FACTOR`` or more is suspect as well."""
LARGE_FACTOR = 5.0
VANISHED = 1e-4
"""Chance, over all columns and values together, of calling a value gone that is only missing by luck."""
HEAVY = 0.1
"""Share of the reference from which a number that no longer occurs is damage; below it is drift."""
NEARLY = 0.95
"""Share of one value from which a stretch of the reference counts as constant: a calm spell, which may be longer next time."""


@dataclass(frozen=True, slots=True)
class FeatureProfile:
    """One column of the reference.

    edges : (k,) ascending cut-offs; a value falls in the first bin whose edge is not below it, the last bin is open
    shares : (k + 1,) share of the non-missing values per bin; for categories (n_categories,), without edges
    decile : (k,) True where an edge is also a decile
    usual_psi, usual_missing : the most that one window of the reference shows against all of it
    may_be_constant : in some window of the reference nearly all rows have one value
    day_missing, day_constant : the same for its days (a weekday is constant on every day, and a clear sky on many)
    least : (bins,) for levels and repeated values the lowest share in any window of the reference, 0 for other bins; empty
        where it was not recorded;  least_other : the lowest share of all values but the commonest
    day_least, day_least_other : the same over its days
    """

    name: str
    kind: str
    edges: tuple[float, ...]
    shares: tuple[float, ...]
    decile: tuple[bool, ...]
    categories: tuple[str, ...]
    rows: int
    missing: float
    low: float
    high: float
    usual_psi: float = 0.0
    usual_missing: float = 0.0
    may_be_constant: bool = False
    day_missing: float = 0.0
    day_constant: bool = False
    least: tuple[float, ...] = ()
    least_other: float = 0.0
    day_least: tuple[float, ...] = ()
    day_least_other: float = 0.0


@dataclass(frozen=True, slots=True)
class Profile:
    """Everything later windows are compared with; stored with the model version.

    prevalence, ap, ap_low, ap_high : of the reference scores; NaN without labels
    window_ap, window_prevalence, window_alert_rate : the same by window of the reference (AP at ``prevalence``)
    score_ratio : mean score / prevalence
    """

    features: tuple[FeatureProfile, ...]
    score: FeatureProfile
    rows: int
    positives: int
    prevalence: float
    ap: float
    ap_low: float
    ap_high: float
    roc_auc: float
    threshold: float
    alert_rate: float
    precision: float
    recall: float
    score_ratio: float
    window_seconds: float
    window_ap: tuple[float, ...] = ()
    window_prevalence: tuple[float, ...] = ()
    window_alert_rate: tuple[float, ...] = ()
    start: str | None = None
    end: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values; NaN becomes null."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> Profile:
        def column(values: Mapping[str, Any]) -> FeatureProfile:
            return FeatureProfile(**_read(FeatureProfile, values))

        known = _read(Profile, raw)
        known["features"] = tuple(column(values) for values in raw["features"])
        known["score"] = column(raw["score"])
        return Profile(**known)


@dataclass(frozen=True, slots=True)
class FeatureDrift:
    """One column of a window against its reference. ``broken`` lists, in words, why the data looks damaged; ``gone`` which
    values or levels no longer occur, beyond chance."""

    name: str
    kind: str
    psi: float
    ks: float
    missing: float
    missing_reference: float
    unknown: float
    drifted: bool
    broken: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DriftReport:
    """All columns and the score of a window against their reference; ``judged`` is False with too few rows."""

    rows: int
    judged: bool
    features: tuple[FeatureDrift, ...]
    score: FeatureDrift | None

    @property
    def drifted(self) -> list[str]:
        return [f.name for f in self.features if f.drifted]

    @property
    def drifted_share(self) -> float:
        return len(self.drifted) / len(self.features) if self.features else 0.0

    @property
    def broken(self) -> dict[str, tuple[str, ...]]:
        """Column -> why it looks damaged."""
        return {f.name: f.broken for f in self.features if f.broken}

    def to_json(self) -> dict[str, Any]:
        return {**_plain(asdict(self)), "drifted": self.drifted, "drifted_share": self.drifted_share}


def reference_profile(
    rows: Rows,
    score: FloatArray,
    *,
    threshold: float,
    window: timedelta = timedelta(days=7),
    weight: FloatArray | None = None,
    ap_low: float = math.nan,
    ap_high: float = math.nan,
) -> Profile:
    """Describe the reference rows and the deployed scores on them.

    rows : the rows whose out-of-sample scores are known; their time, where there is one, cuts them into windows
    score : (n,) deployed (calibrated) scores of a model that has not seen the row; NaN where there is none
    threshold : the cut-off that decides
    weight : (n,) inverse-propensity weights, default those of the rows
    ap_low, ap_high : interval of the reference's average precision, where it has been estimated
    """
    if weight is not None:
        rows = replace(rows, weight=weight)
    known = np.isfinite(score)
    y, s, weight = rows.y[known], score[known], None if rows.weight is None else rows.weight[known]
    parts = _windows(rows.time, window)
    days = _windows(rows.time, min(window, timedelta(days=1)))
    names = zip(rows.schema.features, _columns(rows.x), strict=True)
    features = tuple(_profile_column(f.name, f.kind, f.categories, column, parts, days) for f, column in names)
    score_parts = [part[known[part]] for part in parts]
    prevalence = _mean(y.astype(np.float64), weight)
    alerts = (s >= threshold).astype(np.float64)
    caught = _mean(alerts * y, weight)
    return Profile(
        features=features,
        score=_profile_column("score", "numeric", (), score.astype(np.float32), score_parts, []),
        rows=len(y),
        positives=int(y.sum()),
        prevalence=prevalence,
        ap=weighted_ap(y, s, weight),
        ap_low=ap_low,
        ap_high=ap_high,
        roc_auc=_roc_auc(y, s, weight),
        threshold=float(threshold),
        alert_rate=_mean(alerts, weight),
        precision=_ratio(caught, _mean(alerts, weight)),
        recall=_ratio(caught, prevalence),
        score_ratio=_ratio(_mean(s, weight), prevalence),
        window_seconds=window.total_seconds(),
        start=None if rows.time is None or not len(rows) else str(rows.time.min()),
        end=None if rows.time is None or not len(rows) else str(rows.time.max()),
        **_by_window(rows, score, threshold, prevalence, score_parts),
    )


def compare(
    profile: Profile,
    x: FloatMatrix,
    score: FloatArray | None = None,
    *,
    limits: MonitorSettings | None = None,
    answered: FeatureProfile | None = None,
    unknown: Mapping[str, float] | None = None,
    weight: FloatArray | None = None,
    skip: Collection[str] = (),
    day: bool = False,
    loud: Collection[str] | None = None,
) -> DriftReport:
    """Compare a window of served rows with the reference.

    x : (n, n_features) float32, encoded with the model's schema
    score : (n,) scores of these rows
    limits : bounds of the configuration's `monitor` section
    answered : what ``score`` is compared with (``score_reference``); default: the reference's scores, which other models
        gave where the served one was fitted on all rows
    unknown : share of values outside the known categories by column (``unknown_shares``), when the raw values are at hand
    weight : (n,) sampling weights, None = 1
    skip : features that are not stored and cannot be compared
    day : the rows are about a day's, so what the reference's days show counts as usual, not what its windows show
    loud : features in which values that no longer occur are damage, None = all; in the others they are drift
    """
    limits = limits or MonitorSettings()
    judged = len(x) >= limits.min_rows
    if not len(x):
        return DriftReport(0, False, (), None)
    columns = np.ascontiguousarray(x.T)
    unknown = unknown or {}
    found = tuple(
        _compare_column(
            _daily(reference) if day else reference, column, weight, limits, unknown.get(reference.name, 0.0), judged
        )
        for reference, column in zip(profile.features, columns, strict=True)
        if reference.name not in skip
    )
    if judged:
        found = _without(found, profile, columns, limits, skip, day, loud)
    score_drift = None
    if score is not None:
        score_drift = compare_scores(answered or profile.score, score, limits=limits, weight=weight)
    return DriftReport(len(x), judged, found, score_drift)


def compare_scores(
    reference: FeatureProfile, score: FloatArray, *, limits: MonitorSettings, weight: FloatArray | None = None
) -> FeatureDrift:
    """Compare the (n,) scores of served rows with a reference; scores drift, they are never damaged data."""
    judged = len(score) >= limits.min_rows
    return replace(_compare_column(reference, score.astype(np.float32), weight, limits, 0.0, judged), broken=())


def score_reference(score: FloatArray, time: NDArray[np.datetime64], *, usual: float = 0.0) -> FeatureProfile:
    """Describe scores that a served version gave to rows it had not seen: its first window of answers.

    The scores of the training's folds come from other models: on the same rows the refitted one gives others, most of all
    where there are few distinct ones, and that is no drift.
    usual : how far windows of the training's reference lay from all of it
    """
    found = _profile_column("score", "numeric", (), score.astype(np.float32), _windows(time, timedelta(days=1)), [])
    return replace(found, usual_psi=max(found.usual_psi, usual))


def unknown_shares(frame: pd.DataFrame, schema: Schema) -> dict[str, float]:
    """Return, for each categorical feature in ``frame``, the share of its values that no known category matches.

    A schema whose categories end in OTHER pools the rare levels, which are unknown by design: they are left out.
    """
    shares = {}
    for feature in schema.features:
        if feature.kind == "categorical" and feature.name in frame.columns and OTHER not in feature.categories:
            unknown = feature.read(frame[feature.name])[1]
            shares[feature.name] = float(unknown.sum() / max(len(frame), 1))
    return shares


def psi(reference: FloatArray, current: FloatArray) -> float:
    """Return the population stability index of two vectors of bin counts (add-half smoothed, so that it is finite)."""
    a = (reference + 0.5) / (reference.sum() + 0.5 * len(reference))
    b = (current + 0.5) / (current.sum() + 0.5 * len(current))
    return float(np.sum((b - a) * np.log(b / a)))


def psi_noise(bins: int, rows: float, reference_rows: float) -> float:
    """Return what PSI exceeds once in a thousand times between two samples of one distribution.

    Source: PSI * n m / (n + m) is asymptotically chi-squared with bins - 1 degrees of freedom (Yurdakul, 2018).
    """
    from scipy.stats import chi2

    if bins < 2 or rows <= 0 or reference_rows <= 0:
        return math.inf
    return float(chi2.ppf(0.999, bins - 1) * (1 / rows + 1 / reference_rows))


def weighted_ap(y: NDArray[Any], score: FloatArray, weight: FloatArray | None = None) -> float:
    """Return the average precision with row weights; NaN without positives."""
    if not len(y) or not y.any():
        return math.nan
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(y, score, sample_weight=weight))


def at_prevalence(y: NDArray[Any], prevalence: float, weight: FloatArray | None = None) -> FloatArray:
    """Return (n,) row weights under which the share of positives is ``prevalence`` (negatives are rescaled)."""
    base = np.ones(len(y)) if weight is None else weight.astype(np.float64)
    positive, negative = float(base[y == 1].sum()), float(base[y == 0].sum())
    if positive == 0 or negative == 0 or not 0 < prevalence < 1:
        return base
    return np.where(y == 1, base, base * positive * (1 - prevalence) / (prevalence * negative))


# --- the reference ---------------------------------------------------------------------------------------------------


def _windows(time: NDArray[np.datetime64] | None, window: timedelta) -> list[NDArray[np.int64]]:
    """Cut rows into windows of time; the ones less than a fifth full are left out. Without time: none."""
    if time is None or not len(time):
        return []
    position = ((time - time.min()) / np.timedelta64(window)).astype(np.int64)
    order = np.argsort(position, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(position[order])) + 1)
    typical = float(np.median([len(part) for part in parts]))
    return [part for part in parts if len(part) >= typical / 5]


def _columns(x: Float32, at_once: int = 8) -> Iterator[Float32]:
    """The columns of (n, m) rows one by one, each contiguous; a few are turned at a time, not the whole matrix."""
    for start in range(0, x.shape[1], at_once):
        yield from np.ascontiguousarray(x[:, start : start + at_once].T)


def _profile_column(
    name: str,
    kind: str,
    categories: tuple[str, ...],
    column: Float32,
    parts: list[NDArray[np.int64]],
    days: list[NDArray[np.int64]],
) -> FeatureProfile:
    present = column[np.isfinite(column)]
    edges, decile = (np.empty(0, np.float32), np.empty(0, bool)) if kind == "categorical" else _edges(present)
    counts = _counts(column, edges, len(categories), None)
    profile = FeatureProfile(
        name=name,
        kind=kind,
        edges=tuple(float(edge) for edge in edges),
        shares=tuple((counts / max(counts.sum(), 1)).tolist()),
        decile=tuple(bool(flag) for flag in decile),
        categories=categories,
        rows=len(present),
        missing=1 - len(present) / len(column) if len(column) else 0.0,
        low=float(present.min()) if len(present) else math.nan,
        high=float(present.max()) if len(present) else math.nan,
    )
    short = _spells(column, days, profile.missing)
    least, other = _least(profile, column, counts, parts)
    day_least, day_other = _least(profile, column, counts, days)
    return replace(
        profile,
        **_usual(profile, column, counts, parts),
        day_missing=short[0],
        day_constant=short[1],
        least=least,
        least_other=other,
        day_least=day_least,
        day_least_other=day_other,
    )


def _repeated(profile: FeatureProfile) -> NDArray[np.bool_]:
    """(bins,) True where a bin is one value: a level, or a number that fills a bin of its own."""
    if profile.kind == "categorical":
        return np.ones(len(profile.shares), dtype=bool)
    edges = np.asarray(profile.edges, np.float32)
    below = np.concatenate([[np.float32(np.nan)], edges[:-1]]) if len(edges) else edges
    alone = np.nextafter(edges, np.float32(-np.inf)) == below
    if len(edges) and profile.low == float(edges[0]):
        alone[0] = True
    return np.append(alone, False)


def _least(
    profile: FeatureProfile, column: Float32, counts: FloatArray, parts: list[NDArray[np.int64]]
) -> tuple[tuple[float, ...], float]:
    """The lowest share of each repeated value in any of the parts, and of all values but the commonest.

    Without parts, half of what all rows show: how far it falls in a season is not known.
    """
    total = counts.sum()
    if not total:
        return (), 0.0
    top, alone = int(counts.argmax()), _repeated(profile)
    shares = [counts / total / 2] if len(parts) < 2 else []
    others = [(1 - counts[top] / total) / 2] if len(parts) < 2 else []
    for part in parts if len(parts) > 1 else ():
        seen = _counts(column[part], np.asarray(profile.edges, np.float32), len(profile.categories), None)
        if seen.sum():
            shares.append(seen / seen.sum())
            others.append(1 - float(seen[top] / seen.sum()))
    if not shares:
        return (), 0.0
    return tuple(np.where(alone, np.min(shares, axis=0), 0.0).tolist()), float(min(others))


def _spells(column: Float32, parts: list[NDArray[np.int64]], missing: float) -> tuple[float, bool]:
    """Return the highest missing rate of a stretch of the reference, and whether one had nearly one value only."""
    constant = False
    for part in parts:
        values = column[part]
        present = np.sort(values[np.isfinite(values)])
        missing = max(missing, 1 - len(present) / len(values))
        if len(present) and not constant:
            edges = np.flatnonzero(np.concatenate([[True], np.diff(present) != 0, [True]]))
            constant = bool(np.diff(edges).max() >= NEARLY * len(present))
    return missing, constant


def _usual(
    profile: FeatureProfile, column: Float32, counts: FloatArray, parts: list[NDArray[np.int64]]
) -> dict[str, Any]:
    """How far the reference's own windows lie from all of it, beyond what chance does."""
    whole = _coarse(profile, counts)
    missing, constant = _spells(column, parts, profile.missing)
    moved, constant = 0.0, constant or profile.low == profile.high
    for part in parts if len(parts) > 1 else ():
        values = column[part]
        present = values[np.isfinite(values)]
        if not len(present):
            continue
        seen = _coarse(profile, _counts(values, np.asarray(profile.edges, np.float32), len(profile.categories), None))
        moved = max(moved, psi(whole, seen) - (len(whole) - 1) * (1 / len(present) + 1 / max(profile.rows, 1)))
    return {"usual_psi": max(moved, 0.0), "usual_missing": missing, "may_be_constant": constant}


def _edges(present: Float32) -> tuple[Float32, NDArray[np.bool_]]:
    """Percentiles as distinct cut-offs; a value that fills a whole percentile gets a bin of its own."""
    if not len(present):
        return np.empty(0, np.float32), np.empty(0, bool)
    place = np.ceil(np.arange(1, 100) * len(present) / 100).astype(np.int64) - 1
    percentiles = np.sort(present)[np.maximum(place, 0)]
    values, repeats = np.unique(percentiles, return_counts=True)
    atoms = np.nextafter(values[repeats > 1], np.float32(-np.inf))
    fine = np.unique(np.concatenate([values, atoms]))
    deciles = np.unique(percentiles[9::10])
    heavy = np.nextafter(values[repeats >= 10], np.float32(-np.inf))
    return fine, np.isin(fine, np.concatenate([deciles, heavy]))


def _by_window(
    rows: Rows, score: FloatArray, threshold: float, prevalence: float, parts: list[NDArray[np.int64]]
) -> dict[str, tuple[float, ...]]:
    aps, shares, alerts = [], [], []
    for part in parts if len(parts) > 1 else ():
        if not len(part):
            continue
        y, s, weight = rows.y[part], score[part], None if rows.weight is None else rows.weight[part]
        shares.append(_mean(y.astype(np.float64), weight))
        alerts.append(_mean((s >= threshold).astype(np.float64), weight))
        if y.sum() >= 20 and y.sum() < len(y):
            aps.append(weighted_ap(y, s, at_prevalence(y, prevalence, weight)))
    return {"window_ap": tuple(aps), "window_prevalence": tuple(shares), "window_alert_rate": tuple(alerts)}


def _daily(profile: FeatureProfile) -> FeatureProfile:
    """The profile with what is usual on a day."""
    missing = max(profile.usual_missing, profile.day_missing)
    return replace(
        profile,
        usual_missing=missing,
        may_be_constant=profile.may_be_constant or profile.day_constant,
        least=profile.day_least,
        least_other=profile.day_least_other,
    )


def _without(
    found: tuple[FeatureDrift, ...],
    profile: Profile,
    columns: FloatMatrix,
    limits: MonitorSettings,
    skip: Collection[str],
    day: bool,
    loud: Collection[str] | None,
) -> tuple[FeatureDrift, ...]:
    """Say of each column which of its values no longer occur; where chance cannot explain it, that is damage or drift."""
    known = [
        (_daily(reference) if day else reference, column)
        for reference, column in zip(profile.features, columns, strict=True)
        if reference.name not in skip
    ]
    tests = sum(1 + int(np.count_nonzero(reference.least)) for reference, _ in known)
    out = []
    for one, (reference, column) in zip(found, known, strict=True):
        heavy, light = _gone(reference, column, VANISHED / max(tests, 1))
        if not heavy and not light:
            out.append(one)
            continue
        damage = bool(heavy) and (loud is None or one.name in loud)
        broken = (*one.broken, *heavy) if damage and not one.broken else one.broken
        out.append(replace(one, broken=broken, drifted=True, gone=(*heavy, *light)))
    return tuple(out)


def _gone(profile: FeatureProfile, column: Float32, level: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Values that no longer occur, beyond chance at ``level`` by the exact binomial: (heavy ones, light ones), in words.

    Heavy are levels of a category, a number that was a tenth of the rows or more, and everything but the commonest value.
    """
    if not profile.least and not profile.least_other:
        return (), ()
    counts = _counts(column, np.asarray(profile.edges, np.float32), len(profile.categories), None)
    n, top = int(counts.sum()), int(np.argmax(profile.shares))
    if not n:
        return (), ()

    def impossible(share: float) -> bool:
        return 0 < share < 1 and n * math.log1p(-share) < math.log(level)

    if counts[top] == n and _repeated(profile)[top] and impossible(profile.least_other):
        only = _value(profile, _commonest(profile, column, top, 1.0)[0])
        return (f"only {only} arrives; {1 - profile.shares[top]:.1%} of the reference has other values",), ()
    heavy: list[str] = []
    light: list[str] = []
    for at in np.flatnonzero(np.asarray(profile.least) > 0) if profile.least else ():
        if counts[at] == 0 and impossible(profile.least[at]):
            value = float(at) if profile.categories else profile.edges[at]
            words = f"{_value(profile, value)} no longer occurs, {profile.shares[at]:.1%} of the reference"
            (heavy if profile.categories or profile.shares[at] >= HEAVY else light).append(words)
    return tuple(heavy), tuple(light)


# --- one column ------------------------------------------------------------------------------------------------------


def _counts(column: Float32, edges: Float32, categories: int, weight: FloatArray | None) -> FloatArray:
    """Histogram of the finite values of a column: by edges, or by category code where there are no edges."""
    finite = np.isfinite(column)
    if categories:
        finite &= column < categories
        w = None if weight is None else weight[finite]
        return np.bincount(column[finite].astype(np.int64), weights=w, minlength=categories).astype(np.float64)
    everything = bool(finite.all())
    values = column if everything else column[finite]
    if weight is None:  # sorting the values and looking up a hundred edges beats looking up every value
        below = np.searchsorted(np.sort(values), edges, side="right")
        return np.diff(np.concatenate([[0], below, [len(values)]])).astype(np.float64)
    w = weight if everything else weight[finite]
    return np.bincount(np.searchsorted(edges, values), weights=w, minlength=len(edges) + 1).astype(np.float64)


def _coarse(profile: FeatureProfile, counts: FloatArray) -> FloatArray:
    """Add the percentile bins up to decile bins."""
    if not profile.edges:
        return counts
    starts = np.concatenate([[0], np.flatnonzero(np.asarray(profile.decile)) + 1])
    return np.add.reduceat(counts, starts)


def _compare_column(
    profile: FeatureProfile,
    column: Float32,
    weight: FloatArray | None,
    limits: MonitorSettings,
    unknown: float,
    judged: bool,
) -> FeatureDrift:
    edges = np.asarray(profile.edges, np.float32)
    counts = _counts(column, edges, len(profile.categories), weight)
    total = float(len(column)) if weight is None else float(weight.sum())
    missing = max(0.0, 1 - float(counts.sum()) / total)
    if not counts.sum() or not profile.rows:
        moved, distance = (0.0 if profile.rows == 0 and not counts.sum() else math.nan), math.nan
    else:
        moved = psi(_coarse(profile, np.asarray(profile.shares)) * profile.rows, _coarse(profile, counts))
        distance = _distance(np.asarray(profile.shares), counts / counts.sum())
    noise = psi_noise(len(_coarse(profile, counts)), float(counts.sum()), profile.rows)
    bound = max(limits.psi, noise, USUAL_MARGIN * profile.usual_psi + noise)
    drifted = judged and moved >= bound
    broken = _broken(profile, column, counts, missing, unknown, limits, drifted) if judged else ()
    return FeatureDrift(profile.name, profile.kind, moved, distance, missing, profile.missing, unknown, drifted, broken)


def _distance(reference: FloatArray, current: FloatArray) -> float:
    return float(np.max(np.abs(np.cumsum(reference) - np.cumsum(current))))


def _broken(
    profile: FeatureProfile,
    column: Float32,
    counts: FloatArray,
    missing: float,
    unknown: float,
    limits: MonitorSettings,
    drifted: bool,
) -> tuple[str, ...]:
    """Why a column looks damaged rather than changed."""
    found = []
    if missing - unknown - max(profile.missing, profile.usual_missing) >= limits.missing_jump:
        found.append(f"{missing:.0%} missing, {profile.missing:.0%} in the reference")
    pooled = _pooled(profile, counts)
    if max(unknown, pooled) >= limits.unknown_share:
        found.append(f"{max(unknown, pooled):.0%} of the values are unknown categories")
    if not counts.sum() or not profile.rows:
        return tuple(found)
    if not profile.may_be_constant and (stuck := _stuck(profile, column, counts)):
        found.append(stuck)
    elif drifted and profile.kind == "numeric" and (unit := suspected_unit(profile, column)):
        found.append(unit)
    elif drifted and _relabelled(profile, counts, limits):
        found.append("the categories kept their shares but changed their names")
    return tuple(found)


def _pooled(profile: FeatureProfile, counts: FloatArray) -> float:
    """Rise of the pooled rest category, where another one vanished: a renamed level that the schema pools."""
    if not profile.categories or profile.categories[-1] != OTHER or not counts.sum():
        return 0.0
    now, before = counts / counts.sum(), np.asarray(profile.shares)
    vanished = bool(np.any((before[:-1] >= 0.02) & (now[:-1] < 0.1 * before[:-1])))
    return float(max(now[-1] - before[-1], 0.0)) if vanished else 0.0


def _stuck(profile: FeatureProfile, column: Float32, counts: FloatArray) -> str | None:
    """One value fills the column (or half of it, where the reference had almost none of it)."""
    shares = counts / counts.sum()
    top = int(np.argmax(shares))
    before = profile.shares[top]
    if shares[top] < 0.5 or (shares[top] - before < 0.5 and before >= 0.99):
        return None
    value, share = _commonest(profile, column, top, float(shares[top]))
    surprise = before < 0.99 and counts.sum() * math.log(max(before, 1e-12)) < -14
    if share >= 0.999 and surprise:
        return f"constant: {_value(profile, value)} on every row"
    if profile.kind == "numeric" and share - before >= 0.5 and before < 0.2:
        return f"stuck at {_value(profile, value)} on {share:.0%} of the rows, {before:.0%} in the reference"
    return None


def _commonest(profile: FeatureProfile, column: Float32, position: int, share: float) -> tuple[float, float]:
    """The most common value inside one bin that holds ``share`` of the rows, and its own share of the rows."""
    if profile.categories:
        return float(position), share
    finite = column[np.isfinite(column)]
    inside = finite[np.searchsorted(np.asarray(profile.edges, np.float32), finite) == position]
    values, repeats = np.unique(inside, return_counts=True)
    return float(values[repeats.argmax()]), share * float(repeats.max()) / len(inside)


def _value(profile: FeatureProfile, value: float) -> str:
    return f"'{profile.categories[int(value)]}'" if profile.categories else f"{value:g}"


def _relabelled(profile: FeatureProfile, counts: FloatArray, limits: MonitorSettings) -> bool:
    """The shares are the same ones, sorted, but belong to other categories."""
    if profile.kind != "categorical" or len(counts) < 2:
        return False
    now, before = counts / counts.sum(), np.asarray(profile.shares)
    moved, sorted_moved = np.abs(now - before).sum(), np.abs(np.sort(now) - np.sort(before)).sum()
    return bool(moved > 0.3 and sorted_moved < 0.1 * moved)


def suspected_unit(profile: FeatureProfile, column: Float32) -> str | None:
    """Say by which conversion a drifted numeric column looks like the reference, or None.

    The quantiles of the window are a straight line over those of the reference when only the unit changed; the slope
    is then the factor. A shift without a change of scale is no unit, except a change of sign.
    """
    reference = np.asarray(profile.edges, np.float64)
    cumulative = np.cumsum(profile.shares)[:-1]
    if len(reference) < 8:
        return None
    current = np.quantile(column[np.isfinite(column)].astype(np.float64), np.clip(cumulative, 0, 1))
    middle = (cumulative > 0.02) & (cumulative < 0.98)
    if middle.sum() < 8 or np.ptp(reference[middle]) == 0:
        return None
    for sign, quantiles in ((1.0, current), (-1.0, np.interp(1 - cumulative, cumulative, current))):
        slope, offset = np.polyfit(reference[middle], quantiles[middle], 1)
        if np.sign(slope) != sign or not _straight(reference[middle], quantiles[middle], slope, offset):
            continue
        name = _conversion(abs(float(slope)), float(offset), reference, sign)
        # Seasons scale a column too, by small factors and within what was seen before; units leave it. A scale of
        # temperature has an offset as well, which no season meets by chance.
        small = max(abs(slope), 1 / abs(slope)) < LARGE_FACTOR
        unseen = not profile.low <= float(np.median(current[middle])) <= profile.high
        if name is not None and (not small or unseen or sign < 0 or TEMPERATURE in name):
            return name
    return None


def _straight(x: FloatArray, y: FloatArray, slope: float, offset: float) -> bool:
    spread = float(np.ptp(y))
    return spread > 0 and float(np.max(np.abs(y - slope * x - offset))) < 0.1 * spread


def _conversion(factor: float, offset: float, reference: FloatArray, sign: float) -> str | None:
    through_zero = abs(offset) <= 0.1 * factor * float(np.max(np.abs(reference)))
    if sign < 0:
        same = through_zero and abs(factor - 1) < 0.1
        return "the sign changed" if same and reference.min() * reference.max() >= 0 else None
    ratio = max(factor, 1 / factor)
    for name, known in CONVERSIONS.items():
        right = through_zero
        if name == TEMPERATURE:
            right = abs(offset - 32) < 4 if factor > 1 else abs(offset + 32 / 1.8) < 3
        if right and abs(ratio / known - 1) < 0.05:
            return f"the unit changed by a factor of {factor:.4g} ({name})"
    if ratio >= LARGE_FACTOR and through_zero:
        return f"the unit changed by a factor of {factor:.4g}"
    return None


# --- small helpers ---------------------------------------------------------------------------------------------------


def _mean(values: FloatArray, weight: FloatArray | None) -> float:
    return float(np.average(values, weights=weight)) if len(values) else math.nan


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _roc_auc(y: NDArray[Any], score: FloatArray, weight: FloatArray | None) -> float:
    if not len(y) or y.min() == y.max():
        return math.nan
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(y, score, sample_weight=weight))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _read(kind: Any, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Pick a dataclass's fields from JSON: lists become tuples and null becomes NaN where a number is meant."""
    found = {}
    for item in fields(kind):
        if item.name not in raw:
            continue
        value = raw[item.name]
        if isinstance(value, list):
            value = tuple(value)
        elif value is None and item.type == "float":
            value = math.nan
        found[item.name] = value
    return found
