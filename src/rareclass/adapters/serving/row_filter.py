"""`data.filter` at serving: a row that training would have left out gets no score, because nothing was learned about
it.

Asked of what a request carries: features always, other columns of the filter where they are sent. Conditions on the
time of a row bound the history and are not asked.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rareclass.adapters.serving.v2_codec import shown
from rareclass.config import Condition, filter_groups
from rareclass.core.dataset import BoolArray
from rareclass.errors import InputError

Column = Callable[[str], "NDArray[Any] | None"]

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def groups(raw: Sequence[Any], *, without: Sequence[str] = ()) -> tuple[tuple[Condition, ...], ...]:
    """Return a filter as or-ed groups of and-ed conditions, leaving out those on the columns ``without``."""
    found = [tuple((str(c), str(o), v) for c, o, v in group if c not in without) for group in filter_groups(raw)]
    return tuple(found) if all(found) else ()  # a group without conditions lets every row through


def of_version(meta: Mapping[str, Any]) -> tuple[tuple[Condition, ...], ...]:
    """Return the rows that a version was trained for: the filter it was trained with, not the one of today's
    configuration.
    """
    data = (meta.get("config") or {}).get("data") or {}
    return groups(data.get("filter") or (), without=[data["time"]] if data.get("time") else [])


def check(wanted: Sequence[Sequence[Condition]], column: Column, n: int) -> None:
    """Raise InputError for the first row that no group lets through.

    column : returns the (n,) values of a column, numbers or objects (None or NaN is missing); None when it was not sent
    """
    kept, asked = _asked(wanted, column, n)
    if not wanted or kept.all():
        return
    row = int(np.argmin(kept))
    (name, sign, value), values, _ = next(each for each in asked if not each[2][row])
    raise InputError(
        f"row {row} is outside the rows that the model was trained for: "
        f"{name} is {shown(values[row : row + 1].tolist()[0])}, but data.filter keeps {name} {sign} {shown(value)}. "
        "Leave such rows out"
    )


def inside(wanted: Sequence[Sequence[Condition]], column: Column, n: int) -> BoolArray:
    """Return (n,) whether a group lets the row through; a column that is not there (None) is not asked."""
    return _asked(wanted, column, n)[0] if wanted else np.ones(n, dtype=bool)


def _asked(
    wanted: Sequence[Sequence[Condition]], column: Column, n: int
) -> tuple[BoolArray, list[tuple[Condition, NDArray[Any], BoolArray]]]:
    """Return which rows some group lets through, and every condition that was asked with its values and outcome."""
    kept = np.zeros(n, dtype=bool)
    asked: list[tuple[Condition, NDArray[Any], BoolArray]] = []
    for group in wanted:
        holds = np.ones(n, dtype=bool)
        for condition in group:
            values = column(condition[0])
            if values is not None:
                asked.append((condition, values, _holds(values, condition[1], condition[2])))
                holds &= asked[-1][2]
        kept |= holds
    return kept, asked


def _holds(values: NDArray[Any], sign: str, bound: Any) -> BoolArray:
    """Return (n,) whether a condition holds: as numbers where the bound is a number, else as text.

    A missing value meets none.
    """
    several = sign in ("in", "not in")
    bounds = list(bound) if several else [bound]
    wanted: NDArray[Any] | list[str]
    if all(isinstance(each, int | float) and not isinstance(each, bool) for each in bounds):
        there, found, wanted = _numbers(values, bounds)
    else:
        there = np.array([not _missing(each) for each in values], dtype=bool)
        found = np.array([_text(each) for each in values], dtype=object)
        wanted = [_text(each) for each in bounds]
    if not several:
        holds = _COMPARE[sign](found, wanted[0])
    else:
        holds = np.isin(found, wanted, invert=sign == "not in")
    return np.asarray(there & np.asarray(holds, dtype=bool))


def _numbers(values: NDArray[Any], bounds: Sequence[float]) -> tuple[BoolArray, NDArray[Any], NDArray[Any]]:
    """Return which values are there, the values and the bounds.

    The bounds are rounded to float32 where the values were.
    """
    if values.dtype == object:
        import pandas as pd

        values = pd.to_numeric(pd.Series(values), errors="coerce").to_numpy(dtype=float)
    kind = values.dtype if values.dtype.kind == "f" else np.dtype(float)
    return ~np.isnan(values.astype(kind)), values, np.asarray(bounds).astype(kind)


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
