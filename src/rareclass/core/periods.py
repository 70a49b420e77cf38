"""How rare the rare class was, period by period."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rareclass.core.dataset import FloatArray, IntArray
from rareclass.core.estimate import Estimate, share_of
from rareclass.core.jsonable import Jsonable

_UNITS = (("month", "M"), ("week", "W"), ("day", "D"), ("hour", "h"))
_FEW, _MANY = 6, 60


@dataclass(frozen=True)
class Period(Jsonable):
    """Rows of one calendar period that begins at ``start``, and the part of the split that most of them are in."""

    start: str
    prevalence: Estimate
    part: str


def by_period(
    time: NDArray[np.datetime64],
    y: IntArray,
    part: NDArray[Any],
    *,
    natural: FloatArray | None = None,
    confidence: float = 0.95,
) -> tuple[str, tuple[Period, ...]]:
    """Return the unit, and the prevalence in each of its periods with the Wilson interval; periods without rows are
    left out.

    time, y, part : (n,) when, 0 or 1, name of the part of the split
    natural : (n,) how many rows of the table each one stands for, where they are a sample of it
    The unit is the coarsest of month, week, day and hour that makes at least 6 periods; not more than the last 60 are
    shown.
    """
    if not len(time):
        return "", ()
    unit, period = _cut(time)
    starts, code = np.unique(period, return_inverse=True)
    rows, positives = np.bincount(code, natural), np.bincount(code, y if natural is None else y * natural)
    names, which = np.unique(part, return_inverse=True)
    most = np.stack([np.bincount(code, which == k, len(starts)) for k in range(len(names))]).argmax(axis=0)
    periods = [
        Period(
            str(start.astype("datetime64[s]"))[: 13 if unit == "hour" else 10],
            share_of(round(float(hits)), round(float(size)), confidence),
            str(names[k]),
        )
        for start, hits, size, k in zip(starts, positives, rows, most, strict=True)
    ]
    return unit, tuple(periods[-_MANY:])


def _cut(time: NDArray[np.datetime64]) -> tuple[str, NDArray[np.datetime64]]:
    for unit, code in _UNITS:
        period = monday(time.astype("datetime64[D]")) if unit == "week" else time.astype(f"datetime64[{code}]")
        if len(np.unique(period)) >= _FEW or unit == "hour":
            return unit, period
    raise AssertionError("the last unit is always taken")


def monday(day: NDArray[np.datetime64]) -> NDArray[np.datetime64]:
    """Return the Monday of each day's week; NumPy's own weeks begin on Thursdays, because 1970 did."""
    return np.asarray(day - ((day.astype(np.int64) + 3) % 7).astype("timedelta64[D]"))
