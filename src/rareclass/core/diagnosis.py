"""How rare, how hard and how much there is to learn from. The plan that follows from it is `plan` of core.planning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from rareclass.config import EvaluateSettings, RegimeSettings
from rareclass.core.dataset import IntArray, Rows
from rareclass.core.drawn import natural_sample
from rareclass.core.estimate import Estimate, share_of
from rareclass.core.jsonable import Jsonable
from rareclass.core.periods import monday

__all__ = [
    "Diagnosis",
    "diagnose",
    "percent",
    "point_types",
    "prevalence_by_period",
    "prevalence_by_segment",
    "regime",
]

NO_POSITIVES = (
    "there is no row of the rare class, so a classifier has nothing to learn from: this is the one-class regime, in "
    "which a run trains detectors. Check data.target, data.positive and data.filter, or bring labelled rows of the "
    "rare class"
)

Regime = Literal["none", "few", "scarce", "ample"]

NEIGHBOURS = 5
MAX_ASKED = 500
MAX_REFERENCE = 100_000
_MAX_PERIODS = 36
_MAX_LEVELS = 10
_MAX_SEGMENTS = 3
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Diagnosis(Jsonable):
    """What was found in the labelled rows.

    prevalence : Wilson interval; by_period and by_segment likewise, as {period: ...} and {column: {level: ...}}
    ratio : majority rows per row of the rare class; infinite without one
    point_types : shares of safe, borderline, rare and outlier rows of the rare class; empty where not judged
    overlap : share of rows whose neighbourhood is mostly of the other class, both classes weighted by how much the
        other outnumbers them (R_aug): 0 = apart, 1 = the rare class has no region of its own; NaN where not judged
    asked, reference : rows of the rare class that were judged, and rows their neighbours were looked for among
    """

    rows: int
    positives: int
    prevalence: Estimate
    ratio: float
    regime: Regime
    features: int
    categorical: int
    missing: float
    by_period: dict[str, Estimate]
    by_segment: dict[str, dict[str, Estimate]]
    point_types: dict[str, float]
    overlap: float
    asked: int
    reference: int
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report for a terminal, one fact a line."""
        rare = f"{self.positives:,} of {self.rows:,} rows are of the rare class"
        text = [f"{rare}: {percent(self.prevalence)}, 1:{self.ratio:,.0f}" if self.positives else rare]
        text.append(f"regime: {self.regime}. {REGIMES[self.regime]}")
        missing = f", {self.missing:.1%} of all values missing" if self.missing else ""
        text.append(f"features: {self.features}, {self.categorical} of them categorical{missing}")
        if self.point_types:
            kinds = ", ".join(f"{share:.0%} {kind}" for kind, share in self.point_types.items())
            text.append(f"rows of the rare class: {kinds} (of {self.asked:,} judged among {self.reference:,} rows)")
            text.append(f"class overlap: {self.overlap:.2f} (0 = apart, 1 = the rare class has no region of its own)")
        text += [f"{period}: {percent(value)} of {value.rows:,} rows" for period, value in self.by_period.items()]
        for column, levels in self.by_segment.items():
            text += [f"{column} = {level}: {percent(value)} of {value.rows:,} rows" for level, value in levels.items()]
        return text + [f"note: {note}" for note in self.notes]


REGIMES: dict[Regime, str] = {
    "none": "No classifier can be taught and judged: detectors learn what is usual.",
    "few": "Every figure will have a wide interval; only few, simple candidates can be told apart.",
    "scarce": "Intervals are wide; simple and averaged learners have the edge.",
    "ample": "Enough to compare candidates and to tune.",
}


def percent(share: Estimate) -> str:
    """Write a share and its interval in per cent, like ``2.46% [2.41%, 2.51%]``."""
    digits = 2 if share.value >= 0.001 or share.value == 0 else 4
    return f"{share.value:.{digits}%} [{share.low:.{digits}%}, {share.high:.{digits}%}]"


def regime(positives: int, bounds: RegimeSettings) -> Regime:
    """Name how much there is to learn from, by the number of rows of the rare class."""
    if positives == 0:
        return "none"
    if positives < bounds.few:
        return "few"
    return "scarce" if positives < bounds.scarce else "ample"


def diagnose(
    rows: Rows,
    limits: RegimeSettings,
    evaluate: EvaluateSettings,
    *,
    seed: int = 0,
    threads: int = 1,
    part: Diagnosis | None = None,
) -> Diagnosis:
    """Describe the imbalance of labelled rows. No row of the rare class is regime "none", not an error: `plan` raises.

    Neighbourhoods are judged for at most 500 rows of the rare class and 250 of the other, among at most 100,000 rows: a
    random thinning of both classes alike, so that the time hardly grows with the table.
    """
    confidence = evaluate.confidence
    count = rows.represented
    negatives = count - rows.positives
    if part is None:
        kinds, overlap, asked, reference = point_types(rows, seed=seed, threads=threads)
    else:
        kinds, overlap, asked, reference = part.point_types, part.overlap, part.asked, part.reference
    found = Diagnosis(
        rows=count,
        positives=rows.positives,
        prevalence=share_of(rows.positives, count, confidence=confidence),
        ratio=negatives / rows.positives if rows.positives else float("inf"),
        regime=regime(rows.positives, limits),
        features=len(rows.schema.features),
        categorical=int(rows.schema.categorical.sum()),
        missing=_missing_share(natural_sample(rows)),
        by_period=prevalence_by_period(rows, confidence=confidence),
        by_segment=prevalence_by_segment(rows, evaluate.slices, confidence=confidence),
        point_types=kinds,
        overlap=overlap,
        asked=asked,
        reference=reference,
        notes=(),
    )
    return in_regime(found, found.regime)


def in_regime(found: Diagnosis, regime: Regime) -> Diagnosis:
    """Return the diagnosis with the regime that holds for it, and the notes that follow."""
    diagnosis = replace(found, regime=regime)
    return replace(diagnosis, notes=tuple(_notes(diagnosis)))


def _missing_share(rows: Rows) -> float:
    missing = sum(int(np.isnan(rows.x[start : start + _CHUNK]).sum()) for start in range(0, len(rows), _CHUNK))
    return missing / rows.x.size if rows.x.size else 0.0


def prevalence_by_period(rows: Rows, *, confidence: float = 0.95) -> dict[str, Estimate]:
    """Return {period: prevalence} by the shortest of day, week, month and year that gives at most 36 periods.

    Empty without time. Weeks begin on Monday and are named after it.
    """
    if rows.time is None or len(rows) == 0:
        return {}
    day = rows.time.astype("datetime64[D]")
    period = day
    for unit in (day, monday(day), day.astype("datetime64[M]"), day.astype("datetime64[Y]")):
        period = unit
        if len(np.unique(unit)) <= _MAX_PERIODS:
            break
    names, group = np.unique(period, return_inverse=True)
    return _by_group([str(name) for name in names], group, rows, confidence)


def prevalence_by_segment(
    rows: Rows, columns: Sequence[str] = (), *, confidence: float = 0.95
) -> dict[str, dict[str, Estimate]]:
    """Return {column: {level: prevalence}} for the 10 largest levels of categorical columns.

    columns : those to look at (unknown and numeric ones are left out); default: the first three categorical ones
    """
    found: dict[str, dict[str, Estimate]] = {}
    for position, feature in enumerate(rows.schema.features):
        if feature.kind != "categorical" or (columns and feature.name not in columns):
            continue
        codes = rows.x[:, position]
        group = np.where(np.isnan(codes), len(feature.categories), codes).astype(np.int64)
        size = np.bincount(group, rows.natural, minlength=len(feature.categories) + 1)
        largest = [int(level) for level in np.argsort(-size, kind="stable")[:_MAX_LEVELS] if size[level]]
        names = [*feature.categories, "(missing)"]
        every = _by_group(names, group, rows, confidence)
        found[feature.name] = {names[level]: every[names[level]] for level in largest}
        if not columns and len(found) == _MAX_SEGMENTS:
            break
    return found


def _by_group(names: Sequence[str], group: IntArray, rows: Rows, confidence: float) -> dict[str, Estimate]:
    natural = rows.natural
    each = rows.y if natural is None else rows.y * natural
    size = np.bincount(group, natural, minlength=len(names))
    positives = np.bincount(group, each, minlength=len(names))
    return {
        name: share_of(round(float(p)), round(float(n)), confidence=confidence)
        for name, p, n in zip(names, positives, size, strict=True)
    }


def point_types(rows: Rows, *, seed: int = 0, threads: int = 1) -> tuple[dict[str, float], float, int, int]:
    """Return ({type: share of the rare class}, overlap, rows asked, rows of reference).

    A row of the rare class is safe, borderline, rare or an outlier when 4-5, 2-3, 1 or 0 of its 5 nearest rows are of
    the rare class too. Overlap is R_aug with k = 5: the share of rows that have 3 or more of the other class near.
    Nothing is judged ({}, NaN) with fewer than 6 rows of the rare class or of the other.
    Sources: Napierala and Stefanowski, J. Intelligent Information Systems, 2016; Borsos et al., J. Experimental and
    Theoretical Artificial Intelligence, 2018.
    """
    from rareclass.core.neighbours import distance_space, kneighbors_excluding_self

    rows = natural_sample(rows)
    if min(rows.positives, len(rows) - rows.positives) <= NEIGHBOURS:
        return {}, float("nan"), 0, 0
    rng = np.random.default_rng(seed)
    sample = rows
    if len(rows) > MAX_REFERENCE:
        sample = rows.take(_thinned(rows.y, MAX_REFERENCE / len(rows), rng))
    space = distance_space(sample.x, sample.schema)
    opposite = {}
    for label in (1, 0):
        asked = rng.permutation(np.flatnonzero(sample.y == label))[: MAX_ASKED if label else MAX_ASKED // 2]
        near = kneighbors_excluding_self(space, np.sort(asked), NEIGHBOURS, threads=threads)[1]
        opposite[label] = (sample.y[near] != label).sum(axis=1)
    same = NEIGHBOURS - opposite[1]
    bounds = {"safe": same >= 4, "borderline": (same >= 2) & (same <= 3), "rare": same == 1, "outlier": same == 0}
    kinds = {kind: float(mask.mean()) for kind, mask in bounds.items()}
    ratio = (len(rows) - rows.positives) / rows.positives
    mixed = {label: float((count > NEIGHBOURS / 2).mean()) for label, count in opposite.items()}
    return kinds, (ratio * mixed[1] + mixed[0]) / (ratio + 1), len(same), len(sample)


def _thinned(y: IntArray, share: float, rng: np.random.Generator) -> IntArray:
    """Positions of the same share of both classes, but at least 6 rows of each where there are so many."""
    parts = []
    for label in (0, 1):
        index = np.flatnonzero(y == label)
        wanted = min(max(round(share * len(index)), NEIGHBOURS + 1), len(index))
        parts.append(rng.choice(index, wanted, replace=False))
    return np.sort(np.concatenate(parts))


def _notes(found: Diagnosis) -> Iterator[str]:
    if found.regime == "none":
        yield (
            f"{found.positives} rows of the rare class are too few to teach and to judge a classifier"
            if found.positives
            else NO_POSITIVES
        )
    if found.regime == "few":
        yield (
            f"with {found.positives} rows of the rare class a result can change by chance alone; "
            "collect more before trusting it"
        )
    periods = [value for value in found.by_period.values() if value.rows]
    if len(periods) > 1:
        low, high = min(periods, key=lambda p: p.high), max(periods, key=lambda p: p.low)
        if high.low > 2 * low.high:
            yield (
                f"prevalence changes over time, from {low.value:.2%} to {high.value:.2%} in a period: "
                "average precision moves with it, so compare it only beside the prevalence"
            )
    if found.point_types and found.point_types["outlier"] > 0.5:
        yield (
            "most rows of the rare class have none of their kind near: synthetic rows between them would lie in the "
            "majority"
        )
    if found.prevalence.value > 0.5:
        yield "the class taken as rare is the larger one; set data.positive to the value that is rare"
