"""Signs that served data are damaged rather than changed: values that never come, columns that stick, changed units."""

from __future__ import annotations

import math

import numpy as np

from rareclass.config import MonitorSettings
from rareclass.core.dataset import OTHER, FloatArray
from rareclass.core.profile import FeatureProfile, Float32, column_counts, repeated_values

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
"""From here on no season scales a column: any such factor is suspect, named or not."""
LEAST_QUANTILES = 8
"""Quantiles below which a straight line through them says nothing: a column of few values."""
TAILS = 0.02
"""Share at either end that is left out of the line: extremes of a window are a few rows, and move it by themselves."""
STRAIGHT = 0.1
"""How far a quantile may lie off the line, as a share of their spread: a changed unit leaves noise alone."""
SAME_FACTOR = 0.05
"""How near, relatively, a slope has to be to a factor of ``CONVERSIONS``: quantiles do not place it better."""
ZERO = 0.1
"""Offset, as a share of the largest scaled value, up to which the line goes through zero, as it does for units."""
FREEZING_F, ZERO_F_IN_C = 32.0, -32.0 / 1.8
"""Where the other scale of temperature has its zero: 0 degrees Celsius in Fahrenheit, and 0 Fahrenheit in Celsius."""
DEGREES_F, DEGREES_C = 4.0, 3.0
"""How near to it the offset has to be, in degrees of the scale that the window is in."""
VANISHED = 1e-4
"""Chance, over all columns and values together, of calling a value gone that is only missing by luck."""
HEAVY = 0.1
"""Share of the reference from which a number that no longer occurs is damage; below it is drift."""


def values_gone(profile: FeatureProfile, column: Float32, level: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Values that no longer occur, beyond chance at ``level`` by the exact binomial: (heavy ones, light ones), in
    words.

    Heavy are levels of a category, a number that was a tenth of the rows or more, and everything but the commonest
    value.
    """
    if not profile.least and not profile.least_other:
        return (), ()
    counts = column_counts(column, np.asarray(profile.edges, np.float32), len(profile.categories), None)
    n, top = int(counts.sum()), int(np.argmax(profile.shares))
    if not n:
        return (), ()

    def impossible(share: float) -> bool:
        return 0 < share < 1 and n * math.log1p(-share) < math.log(level)

    if counts[top] == n and repeated_values(profile)[top] and impossible(profile.least_other):
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


def signs_of_damage(
    profile: FeatureProfile,
    column: Float32,
    counts: FloatArray,
    missing: float,
    unknown: float,
    limits: MonitorSettings,
    drifted: bool,
) -> tuple[str, ...]:
    """Why a column looks damaged rather than changed."""
    signs = []
    if missing - unknown - max(profile.missing, profile.usual_missing) >= limits.missing_jump:
        signs.append(f"{missing:.0%} missing, {profile.missing:.0%} in the reference")
    pooled = _pooled(profile, counts)
    if max(unknown, pooled) >= limits.unknown_share:
        signs.append(f"{max(unknown, pooled):.0%} of the values are unknown categories")
    if not counts.sum() or not profile.rows:
        return tuple(signs)
    if not profile.may_be_constant and (stuck := _stuck(profile, column, counts)):
        signs.append(stuck)
    elif drifted and profile.kind == "numeric" and (unit := suspected_unit(profile, column)):
        signs.append(unit)
    elif drifted and _relabelled(profile, counts):
        signs.append("the categories kept their shares but changed their names")
    return tuple(signs)


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


def _relabelled(profile: FeatureProfile, counts: FloatArray) -> bool:
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
    if len(reference) < LEAST_QUANTILES:
        return None
    current = np.quantile(column[np.isfinite(column)].astype(np.float64), np.clip(cumulative, 0, 1))
    middle = (cumulative > TAILS) & (cumulative < 1 - TAILS)
    if middle.sum() < LEAST_QUANTILES or np.ptp(reference[middle]) == 0:
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
    return spread > 0 and float(np.max(np.abs(y - slope * x - offset))) < STRAIGHT * spread


def _conversion(factor: float, offset: float, reference: FloatArray, sign: float) -> str | None:
    through_zero = abs(offset) <= ZERO * factor * float(np.max(np.abs(reference)))
    if sign < 0:
        same = through_zero and abs(factor - 1) < 2 * SAME_FACTOR
        return "the sign changed" if same and reference.min() * reference.max() >= 0 else None
    ratio = max(factor, 1 / factor)
    for name, usual in CONVERSIONS.items():
        right = through_zero
        if name == TEMPERATURE:
            to_fahrenheit, to_celsius = abs(offset - FREEZING_F) < DEGREES_F, abs(offset - ZERO_F_IN_C) < DEGREES_C
            right = to_fahrenheit if factor > 1 else to_celsius
        if right and abs(ratio / usual - 1) < SAME_FACTOR:
            return f"the unit changed by a factor of {factor:.4g} ({name})"
    if ratio >= LARGE_FACTOR and through_zero:
        return f"the unit changed by a factor of {factor:.4g}"
    return None
