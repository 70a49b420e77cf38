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


def check_params(learner: str, params: Mapping[str, Any], known: Any) -> None:
    """Raise ConfigError for a parameter that is not among the ``known`` ones, with the nearest."""
    for name in params:
        if name not in known:
            raise unknown(f"{learner} parameter", name, known, "candidates.params")
