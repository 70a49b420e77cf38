"""What a configuration says that only a later step would stumble over: found before a row is read."""

from __future__ import annotations

from rareclass.config import Config, OperatingPoint, ThresholdSettings
from rareclass.core.candidates import Candidate
from rareclass.errors import ConfigError, unknown


def check(config: Config) -> Config:
    """Return the configuration when its candidates and objectives exist and fit. Raises ConfigError with one line."""
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
    from rareclass.core.thresholds import CONSTRAINTS, OBJECTIVES

    if point.objective != "auto":
        if point.objective not in OBJECTIVES:
            raise unknown("objective", point.objective, OBJECTIVES, f"{where}.objective")
        needs = OBJECTIVES[point.objective].needs
        if needs and getattr(point, CONSTRAINTS[needs].setting) is None:
            raise ConfigError(f"objective '{point.objective}' needs a bound. Set {where}.{CONSTRAINTS[needs].setting}")
    if point.max_alerts_per_day is not None and time is None:
        raise ConfigError(
            f"{where}.max_alerts_per_day needs days to count by. Set data.time to the column with the time of a row"
        )
