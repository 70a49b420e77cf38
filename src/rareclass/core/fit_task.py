"""What a learner is given to fit, and how it says that it was stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rareclass.core.dataset import FloatArray, Rows
from rareclass.errors import unknown

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
    found: str = settings.pop("cut_points", CUT_POINTS[0])
    if found not in CUT_POINTS:
        raise unknown("cut_points", found, CUT_POINTS, "candidates.params")
    return found


def check_params(learner: str, params: Mapping[str, Any], known: Any) -> None:
    """Raise ConfigError for a parameter that is not among the ``known`` ones, with the nearest."""
    for name in params:
        if name not in known:
            raise unknown(f"{learner} parameter", name, known, "candidates.params")
