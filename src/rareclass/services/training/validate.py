"""What a configuration says that only a later step would stumble over: found before a row is read."""

from __future__ import annotations

from rareclass.config import Config, OperatingPoint, ThresholdSettings
from rareclass.errors import ConfigError, unknown

_BOUNDS = {
    "min_precision": "min_precision", "min_recall": "min_recall", "max_alerts": "max_alerts_per_day",
    "max_false_alarms": "max_false_alarm_rate",
}  # fmt: skip


def check(config: Config) -> Config:
    """Return the configuration when its candidates and objectives exist and fit. Raises ConfigError with one line."""
    from rareclass.core.candidates import Candidate
    from rareclass.core.planning import check_recipe

    only = [] if config.search.only is None else [config.search.only]
    for spec in (*only, *config.search.candidates, *config.search.extra):
        check_recipe(Candidate.from_spec(spec))
    if config.split.prequential and config.data.time is None:
        raise ConfigError("prequential folds need a time. Set data.time, or split.prequential: 0")
    _check_objective("threshold", config.threshold, config.data.time)
    for position, point in enumerate(config.threshold.points):
        _check_objective(f"threshold.points[{position}]", point, config.data.time)
    return config


def _check_objective(where: str, point: ThresholdSettings | OperatingPoint, time: str | None) -> None:
    from rareclass.core.thresholds import OBJECTIVES

    if point.objective != "auto":
        if point.objective not in OBJECTIVES:
            raise unknown("objective", point.objective, OBJECTIVES, f"{where}.objective")
        bound = _BOUNDS.get(OBJECTIVES[point.objective].needs or "")
        if bound is not None and getattr(point, bound) is None:
            raise ConfigError(f"objective '{point.objective}' needs a bound. Set {where}.{bound}")
    if point.max_alerts_per_day is not None and time is None:
        raise ConfigError(
            f"{where}.max_alerts_per_day needs days to count by. Set data.time to the column with the time of a row"
        )
