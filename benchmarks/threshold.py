"""Exact threshold with an interval against scikit-learn's tuner of 100 cut-offs.

Ours looks at every distinct score and at 200 bootstrap resamples; the peer, TunedThresholdClassifierCV(cv="prefit",
thresholds=100), looks at 100 cut-offs and at no resample. The scores are given on both sides; the peer's classifier
only hands them on. Afterwards both cut-offs are judged by the same function on the same rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks._common import Claim, announce, claim, seconds, table, turns
from rareclass.core.bootstrap import Bootstrap, Sample
from rareclass.core.thresholds import Aim

GOAL = 50.0
MISS, ALARM = 50.0, 1.0
FULL = ["--objectives", "f1", "f2", "mcc", "cost"]


def scores(rows: int, prevalence: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the given prevalence with scores as a good model's: positives high, with an overlap."""
    rng = np.random.default_rng(0)
    y = (rng.random(rows) < prevalence).astype(np.int64)
    z = rng.normal(-5.5, 1.2, rows) + y * rng.normal(3.5, 1.5, rows)
    return y, 1 / (1 + np.exp(-z))


def metrics() -> dict[str, Callable[[Any, Any], float]]:
    """Objective -> the metric that scikit-learn computes; higher is better."""
    from sklearn.metrics import confusion_matrix, f1_score, fbeta_score, matthews_corrcoef

    def cost(y: Any, decision: Any) -> float:  # as scikit-learn's own example of cost-sensitive tuning does it
        return -float((confusion_matrix(y, decision, labels=[0, 1]) * np.array([[0.0, ALARM], [MISS, 0.0]])).sum())

    return {
        "f1": lambda y, d: float(f1_score(y, d)),
        "f2": lambda y, d: float(fbeta_score(y, d, beta=2)),
        "mcc": lambda y, d: float(matthews_corrcoef(y, d)),
        "cost": cost,
    }


def peer_threshold(y: np.ndarray, score: np.ndarray, metric: Callable[[Any, Any], float]) -> float:
    """What scikit-learn finds."""
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.metrics import make_scorer
    from sklearn.model_selection import TunedThresholdClassifierCV

    class Given(ClassifierMixin, BaseEstimator):
        """A fitted classifier whose probability is its only feature."""

        def fit(self, x: Any, y: Any) -> Given:
            self.classes_ = np.array([0, 1])
            return self

        def predict_proba(self, x: Any) -> np.ndarray:
            return np.column_stack([1 - x[:, 0], x[:, 0]])

    x = score[:, None]
    tuner = TunedThresholdClassifierCV(
        Given().fit(x, y),
        scoring=make_scorer(metric),
        response_method="predict_proba",
        thresholds=100,
        cv="prefit",
        refit=False,
    )
    return float(tuner.fit(x, y).best_threshold_)


def main(arguments: list[str] | None = None) -> list[Claim]:
    """Print the table and the claims; the last lines are JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--bootstraps", type=int, default=200)
    parser.add_argument("--objectives", nargs="+", default=["f1", "cost"], choices=["f1", "f2", "mcc", "cost"])
    options = parser.parse_args(arguments)
    from rareclass.core import thresholds
    from rareclass.core.costs import CostArrays

    y, score = scores(options.rows, 0.01)
    for objective in options.objectives:  # imports and first calls are nobody's cost
        thresholds.tune(Sample(y[:5000], score[:5000]), aim=Aim(objective=objective), bootstrap=Bootstrap(resamples=50))
        peer_threshold(y[:5000], score[:5000], metrics()[objective])
    lines, claims = [], []
    for objective in options.objectives:
        metric = metrics()[objective]
        found: dict[str, float] = {}

        def ours(objective: str = objective, found: dict[str, float] = found) -> None:
            tuned = thresholds.tune(
                Sample(y, score),
                costs=CostArrays(MISS, ALARM),
                aim=Aim(objective=objective),
                bootstrap=Bootstrap(resamples=options.bootstraps, seed=0),
            )
            found["ours"] = tuned.value

        def peer(metric: Any = metric, found: dict[str, float] = found) -> None:
            found["peer"] = peer_threshold(y, score, metric)

        mine, theirs = turns({"ours": ours}, 3)["ours"], seconds(peer)
        value = {name: metric(y, (score >= cut).astype(np.int64)) for name, cut in found.items()}
        lines.append(
            [
                objective,
                f"{mine:.2f}",
                f"{theirs:.1f}",
                f"{theirs / mine:.0f}x",
                f"{value['ours']:.5f}",
                f"{value['peer']:.5f}",
            ]
        )
        text = (
            f"{objective}: seconds for the exact cut-off and {options.bootstraps} bootstraps of {options.rows:,} "
            "rows, never worse than TunedThresholdClassifierCV's"
        )
        claims.append(
            claim(
                "threshold",
                text,
                ours=mine,
                peer=theirs,
                goal=GOAL,
                rule="faster",
                holds=value["ours"] >= value["peer"],
            )
        )
    table(["objective", "ours s", "scikit-learn s", "faster", "our value", "scikit-learn's value"], lines)
    return announce(claims)


if __name__ == "__main__":
    main()
