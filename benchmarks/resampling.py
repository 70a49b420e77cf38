"""Cleaning and combined resampling against imbalanced-learn: the same rows kept, in less time.

30 features, 1 positive to 100 negatives, two threads on both sides, distances in the columns' own units on both. ENN
and Tomek links are exact on both sides, so the kept rows must be the same ones; SMOTE draws at random, so of the
combined ones only time and size are compared.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from benchmarks._common import THREADS, Claim, announce, claim, seconds, table

GOAL_CLEAN, GOAL_COMBINED = 10.0, 1.0
FEATURES, RATIO = 30, 100
SHORT = ["--rows", "50000", "--combined-rows", "15000"]
FULL = ["--rows", "200000", "--combined-rows", "60000"]


def data(rows: int) -> Any:
    """Correlated features (ten latent ones and noise); positives lie in two groups, a part of them among the others."""
    from rareclass.core.dataset import Feature, Rows, Schema

    rng = np.random.default_rng(0)
    y = np.zeros(rows, dtype=np.int64)
    y[rng.choice(rows, rows // (RATIO + 1), replace=False)] = 1
    latent = rng.normal(size=(rows, 10))
    latent[y == 1] += np.where(rng.random(y.sum()) < 0.5, 1.5, -1.0)[:, None] * (np.arange(10) < 4)
    x = latent @ rng.normal(size=(10, FEATURES)) + 0.7 * rng.normal(size=(rows, FEATURES))
    schema = Schema(tuple(Feature(f"f{at}") for at in range(FEATURES)))
    return Rows(schema, x.astype(np.float32), y, np.arange(rows, dtype=np.uint64))


def peers() -> dict[str, Any]:
    from imblearn.combine import SMOTEENN, SMOTETomek
    from imblearn.under_sampling import EditedNearestNeighbours, TomekLinks

    cleaner = EditedNearestNeighbours(n_neighbors=3, kind_sel="all", n_jobs=THREADS)
    every = EditedNearestNeighbours(n_neighbors=3, kind_sel="all", sampling_strategy="all", n_jobs=THREADS)
    links = TomekLinks(sampling_strategy="all", n_jobs=THREADS)
    return {
        "enn": cleaner,
        "tomek": TomekLinks(n_jobs=THREADS),
        "smote_enn": SMOTEENN(random_state=0, enn=every, n_jobs=THREADS),
        "smote_tomek": SMOTETomek(random_state=0, tomek=links, n_jobs=THREADS),
    }


def main(arguments: list[str] | None = None) -> list[Claim]:
    """Print the table and the claims; the last lines are JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000, help="for ENN and Tomek links")
    parser.add_argument("--combined-rows", type=int, default=15_000, help="for SMOTE-ENN and SMOTE-Tomek, before SMOTE")
    options = parser.parse_args(arguments)
    from rareclass.config import ResampleStep
    from rareclass.core.resampling import resample

    lines, claims = [], []
    for name, peer in peers().items():  # imports and first calls are nobody's cost
        small = data(2000)
        resample(small, [ResampleStep(name=name)], seed=0, threads=THREADS)
        peer.fit_resample(small.x, small.y)
    for name, peer in peers().items():
        combined = name.startswith("smote")
        rows = data(options.combined_rows if combined else options.rows)
        step = ResampleStep(name=name, params={"scale": False})
        found: dict[str, Any] = {}

        def ours(rows: Any = rows, step: Any = step, found: dict[str, Any] = found) -> None:
            found["ours"] = resample(rows, [step], seed=0, threads=THREADS).rows

        def theirs(rows: Any = rows, peer: Any = peer, found: dict[str, Any] = found) -> None:
            found["peer"] = peer.fit_resample(rows.x.astype(np.float64), rows.y)

        mine, other = seconds(ours), seconds(theirs)
        sizes = f"{len(found['ours']):,} / {len(found['peer'][1]):,}"
        same = ""
        if not combined:
            kept = np.sort(peer.sample_indices_)
            equal = np.array_equal(np.sort(found["ours"].row_id), kept.astype(np.uint64))
            same = "yes" if equal else f"NO, {len(np.setxor1d(found['ours'].row_id.astype(np.int64), kept))} differ"
        lines.append(
            [name, f"{len(rows):,}", f"{mine:.2f}", f"{other:.2f}", f"{other / mine:.1f}x", sizes, same or "random"]
        )
        text = (
            f"{name} on {len(rows):,} x {FEATURES} rows, 1:{RATIO}, {THREADS} threads, seconds against imbalanced-learn"
        )
        goal = GOAL_COMBINED if combined else GOAL_CLEAN
        claims.append(
            claim(
                "resampling",
                text + ("" if combined else ", same rows kept"),
                ours=mine,
                peer=other,
                goal=goal,
                rule="faster",
                holds=same in ("", "yes"),
            )
        )
    table(
        ["resampler", "rows", "ours s", "imbalanced-learn s", "faster", "rows after (ours / theirs)", "same rows"],
        lines,
    )
    return announce(claims)


if __name__ == "__main__":
    main()
