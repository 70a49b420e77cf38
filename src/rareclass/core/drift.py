"""What serving rows look like against the rows a model learned from: distribution drift, and signs of broken data.

Drift of numbers is the population stability index (PSI) over the deciles of the reference, and the Kolmogorov-Smirnov
distance on its percentiles; both come out of one histogram per column (core.profile). What looks damaged is told by
core.damage.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from rareclass.config import MonitorSettings
from rareclass.core.damage import VANISHED, signs_of_damage, values_gone
from rareclass.core.dataset import OTHER, FloatArray, FloatMatrix, Schema
from rareclass.core.jsonable import jsonable
from rareclass.core.profile import (
    FeatureProfile,
    Float32,
    Profile,
    coarse_counts,
    column_counts,
    psi,
    psi_noise,
)

USUAL_MARGIN = 1.5
"""PSI counts as drift above this many times what the reference windows reach among themselves."""


@dataclass(frozen=True, slots=True)
class FeatureDrift:
    """One column of a window against its reference. ``broken`` lists, in words, why the data looks damaged; ``gone``
    which values or levels no longer occur, beyond chance."""

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
        """Names of the features that drifted."""
        return [f.name for f in self.features if f.drifted]

    @property
    def drifted_share(self) -> float:
        """Drifted features / features, in [0, 1]."""
        return len(self.drifted) / len(self.features) if self.features else 0.0

    @property
    def broken(self) -> dict[str, tuple[str, ...]]:
        """Column -> why it looks damaged."""
        return {f.name: f.broken for f in self.features if f.broken}

    def to_json(self) -> dict[str, Any]:
        """Return the fields with the drifted features and their share; NaN becomes None."""
        return {**jsonable(self), "drifted": self.drifted, "drifted_share": self.drifted_share}


@dataclass(frozen=True, slots=True)
class ServedWindow:
    """What is known of a window of served rows besides its values.

    unknown : share of values outside the known categories by column (``unknown_shares``), when the raw values are at
        hand
    skip : features that are not stored and cannot be compared
    day : the rows are about a day's, so what the reference's days show counts as usual, not what its windows show
    loud : features in which values that no longer occur are damage, None = all; in the others they are drift
    """

    unknown: Mapping[str, float] | None = None
    skip: Collection[str] = ()
    day: bool = False
    loud: Collection[str] | None = None


def compare(
    profile: Profile,
    x: FloatMatrix,
    score: FloatArray | None = None,
    *,
    limits: MonitorSettings | None = None,
    answered: FeatureProfile | None = None,
    weight: FloatArray | None = None,
    window: ServedWindow | None = None,
) -> DriftReport:
    """Compare a window of served rows with the reference.

    x : (n, n_features) float32, encoded with the model's schema
    score : (n,) scores of these rows
    limits : bounds of the configuration's `monitor` section
    answered : what ``score`` is compared with (``score_reference``); default: the reference's scores, which other
        models gave where the served one was fitted on all rows
    weight : (n,) sampling weights, None = 1
    window : what else is known of the rows
    """
    limits, window = limits or MonitorSettings(), window or ServedWindow()
    judged = len(x) >= limits.min_rows
    if not len(x):
        return DriftReport(0, False, (), None)
    columns = np.ascontiguousarray(x.T)
    compared = [
        (_daily(reference) if window.day else reference, column)
        for reference, column in zip(profile.features, columns, strict=True)
        if reference.name not in window.skip
    ]
    unknown = window.unknown or {}
    features = tuple(
        _compare_column(reference, column, weight, limits, unknown.get(reference.name, 0.0), judged)
        for reference, column in compared
    )
    if judged:
        features = _without(features, compared, window.loud)
    score_drift = None
    if score is not None:
        score_drift = compare_scores(answered or profile.score, score, limits=limits, weight=weight)
    return DriftReport(len(x), judged, features, score_drift)


def compare_scores(
    reference: FeatureProfile, score: FloatArray, *, limits: MonitorSettings, weight: FloatArray | None = None
) -> FeatureDrift:
    """Compare the (n,) scores of served rows with a reference; scores drift, they are never damaged data."""
    judged = len(score) >= limits.min_rows
    return replace(_compare_column(reference, score.astype(np.float32), weight, limits, 0.0, judged), broken=())


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
    drifts: tuple[FeatureDrift, ...],
    compared: Sequence[tuple[FeatureProfile, Float32]],
    loud: Collection[str] | None,
) -> tuple[FeatureDrift, ...]:
    """Say of each column which of its values no longer occur; where chance cannot explain it,
    that is damage or drift.
    """
    tests = sum(1 + int(np.count_nonzero(reference.least)) for reference, _ in compared)
    out = []
    for drift, (reference, column) in zip(drifts, compared, strict=True):
        heavy, light = values_gone(reference, column, VANISHED / max(tests, 1))
        if not heavy and not light:
            out.append(drift)
            continue
        damage = bool(heavy) and (loud is None or drift.name in loud)
        broken = (*drift.broken, *heavy) if damage and not drift.broken else drift.broken
        out.append(replace(drift, broken=broken, drifted=True, gone=(*heavy, *light)))
    return tuple(out)


def _compare_column(
    profile: FeatureProfile,
    column: Float32,
    weight: FloatArray | None,
    limits: MonitorSettings,
    unknown: float,
    judged: bool,
) -> FeatureDrift:
    edges = np.asarray(profile.edges, np.float32)
    counts = column_counts(column, edges, len(profile.categories), weight)
    total = float(len(column)) if weight is None else float(weight.sum())
    missing = max(0.0, 1 - float(counts.sum()) / total)
    if not counts.sum() or not profile.rows:
        moved, distance = (0.0 if profile.rows == 0 and not counts.sum() else math.nan), math.nan
    else:
        moved = psi(coarse_counts(profile, np.asarray(profile.shares)) * profile.rows, coarse_counts(profile, counts))
        distance = _distance(np.asarray(profile.shares), counts / counts.sum())
    noise = psi_noise(len(coarse_counts(profile, counts)), float(counts.sum()), profile.rows)
    bound = max(limits.psi, noise, USUAL_MARGIN * profile.usual_psi + noise)
    drifted = judged and moved >= bound
    broken = signs_of_damage(profile, column, counts, missing, unknown, limits, drifted) if judged else ()
    return FeatureDrift(profile.name, profile.kind, moved, distance, missing, profile.missing, unknown, drifted, broken)


def _distance(reference: FloatArray, current: FloatArray) -> float:
    return float(np.max(np.abs(np.cumsum(reference) - np.cumsum(current))))
