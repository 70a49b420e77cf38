"""What helps where one to fifty rows of the rare class are known: average precision on untouched rows.

    python -m benchmarks scarce [--seeds N] [--rows N] [DIR ...]

DIR : as `quality` takes them; without any, sets that packages ship and that nothing was chosen on: one digit among the
others (scikit-learn, ten times) and malignant among benign cells, thinned to one in ten. Half of a set (at random,
stratified) is the test; of the other half, k rows of the rare class and at most ``--rows`` others are what is known.
Every method sees the same.
A method that needs more rows of the rare class than there are is left out of that k.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import quality
from benchmarks._common import THREADS, Claim, announce, claim, table

if TYPE_CHECKING:
    from rareclass.core.dataset import FloatArray, Rows

GOALS = {1: 0.30, 3: 0.08, 5: 0.04, 10: 0.03, 20: 0.0, 50: -0.005}
"""Positives -> how far the learner `scarce` is to be ahead of default XGBoost on average"""
LEAST_TEST, MOST_TEST = 10, 30_000
SHORT = ["--seeds", "3", "--rows", "5000"]
FULL = ["--seeds", "5", "--rows", "5000"]


def scarce(known: Rows, test: Rows, seed: int) -> FloatArray:
    """The learner `scarce`, at its defaults."""
    from rareclass.core import learners
    from rareclass.core.fit_task import FitTask

    return learners.fit("scarce", FitTask(known, seed=seed, threads=THREADS)).score(test.x)


def jitter_xgboost(known: Rows, test: Rows, seed: int) -> FloatArray:
    """XGBoost as it comes, on ten jittered copies of every known row of the rare class, at least a hundred."""
    from rareclass.config import ResampleStep
    from rareclass.core.resampling import resample

    wanted = known.positives + max(10 * known.positives, 100)
    made = resample(known, [ResampleStep(name="jitter", rows=wanted)], seed=seed, threads=THREADS).rows
    return quality.default_xgboost(None, SimpleNamespace(test=test), made, 0, seed)


def weighted_xgboost(known: Rows, test: Rows, seed: int) -> FloatArray:
    """XGBoost with ``scale_pos_weight`` at negatives over positives, as its documentation says."""
    from xgboost import XGBClassifier

    types = ["c" if each else "q" for each in known.schema.categorical]
    model = XGBClassifier(
        n_jobs=THREADS,
        random_state=seed,
        enable_categorical=True,
        feature_types=types,
        scale_pos_weight=(len(known) - known.positives) / known.positives,
    )
    return np.asarray(model.fit(known.x, known.y).predict_proba(test.x)[:, 1], dtype=np.float64)


def _of_quality(method: Any, least: int) -> Any:
    def scores(known: Rows, test: Rows, seed: int) -> FloatArray | None:
        if known.positives < least:
            return None
        return np.asarray(method(None, SimpleNamespace(test=test), known, 0, seed))

    return scores


METHODS: dict[str, Any] = {
    "scarce": scarce,
    "jitter + XGBoost": jitter_xgboost,
    "default XGBoost": _of_quality(quality.default_xgboost, 1),
    "SMOTE + XGBoost": _of_quality(quality.smote_xgboost, 2),
    "scale_pos_weight": weighted_xgboost,
    "balanced forest": _of_quality(quality.balanced_forest, 1),
}


def shipped(work: Path) -> list[quality.Source]:
    """Sets of scikit-learn, as files in ``work``."""
    from sklearn.datasets import load_breast_cancer, load_digits

    digits, cells = load_digits(as_frame=True), load_breast_cancer(as_frame=True)
    found = [
        (f"digits: a {each}", digits.data.assign(target=(digits.target == each).astype(int))) for each in range(10)
    ]
    frame = cells.data.assign(target=(cells.target == 0).astype(int))
    rare = frame[frame["target"] == 1].sample(60, random_state=0)
    found.append(("malignant cells", frame[(frame["target"] == 0) | frame.index.isin(rare.index)]))
    sources = []
    for number, (name, table_of) in enumerate(found):
        path = work / f"{number}.parquet"
        table_of.to_parquet(path, index=False)
        sources.append(quality.Source(name, {"path": str(path), "target": "target", "positive": 1}, None))
    return sources


def rows_of(source: quality.Source) -> Rows:
    """All labelled rows of a set, encoded as a run encodes them."""
    from rareclass.config import parse
    from rareclass.services.training import steps

    data = {**source.data, **({"time": source.time} if source.time else {})}
    config = parse({"name": "scarce", "data": data, "split": {"kind": "stratified"}})
    parts = steps.ingest(config)
    from rareclass.core.dataset import concatenate

    return concatenate([parts.train, parts.validation, parts.test])


def known_and_test(
    rows: Rows, rng: np.random.Generator, k: int, most: int, most_test: int = MOST_TEST
) -> tuple[Rows, Rows] | None:
    """Return k positives and ``most`` others of one half of the rows, and those of the other half, which judge; None
    where there are too few.
    """
    rare, others = rng.permutation(np.flatnonzero(rows.y == 1)), rng.permutation(np.flatnonzero(rows.y == 0))
    if len(rare) - len(rare) // 2 < k or len(rare) // 2 < LEAST_TEST:
        return None
    test = rows.take(np.sort(np.r_[rare[: len(rare) // 2], others[: min(len(others) // 2, most_test)]]))
    known = rows.take(np.sort(np.r_[rare[len(rare) // 2 :][:k], others[len(others) // 2 :][:most]]))
    return known, test


def measured(rows: Rows, most: int, k: int, seed: int) -> dict[str, float]:
    """Average precision of every method on the same half of the rows."""
    from rareclass.core.ranking import average_precision

    parts = known_and_test(rows, np.random.default_rng([seed, k]), k, most)
    if parts is None:
        return {}
    some, test = parts
    found = {name: method(some, test, seed) for name, method in METHODS.items()}
    return {name: average_precision(test.y, score) for name, score in found.items() if score is not None}


def main(arguments: list[str] | None = None) -> list[Claim]:
    """Print mean AP by positives and method, and the claims."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=10_000, help="rows of the other class that are known, at most")
    parser.add_argument("folders", nargs="*", type=Path, metavar="DIR")
    options = parser.parse_args(arguments)
    results: dict[int, list[tuple[str, dict[str, float]]]] = {k: [] for k in GOALS}
    with tempfile.TemporaryDirectory() as work:
        for source in quality.sources(options.folders, Path(work)) if options.folders else shipped(Path(work)):
            rows = rows_of(source)
            for k in GOALS:
                for seed in range(options.seeds):
                    if found := measured(rows, options.rows, k, seed):
                        results[k].append((source.name, found))
    lines, claims = [], []
    for k, found in results.items():
        if not found:
            continue
        sets = sorted({name for name, _ in found})
        means = {
            m: [np.mean([ap[m] for name, ap in found if name == each and m in ap] or [np.nan]) for each in sets]
            for m in METHODS
        }
        lines.append([k, len(sets), *("-" if np.isnan(np.mean(v)) else f"{np.mean(v):.3f}" for v in means.values())])
        gains = np.array(means["scarce"]) - np.array(means["default XGBoost"])
        low, high = _interval(gains)
        claims.append(
            claim(
                "scarce",
                f"mean AP of the learner scarce less that of default XGBoost at {k} positives, "
                f"{len(sets)} sets [{low:+.3f}, {high:+.3f}]",
                ours=float(gains.mean()),
                peer=None,
                goal=GOALS[k],
                rule="at least",
            )
        )
    table(["positives", "sets", *METHODS], lines)
    few = [(name, k) for k, found in results.items() if k <= 10 for name in {name for name, _ in found}]
    ahead = [
        np.mean([ap["scarce"] - ap["default XGBoost"] for each, ap in results[k] if each == name]) > 0
        for name, k in few
    ]
    if few:
        said = f"share of {len(few)} sets and numbers up to 10 positives where the learner scarce is ahead"
        claims.append(claim("scarce", said, ours=float(np.mean(ahead)), peer=None, goal=12 / 14, rule="at least"))
    return announce(claims)


def _interval(gains: FloatArray) -> tuple[float, float]:
    """95 % interval of the mean over sets, by resampling the sets."""
    drawn = np.random.default_rng(0).choice(gains, (2000, len(gains))).mean(axis=1)
    return float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))
