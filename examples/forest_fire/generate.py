"""Make synthetic cell-days of five fire seasons: no row is real.

    python examples/forest_fire/generate.py           # writes cells.parquet beside this file

523 cells of about 10 km, 153 days (May to September) of 2019-2023; 399,687 rows, a fire starts in 1 of 1,383
(1 fire to 1,382 quiet cell-days). Weather moves in fronts over all cells; drought builds up and is washed out; people
light most fires, so roads, villages and weekends matter as much as heat. What makes it hard: the risk is a product of
dryness, fuel and people, a dangerous day still has no fire in 99 of 100 cells, and lightning strikes anywhere.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

CELLS, YEARS, SEASON = 523, range(2019, 2024), 153
ODDS = 1382
COVERS = {"broadleaf": 0.3, "conifer": 0.3, "scrub": 0.2, "farmland": 0.15, "bare": 0.05}
FUEL = {"broadleaf": 0.0, "conifer": 0.9, "scrub": 1.1, "farmland": -0.4, "bare": -2.5}


def _walk(rng: np.random.Generator, days: int, memory: float) -> np.ndarray:
    """An autoregressive series without a trend: weather that lasts, in years that are alike."""
    steps = rng.normal(size=days) * np.sqrt(1 - memory**2)
    values = np.empty(days)
    last = rng.normal()
    for day in range(days):
        last = memory * last + steps[day]
        values[day] = last
    return values - values.mean()


def _season(rng: np.random.Generator, land: pd.DataFrame, year: int) -> pd.DataFrame:
    """All cells on all days of one season, with the weather of the morning."""
    days, cells = SEASON, len(land)
    heat, wet = _walk(rng, days, 0.85), _walk(rng, days, 0.7)
    shape = (days, cells)
    summer = np.sin(np.linspace(0, np.pi, days))[:, None]
    temperature = 17 + 9 * summer + 2.5 * heat[:, None] - land["height"].to_numpy() / 160 + rng.normal(0, 1.5, shape)
    rain = np.where(wet[:, None] + rng.normal(0, 0.7, shape) > 0.9, rng.gamma(1.2, 7, shape), 0.0)
    drought = np.zeros(shape)
    level = np.full(cells, 20.0)
    for day in range(days):
        level = np.clip(level + np.maximum(temperature[day] - 10, 0) * 0.12 - rain[day] * 1.6, 0, 100)
        drought[day] = level
    humidity = np.clip(62 - 1.1 * (temperature - 20) + 9 * wet[:, None] + rng.normal(0, 6, shape), 8, 100)
    wind = rng.gamma(2.4, 1.6, shape) + np.maximum(heat, 0)[:, None]
    date = pd.Timestamp(f"{year}-05-01") + pd.to_timedelta(np.arange(days), unit="D")
    frame = pd.DataFrame({"date": np.repeat(date, cells)})
    weather = {"temperature": temperature, "rain_mm": rain, "drought": drought, "humidity": humidity, "wind": wind}
    for name, values in weather.items():
        frame[name] = values.reshape(-1).round(2)
    return pd.concat([frame, pd.concat([land] * days, ignore_index=True)], axis=1)


def _chances(risk: np.ndarray, count: int) -> np.ndarray:
    """Share of each row in the next fire: logistic at the level where ``count`` rows burn, 3 % of it lightning."""
    low, high = -60.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        burns = 0.97 / (1 + np.exp(-(risk + middle))) + 0.03 * count / len(risk)
        low, high = (middle, high) if burns.sum() < count else (low, middle)
    return burns / burns.sum()


def generate(seed: int = 4) -> pd.DataFrame:
    """Return 399,687 cell-days, ordered in time; 289 with a fire."""
    rng = np.random.default_rng(seed)
    land = pd.DataFrame(
        {
            "cover": rng.choice(list(COVERS), CELLS, p=list(COVERS.values())),
            "height": rng.gamma(2, 180, CELLS).round(),
            "slope": rng.gamma(2, 5, CELLS).round(1),
            "road_km": rng.gamma(1.3, 2.2, CELLS).round(2),
            "people_km2": rng.lognormal(2.6, 1.3, CELLS).round(1),
        }
    )
    frame = pd.concat([_season(rng, land, year) for year in YEARS], ignore_index=True)
    frame = frame.iloc[len(frame) % (ODDS + 1) :].reset_index(drop=True)
    frame["weekend"] = frame["date"].dt.dayofweek >= 5
    dry = (frame["drought"] - 40) / 22 + (55 - frame["humidity"]) / 12 + (frame["wind"] - 4) / 3
    people = 0.55 * np.log1p(frame["people_km2"]) - 0.3 * frame["road_km"] + 0.7 * frame["weekend"]
    risk = 1.15 * dry + frame["cover"].map(FUEL) + people + 0.03 * frame["slope"] + rng.normal(0, 0.6, len(frame))
    frame["fire"] = 0
    count = round(len(frame) / (ODDS + 1))
    frame.loc[rng.choice(len(frame), count, replace=False, p=_chances(risk.to_numpy(), count)), "fire"] = 1
    frame.loc[rng.random(len(frame)) < 0.02, ["humidity", "wind"]] = np.nan  # a weather station was down
    return frame


def main() -> None:
    parser = argparse.ArgumentParser(description="Write synthetic fire seasons beside this file")
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("cells.parquet"))
    options = parser.parse_args()
    frame = generate(options.seed)
    frame.to_parquet(options.out, index=False)
    fires = int(frame["fire"].sum())
    print(
        f"{options.out}: {len(frame):,} synthetic cell-days, {fires:,} with a fire "
        f"(1:{(len(frame) - fires) / fires:.0f})"
    )


if __name__ == "__main__":
    main()
