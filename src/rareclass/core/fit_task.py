"""What a learner is given to fit, and how it says that it was stopped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from rareclass.core.dataset import FloatArray, Rows
from rareclass.errors import ConfigError, unknown

LARGE_ROWS = 120_000
"""Rows from which time, not noise, limits what a learner can do."""


class InterruptedFitError(Exception):
    """Time ran out before the fit was finished; nothing of it is used."""


def never() -> bool:
    """Out of time? Never."""
    return False


@dataclass(frozen=True)
class FitTask:
    """Everything a fit needs besides its settings.

    weight : (n,) training weights or None · rounds : of boosting, or epochs; default: as many as the settings say
    """

    rows: Rows
    weight: FloatArray | None = None
    rounds: int | None = None
    loss: str = "logistic"
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    out_of_time: Callable[[], bool] = never


CUT_POINTS = ("classes", "rows")
"""What weighs the same when a histogram's cut points are placed (docs/decisions/0025);
"rows" is a library's own way.
"""


def take_cut_points(settings: dict[str, Any]) -> str:
    """Take ``cut_points`` out of a learner's settings. Raises ConfigError for one that does not exist."""
    placing: str = settings.pop("cut_points", CUT_POINTS[0])
    if placing not in CUT_POINTS:
        raise unknown("cut_points", placing, CUT_POINTS, "candidates.params")
    return placing


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may be.

    text : of them, for people · below : ``most`` itself is not among them · above : nor ``least``
    listed : it is a list of such numbers
    """

    text: str
    least: float
    most: float = math.inf
    whole: bool = False
    below: bool = False
    above: bool = False
    listed: bool = False

    def __contains__(self, value: object) -> bool:
        if self.listed:
            return isinstance(value, list | tuple) and bool(value) and all(map(self._holds, value))
        return self._holds(value)

    def _holds(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, Real):
            return False
        number = float(value)
        if not math.isfinite(number) or not self.least <= number <= self.most:
            return False
        if self.whole and not number.is_integer():
            return False
        return not (self.below and number == self.most) and not (self.above and number == self.least)


_COUNT = Range("a whole number above 0", 1, 2**31, whole=True)
_SHARE = Range("a share above 0, at most 1", 0, 1, above=True)
RANGES: dict[str, Range] = {
    **dict.fromkeys(("rounds", "epochs", "patience", "trees", "bins", "k", "rows", "landmarks"), _COUNT),
    **dict.fromkeys(("nu", "support"), _SHARE),
    "steps": Range("a whole number, 0 or more", 0, 2**31, whole=True),
    "parts": Range("a list of whole numbers above 0", 1, 2**31, whole=True, listed=True),
    "share": Range("a share from 0 to 1", 0, 1),
    "unseen": Range("a share from 0 to below 1", 0, 1, below=True),
    "hand_over": Range("a number, 0 or more", 0),
    "width": Range("a number of standard deviations, 0 or more", 0),
}
"""Parameters that no library checks, because rareclass reads them itself; a name means the same in every learner."""


def check_params(learner: str, params: Mapping[str, Any], known: Any) -> None:
    """Raise ConfigError for a parameter that is not among the ``known`` ones, with the nearest, or is out of range."""
    for name, value in params.items():
        if name not in known:
            raise unknown(f"{learner} parameter", name, known, "candidates.params")
        check_range(learner, name, value, "candidates.params")


def check_range(learner: str, name: str, value: object, setting: str) -> None:
    """Raise ConfigError for a parameter of ours whose value it cannot be."""
    if name in RANGES and value not in RANGES[name]:
        raise ConfigError(f"{learner} parameter '{name}' must be {RANGES[name].text}; it is {value!r}. Mend {setting}")
