"""Make synthetic screening visits: no row is a patient.

    python examples/medical_screening/generate.py     # writes visits.parquet beside this file

40,000 visits, 2 % with the disease. It comes in two forms: one raises marker A and B together, the other moves their
ratio and a third marker. What makes it hard: inflammation (8 % of the healthy) raises the same markers, early disease
(one in fourteen) barely moves them, and a test is ordered more often where a doctor is worried, so that missing values
carry information.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

PREVALENCE = 0.02


def generate(rows: int = 40_000, seed: int = 0) -> pd.DataFrame:
    """Return ``rows`` visits in no order."""
    rng = np.random.default_rng(seed)
    age = np.clip(rng.normal(54, 13, rows), 18, 92)
    family = rng.random(rows) < 0.12
    smoker = rng.random(rows) < 0.22
    tendency = np.exp(0.04 * (age - 54) + 0.8 * family + 0.5 * smoker)
    sick = np.zeros(rows, dtype=bool)
    sick[rng.choice(rows, round(rows * PREVALENCE), replace=False, p=tendency / tendency.sum())] = True
    inflamed = ~sick & (rng.random(rows) < 0.08)
    second = sick & (rng.random(rows) < 0.4)
    first = sick & ~second
    stage = np.where(rng.random(rows) < 0.07, rng.uniform(0.0, 0.5, rows), rng.uniform(0.8, 1.3, rows)) * sick

    log_a = rng.normal(2.0, 0.45, rows) + 1.9 * stage * first + 1.0 * stage * second + 0.9 * inflamed
    log_b = rng.normal(1.2, 0.45, rows) + 1.7 * stage * first - 0.9 * stage * second + 1.0 * inflamed
    log_c = rng.normal(0.5, 0.40, rows) + 0.4 * stage * first + 1.6 * stage * second + 0.15 * inflamed
    log_crp = rng.normal(0.4, 0.8, rows) + 0.4 * stage + 2.2 * inflamed
    loss = rng.normal(0, 2.5, rows) + 4.0 * stage
    worried = rng.random(rows) < np.clip(0.75 + 0.15 * sick + 0.1 * inflamed, 0, 1)
    frame = pd.DataFrame(
        {
            "age": age.round(),
            "sex": rng.choice(["f", "m"], rows),
            "bmi": rng.normal(26.5, 4.5, rows).round(1),
            "smoker": smoker,
            "family_history": family,
            "marker_a": np.exp(log_a).round(2),
            "marker_b": np.exp(log_b).round(2),
            "marker_c": np.where(worried, np.exp(log_c).round(2), np.nan),
            "crp": np.exp(log_crp).round(2),
            "haemoglobin": (rng.normal(14.1, 1.2, rows) - 1.1 * stage).round(1),
            "weight_loss_kg": np.where(rng.random(rows) < 0.85, loss.round(1), np.nan),
            "fatigue": rng.choice(["none", "some", "severe"], rows, p=[0.6, 0.3, 0.1]),
            "clinic": rng.choice(["north", "south", "east", "west"], rows),
            "disease": np.where(sick, "yes", "no"),
        }
    )
    tired = sick & (rng.random(rows) < 0.45)
    frame.loc[tired, "fatigue"] = rng.choice(["some", "severe"], int(tired.sum()))
    return frame


def main() -> None:
    parser = argparse.ArgumentParser(description="Write synthetic screening visits beside this file")
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("visits.parquet"))
    options = parser.parse_args()
    frame = generate(options.rows, options.seed)
    frame.to_parquet(options.out, index=False)
    print(f"{options.out}: {len(frame):,} synthetic visits, {(frame['disease'] == 'yes').sum():,} with the disease")


if __name__ == "__main__":
    main()
