"""The focal loss of a user-defined objective against XGBoost's built-in logistic loss: 100 rounds, the same matrix
sizes.

Both train through ``learners.fit`` with the same settings and two threads, in turns; the median of the turns counts.
"""

from __future__ import annotations

import argparse

import numpy as np

from benchmarks._common import THREADS, Claim, announce, claim, table, turns

GOAL = 1.15
FEATURES = 30
SHORT = ["--rows", "200000", "--turns", "3"]
FULL = ["--rows", "500000", "--turns", "5"]


def main(arguments: list[str] | None = None) -> list[Claim]:
    """Print the table and the claim; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args(arguments)
    from rareclass.core import learners, ranking
    from rareclass.core.dataset import Feature, Rows, Schema
    from rareclass.core.fit_task import FitTask

    rng = np.random.default_rng(0)
    x = rng.normal(size=(options.rows, FEATURES)).astype(np.float32)
    z = -5.0 + x[:, 0] + x[:, 1] * x[:, 2] + 0.5 * np.abs(x[:, 3])
    y = (rng.random(options.rows) < 1 / (1 + np.exp(-z))).astype(np.int64)
    schema = Schema(tuple(Feature(f"f{at}") for at in range(FEATURES)))
    rows = Rows(schema, x, y, np.arange(options.rows, dtype=np.uint64))
    for loss in ("logistic", "focal"):  # imports and first calls are nobody's cost
        learners.fit("xgboost", FitTask(rows.take(np.arange(1000)), loss=loss, rounds=2, threads=THREADS))
    fitted = {}

    def fit(loss: str) -> None:
        fitted[loss] = learners.fit("xgboost", FitTask(rows, loss=loss, rounds=options.rounds, threads=THREADS))

    taken = turns({"logistic": lambda: fit("logistic"), "focal": lambda: fit("focal")}, options.turns)
    lines = [
        [loss, f"{taken[loss]:.2f}", f"{ranking.average_precision(y, fitted[loss].score(x)):.3f}"] for loss in taken
    ]
    table(["loss", f"s for {options.rounds} rounds of {options.rows:,} x {FEATURES}", "AP on the fitted rows"], lines)
    text = (
        f"focal loss, {options.rounds} rounds on {options.rows:,} x {FEATURES}: "
        "seconds against the built-in logistic loss"
    )
    return announce([claim("focal", text, ours=taken["focal"], peer=taken["logistic"], goal=GOAL, rule="at most")])


if __name__ == "__main__":
    main()
