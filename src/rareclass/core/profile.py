"""The reference that later rows are compared with: what the rows looked like that a version was judged on.

Both measures of drift come out of one histogram per column, so the stored profile is all that is compared against. How
much a column usually moves from one window to the next inside the reference is kept with it: what every season does is
no drift.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rareclass.core.compatibility import check_required, required
from rareclass.core.dataset import FloatArray, Rows
from rareclass.core.jsonable import Jsonable
from rareclass.core.ranking import at_prevalence, average_precision, roc_auc

Float32 = NDArray[np.float32]
NEARLY = 0.95
"""Share of one value from which a stretch of the reference counts as constant: a calm spell, which may be longer next
time.
"""


@dataclass(frozen=True, slots=True)
class FeatureProfile:
    """One column of the reference.

    edges : (k,) ascending cut-offs; a value falls in the first bin whose edge is not below it, the last bin is open
    shares : (k + 1,) share of the non-missing values per bin; for categories (n_categories,), without edges
    decile : (k,) True where an edge is also a decile
    usual_psi, usual_missing : the most that one window of the reference shows against all of it
    may_be_constant : in some window of the reference nearly all rows have one value
    day_missing, day_constant : the same for its days (a weekday is constant on every day, and a clear sky on many)
    least : (bins,) for levels and repeated values the lowest share in any window of the reference, 0 for other bins;
        empty where it was not recorded;  least_other : the lowest share of all values but the commonest
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
class Profile(Jsonable):
    """Everything later windows are compared with; stored with the model version.

    prevalence, ap, ap_low, ap_high : of the reference scores; NaN without labels
    window_ap, window_prevalence, window_alert_rate : the same by window of the reference (AP at ``prevalence``)
    score_ratio : mean score / prevalence
    ranks : the scores are those of a detector, p-values and no probabilities
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
    window_ap: tuple[float, ...] = ()
    window_prevalence: tuple[float, ...] = ()
    window_alert_rate: tuple[float, ...] = ()
    start: str | None = None
    end: str | None = None
    ranks: bool = False

    @property
    def unjudged(self) -> bool:
        """Whether the version is a detector that labels neither taught nor chose, so that its scores are ranks."""
        return self.ranks or self.positives == 0

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> Profile:
        """Return the profile that ``to_json`` wrote; None becomes NaN.

        It describes and does not score, so another release's is read as far as it is known: a field that this release
        does not know is left out, one that was not recorded has its default (a number without one is NaN).
        Raises ModelError where what all comparisons need is missing.
        """

        def column(values: Mapping[str, Any]) -> FeatureProfile:
            return FeatureProfile(**_read(FeatureProfile, values))

        values_by_field = _read(Profile, raw)
        values_by_field["features"] = tuple(column(values) for values in raw["features"])
        values_by_field["score"] = column(raw["score"])
        return Profile(**values_by_field)


def reference_profile(
    rows: Rows,
    score: FloatArray,
    *,
    threshold: float,
    window: timedelta = timedelta(days=7),
    ap_low: float = math.nan,
    ap_high: float = math.nan,
    ranks: bool = False,
) -> Profile:
    """Describe the reference rows and the deployed scores on them.

    rows : the rows whose out-of-sample scores are known, with their weights; their time, where there is one, cuts them
        into windows
    score : (n,) deployed (calibrated) scores of a model that has not seen the row; NaN where there is none
    threshold : the cut-off that decides
    ap_low, ap_high : interval of the reference's average precision, where it has been estimated
    ranks : the scores are a detector's
    """
    scored = np.isfinite(score)
    y, s, weight = rows.y[scored], score[scored], None if rows.weight is None else rows.weight[scored]
    parts = _windows(rows.time, window)
    days = _windows(rows.time, min(window, timedelta(days=1)))
    names = zip(rows.schema.features, _columns(rows.x), strict=True)
    features = tuple(_profile_column(f.name, f.kind, f.categories, column, parts, days) for f, column in names)
    score_parts = [part[scored[part]] for part in parts]
    prevalence = _mean(y.astype(np.float64), weight)
    alerts = (s >= threshold).astype(np.float64)
    caught = _mean(alerts * y, weight)
    return Profile(
        features=features,
        score=_profile_column("score", "numeric", (), score.astype(np.float32), score_parts, []),
        rows=len(y),
        positives=int(y.sum()),
        prevalence=prevalence,
        ap=average_precision(y, s, weight),
        ap_low=ap_low,
        ap_high=ap_high,
        roc_auc=roc_auc(y, s, weight),
        threshold=float(threshold),
        alert_rate=_mean(alerts, weight),
        precision=_ratio(caught, _mean(alerts, weight)),
        recall=_ratio(caught, prevalence),
        score_ratio=_ratio(_mean(s, weight), prevalence),
        start=None if rows.time is None or not len(rows) else str(rows.time.min()),
        end=None if rows.time is None or not len(rows) else str(rows.time.max()),
        ranks=ranks,
        **_by_window(rows, score, threshold, prevalence, score_parts),
    )


def score_reference(score: FloatArray, time: NDArray[np.datetime64], *, usual: float = 0.0) -> FeatureProfile:
    """Describe scores that a served version gave to rows it had not seen: its first window of answers.

    The scores of the training's folds come from other models: on the same rows the refitted one gives others, most of
    all where there are few distinct ones, and that is no drift.
    usual : how far windows of the training's reference lay from all of it
    """
    profile = _profile_column("score", "numeric", (), score.astype(np.float32), _windows(time, timedelta(days=1)), [])
    return replace(profile, usual_psi=max(profile.usual_psi, usual))


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
    counts = column_counts(column, edges, len(categories), None)
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


def repeated_values(profile: FeatureProfile) -> NDArray[np.bool_]:
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
    top, alone = int(counts.argmax()), repeated_values(profile)
    shares = [counts / total / 2] if len(parts) < 2 else []
    others = [(1 - counts[top] / total) / 2] if len(parts) < 2 else []
    for part in parts if len(parts) > 1 else ():
        seen = column_counts(column[part], np.asarray(profile.edges, np.float32), len(profile.categories), None)
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
    reference = coarse_counts(profile, counts)
    missing, constant = _spells(column, parts, profile.missing)
    moved, constant = 0.0, constant or profile.low == profile.high
    for part in parts if len(parts) > 1 else ():
        values = column[part]
        present = values[np.isfinite(values)]
        if not len(present):
            continue
        seen = coarse_counts(
            profile, column_counts(values, np.asarray(profile.edges, np.float32), len(profile.categories), None)
        )
        moved = max(moved, psi(reference, seen) - (len(reference) - 1) * (1 / len(present) + 1 / max(profile.rows, 1)))
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
        if y.sum() >= 20 and 0 < shares[-1] < 1:
            aps.append(average_precision(y, s, at_prevalence(y, prevalence, weight)))
    return {"window_ap": tuple(aps), "window_prevalence": tuple(shares), "window_alert_rate": tuple(alerts)}


def column_counts(column: Float32, edges: Float32, categories: int, weight: FloatArray | None) -> FloatArray:
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


def coarse_counts(profile: FeatureProfile, counts: FloatArray) -> FloatArray:
    """Add the percentile bins up to decile bins."""
    if not profile.edges:
        return counts
    starts = np.concatenate([[0], np.flatnonzero(np.asarray(profile.decile)) + 1])
    return np.add.reduceat(counts, starts)


def _mean(values: FloatArray, weight: FloatArray | None) -> float:
    return float(np.average(values, weights=weight)) if len(values) else math.nan


def _ratio(part: float, total: float) -> float:
    return part / total if total else math.nan


def _read(kind: Any, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Pick a dataclass's fields from JSON: lists become tuples and null becomes NaN where a number is meant."""
    missing = {item.name: math.nan for item in fields(kind) if item.type == "float" and item.name in required(kind)}
    values: dict[str, Any] = dict(missing)
    check_required(kind, missing | dict(raw), "the profile of the version")
    for item in fields(kind):
        if item.name not in raw:
            continue
        value = raw[item.name]
        if isinstance(value, list):
            value = tuple(value)
        elif value is None and item.type == "float":
            value = math.nan
        values[item.name] = value
    return values
