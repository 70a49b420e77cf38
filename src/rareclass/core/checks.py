"""Checks of labelled rows before anything is learned from them; what a failed one does is set in `data.checks`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from rareclass.config import ChecksSettings, DataSettings
from rareclass.core.dataset import AnyArray, BoolArray, Feature, FloatArray, FloatMatrix, IntArray, Rows
from rareclass.core.hashing import content_groups
from rareclass.core.jsonable import Jsonable
from rareclass.core.ranking import average_precision
from rareclass.errors import DataError

_CHUNK = 1 << 16
_SCREEN_POSITIVES = 2_000
_SCREEN_NEGATIVES = 20_000
_SCREEN_SLACK = 0.25


@dataclass(frozen=True, slots=True)
class Finding(Jsonable):
    """One thing that was found. ``check`` is its name in `data.checks`; ``column`` is None when it is about rows."""

    check: str
    severity: Literal["error", "warning"]
    column: str | None
    message: str


def enforce(found: Sequence[Finding]) -> list[Finding]:
    """Return the warnings. Raises DataError with one line when there is an error among them."""
    errors = [finding for finding in found if finding.severity == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise DataError(f"{errors[0].message}{more}")
    return list(found)


def check_rows(rows: Rows, data: DataSettings, content: AnyArray | None = None) -> list[Finding]:
    """Check encoded rows: infinite values, columns without any value, identical rows, features that give the target
    away.

    content : (n,) hashes that are equal where rows are equal in every feature, where they are known already
    Returns the warnings. Raises DataError with one line for the first check whose severity is "error".
    """
    checks = data.checks
    findings = [*check_infinite(rows, checks), *check_all_missing(rows, checks)]
    enforce(findings)
    findings += [*check_identical(rows, checks, content), *check_leaks(rows, checks)]
    return enforce(findings)


def check_counted(
    names: Sequence[str],
    rows: int,
    *,
    infinite: AnyArray,
    filled: AnyArray,
    repeated: tuple[int, int],
    by_time: bool,
    data: DataSettings,
) -> list[Finding]:
    """The same checks of rows whose features were only counted; which features give the target away is seen in a
    sample.

    infinite, filled : (n_features,) how many values are infinite, and how many there are
    repeated : rows that equal another one in every feature, and how many of these have a twin of the other label
    Returns the warnings. Raises DataError as ``check_rows`` does.
    """
    checks = data.checks
    findings = [*_infinite(((name, int(n)) for name, n in zip(names, infinite, strict=True) if n), rows, checks)]
    findings += _all_missing((name for name, n in zip(names, filled, strict=True) if not n), checks)
    enforce(findings)
    findings += _identical(*repeated, rows, by_time, checks)
    return enforce(findings)


def _finding(checks: ChecksSettings, check: str, column: str | None, message: str) -> Iterator[Finding]:
    severity = getattr(checks, check)
    if severity != "off":
        yield Finding(check, severity, column, message)


def check_target(target: pd.Series[Any], data: DataSettings) -> list[Finding]:
    """Check the raw target for missing values; rows without one are the caller's to drop.

    Raises DataError when no row has a target, whatever the severity.
    """
    missing = int(target.isna().sum())
    if missing == len(target):
        raise DataError(
            f"column '{data.target}' has no value in any of {len(target):,} rows. Set data.target to another column"
        )
    if not missing:
        return []
    message = (
        f"column '{data.target}' (the target) is missing in {missing:,} of {len(target):,} rows. "
        "Fill it in, or set data.checks.missing_target: warning to leave those rows out"
    )
    return enforce(list(_finding(data.checks, "missing_target", data.target, message)))


def check_ids(ids: pd.Series[Any], data: DataSettings) -> list[Finding]:
    """Check that no two rows have the same id; missing ids count as equal."""
    repeated = ids.duplicated(keep=False)
    if data.checks.duplicate_ids == "off" or not repeated.any():
        return []
    return check_repeated_ids(int(repeated.sum()), len(ids), ids[repeated].iloc[0], data)


def check_repeated_ids(repeated: int, rows: int, first: object, data: DataSettings) -> list[Finding]:
    """Report so many rows of all whose id is another row's, too; first : one of these ids."""
    message = (
        f"column '{data.id}' (the id) repeats in {repeated:,} of {rows:,} rows, like {first!r}. "
        "Set data.id to a column that differs on every row, or data.checks.duplicate_ids: warning"
    )
    return enforce(list(_finding(data.checks, "duplicate_ids", data.id, message)))


def check_time(raw: pd.Series[Any], parsed: pd.Series[Any], data: DataSettings) -> list[Finding]:
    """Check that every value of the time column became a time; ``parsed`` is NaT where it did not."""
    bad = parsed.isna()
    if data.checks.unparsable_time == "off" or not bad.any():
        return []
    example = raw[bad].iloc[0]
    far = hasattr(example, "isoformat")  # a time by its type, and yet not believed
    what = f"lies outside 1970 to 2099, like {example}," if far else f"is not a time, like {example!r},"
    way = (
        "Mend those values, or set data.time_format: iso if they are right"
        if far
        else (
            "Write times as 2024-05-31T12:00:00 (years 1970 to 2099), or set data.time_format, or data.time to "
            "another column"
        )
    )
    message = (
        f"column '{data.time}' (the time) {'is missing' if pd.isna(example) else what} in {int(bad.sum()):,} of "
        f"{len(raw):,} rows. "
        f"{way}, or data.checks.unparsable_time: warning"
    )
    return enforce(list(_finding(data.checks, "unparsable_time", data.time, message)))


def check_infinite(rows: Rows, checks: ChecksSettings) -> Iterator[Finding]:
    """Columns with plus or minus infinity, also from numbers too large for float32."""
    if checks.infinite_values != "off":
        yield from _infinite(_counts(rows, np.isinf), len(rows), checks)


def _infinite(counts: Iterable[tuple[str, int]], rows: int, checks: ChecksSettings) -> Iterator[Finding]:
    for name, count in counts:
        message = (
            f"column '{name}' is infinite (or beyond 3.4e38) in {count:,} of {rows:,} rows. "
            "Make those values missing, or drop it with data.drop, or set data.checks.infinite_values: warning"
        )
        yield from _finding(checks, "infinite_values", name, message)


def check_all_missing(rows: Rows, checks: ChecksSettings) -> Iterator[Finding]:
    """Columns without any value."""
    yield from _all_missing((name for name, count in _counts(rows, np.isnan) if count == len(rows)), checks)


def _all_missing(names: Iterable[str], checks: ChecksSettings) -> Iterator[Finding]:
    for name in names:
        message = f"column '{name}' has no value in any row; it is left out. Fill it, or take it out with data.drop"
        yield from _finding(checks, "all_missing", name, message)


def _counts(rows: Rows, what: Callable[[FloatMatrix], BoolArray]) -> list[tuple[str, int]]:
    """(name, number of rows) of the columns in which ``what`` is true anywhere."""
    total = np.zeros(len(rows.schema.features), dtype=np.int64)
    for start in range(0, len(rows), _CHUNK):
        total += what(rows.x[start : start + _CHUNK]).sum(axis=0)
    return [(name, int(count)) for name, count in zip(rows.schema.names, total, strict=True) if count]


def check_identical(rows: Rows, checks: ChecksSettings, content: AnyArray | None = None) -> Iterator[Finding]:
    """Rows equal in every feature; says also how many of them have both labels."""
    if checks.identical_rows == "off" or len(rows) < 2:
        return
    yield from _identical(*_counted(rows.x, rows.y, content), len(rows), rows.time is not None, checks)


def _counted(x: FloatMatrix, y: AnyArray, content: AnyArray | None) -> tuple[int, int]:
    """Return how many rows equal another one, and how many of these have a twin of the other label."""
    index, group = _repeated(x, content)
    positives, size = np.bincount(group, y[index]), np.bincount(group)
    return len(index), int(size[(positives > 0) & (positives < size)].sum())


def repeated(content: AnyArray, y: AnyArray) -> tuple[int, int]:
    """Return how many rows equal another one, and how many of these have a twin of the other label.

    content : (n,) hashes that are equal where rows are equal in every feature
    """
    return _counted(np.empty((len(content), 0), dtype=np.float32), y, content)


def _identical(repeats: int, torn: int, rows: int, by_time: bool, checks: ChecksSettings) -> Iterator[Finding]:
    if not repeats:
        return
    both = f", {torn:,} of them with both labels: no model can tell these apart" if torn else ""
    reason = "Their times make them events of their own" if by_time else "They stay on one side of every split"
    message = (
        f"{repeats:,} of {rows:,} rows equal another one in every feature{both}. "
        f"{reason}; remove repeats in the source if they are not meant"
    )
    yield from _finding(checks, "identical_rows", None, message)


def _repeated(x: FloatMatrix, content: AnyArray | None) -> tuple[IntArray, IntArray]:
    """Positions of the rows that equal another one, and the number of each one's group; sorts one array, in place."""
    ordered = content_groups(x) if content is None else content.copy()
    ordered.sort()
    again = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    index, group = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for start in range(0, len(x) if len(again) else 0, _CHUNK):
        part = slice(start, start + _CHUNK)
        hashed = content_groups(x[part]) if content is None else content[part]
        place = np.minimum(np.searchsorted(again, hashed), len(again) - 1)
        repeats = np.flatnonzero(again[place] == hashed)
        index.append(repeats + start)
        group.append(place[repeats])
    return np.concatenate(index), np.concatenate(group)


def check_leaks(rows: Rows, checks: ChecksSettings) -> Iterator[Finding]:
    """Features that alone, or whose missingness alone, rank the rare class with an AP of `leak_ap` or more.

    Screened on at most 2,000 positives and 20,000 weighted negatives, evenly spaced; what comes near is judged on all.
    """
    if checks.leak == "off" or not 0 < rows.positives < len(rows):
        return
    index, weight = _screen(rows.y)
    natural = rows.natural
    if natural is not None:  # drawn from a larger table: what a negative stands for
        weight = weight * natural[index]
    for feature, column in _columns(rows):
        value, how = _alone(column[index], rows.y[index], weight, feature)
        if value >= checks.leak_ap - _SCREEN_SLACK and len(index) < len(rows):
            value, how = _alone(column, rows.y, np.ones(len(rows)) if natural is None else natural, feature)
        if value >= checks.leak_ap:
            message = (
                f"column '{feature.name}' ({how}) alone reaches an average precision of {value:.3f}: "
                "it may be known only "
                "after the target. Drop it with data.drop, or set data.checks.leak: off if it is known in time"
            )
            yield from _finding(checks, "leak", feature.name, message)


def _columns(rows: Rows) -> Iterator[tuple[Feature, FloatMatrix]]:
    for position, feature in enumerate(rows.schema.features):
        yield feature, rows.x[:, position]


def _screen(y: IntArray) -> tuple[IntArray, FloatArray]:
    """Positions of the screened rows and how many rows each stands for."""
    index, weight = [], []
    for label, bound in ((1, _SCREEN_POSITIVES), (0, _SCREEN_NEGATIVES)):
        rows = np.flatnonzero(y == label)
        taken = rows[np.linspace(0, len(rows) - 1, min(bound, len(rows))).astype(np.int64)]
        index.append(taken)
        weight.append(np.full(len(taken), len(rows) / len(taken)))
    return np.concatenate(index), np.concatenate(weight)


def _alone(column: FloatMatrix, y: IntArray, weight: FloatArray, feature: Feature) -> tuple[float, str]:
    """Best AP of the column as a score, and how it gets it."""
    missing = np.isnan(column)
    ways = []
    if missing.any():
        ways += [(average_precision(y, missing.astype(np.float64), weight), "being missing")]
        ways += [(average_precision(y, 1.0 - missing, weight), "being present")]
    if feature.kind == "categorical":
        ways.append((average_precision(y, _level_prevalence(column, y, weight), weight), "its levels"))
    elif not missing.all():
        order = np.unique(column[~missing], return_inverse=True)[1]  # infinite values are ranked too
        for score, how in ((order, "high values"), (order.max() - order, "low values")):
            ranked = np.full(len(column), -1.0)
            ranked[~missing] = score
            ways.append((average_precision(y, ranked, weight), how))
    return max(ways, default=(0.0, ""))


def _level_prevalence(column: FloatMatrix, y: IntArray, weight: FloatArray) -> FloatArray:
    level = np.unique(column, return_inverse=True)[1]
    return np.asarray((np.bincount(level, weight * y) / np.bincount(level, weight))[level], dtype=np.float64)
