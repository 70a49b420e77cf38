"""The Fraud Detection Handbook's protocol: fit on a week, wait a week for its labels, judge on the next; several such
folds.

Transactions of cards that are known to be compromised by then are not judged. Per fold ours, XGBoost as it comes and as
it came in the handbook, and a random forest are fitted on the same rows; the difference of AP is paired, days are drawn
together.
Without a table, transactions are made (``_transactions.py``). A table of that shape has a time, a card, a target and
numeric features; with the handbook's own column names nothing else needs to be said.

Published for the handbook's own data (7 days each, 4 folds, mean AP; www.github.com/Fraud-Detection-Handbook): XGBoost
with exact splits and base_score .5 .687, the same with class weight 100 .630, SMOTE 1:1 .637, undersampling 1:1 .471.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmarks import _transactions
from benchmarks._common import THREADS, Claim, announce, claim, table
from benchmarks.quality import DEFAULT, OURS, default_xgboost, ours

if TYPE_CHECKING:
    from rareclass.adapters.tables import Ingested
    from rareclass.core.dataset import FloatArray, Rows

SHORT = ["--cards", "1000", "--folds", "3", "--seconds", "20"]
FULL = ["--cards", "5000", "--folds", "4", "--seconds", "30"]
TOP = 100  # cards that people can check in a day
FOREST, CLASSIC = "random forest", "XGBoost of the handbook"


@dataclass(frozen=True)
class Table:
    """Transactions in order of time, and what the columns are."""

    rows: Rows
    day: np.ndarray
    card: np.ndarray


@dataclass(frozen=True)
class Fold:
    """Row numbers of one fold, and the day its training began."""

    start: int
    train: np.ndarray
    test: np.ndarray


def read(path: Path, when: str, card: str, target: str, drop: list[str]) -> Table:
    """Read a table: Parquet or CSV."""
    frame = pd.read_parquet(path) if path.suffix in (".parquet", ".pq") else pd.read_csv(path, parse_dates=[when])
    missing = [name for name in (when, card, target) if name not in frame]
    if missing:
        raise SystemExit(f"column '{missing[0]}' is not in {path}. Say --time, --card and --target")
    return of(frame, when, card, target, drop)


def of(frame: pd.DataFrame, when: str, card: str, target: str, drop: list[str]) -> Table:
    """Return a frame as rows; every numeric column that has no role is a feature."""
    from rareclass.core.dataset import Rows, encode, infer_schema

    frame = frame.sort_values(when, kind="stable", ignore_index=True)
    frame[when] = pd.to_datetime(frame[when])
    x = frame.drop(columns=[when, card, target, *(name for name in drop if name in frame)]).select_dtypes("number")
    schema = infer_schema(x)
    cards = pd.factorize(frame[card])[0]
    rows = Rows(
        schema,
        encode(x, schema),
        frame[target].to_numpy(np.int64),
        np.arange(len(frame), dtype=np.uint64),
        time=frame[when].to_numpy("datetime64[us]"),
        entity=cards.astype(np.uint64),
    )
    day = frame[when].to_numpy("datetime64[D]").astype(np.int64)
    return Table(rows, day - day[0], cards)


def folds(data: Table, train: int, delay: int, test: int, count: int) -> Iterator[Fold]:
    """The last ``count`` folds of the table, the oldest first; each a test length after the one before."""
    last = int(data.day.max()) + 1 - (train + delay + test)
    if last - (count - 1) * test < 0:
        need = train + delay + test * count
        raise SystemExit(
            f"the table has {int(data.day.max()) + 1} days; {count} folds need {need}. Set --folds or --train-days"
        )
    for start in range(last - (count - 1) * test, last + 1, test):
        fitted = np.flatnonzero((data.day >= start) & (data.day < start + train))
        first = start + train + delay
        judged = [
            part[~np.isin(data.card[part], _known(data, start, first + at - delay))]
            for at in range(test)
            for part in [np.flatnonzero(data.day == first + at)]
        ]
        yield Fold(start, fitted, np.concatenate(judged))


def _known(data: Table, start: int, until: int) -> np.ndarray:
    """Cards with a fraud from ``start`` on that is labelled by now."""
    return np.unique(data.card[(data.day >= start) & (data.day < until) & (data.rows.y == 1)])


def ingested(data: Table, fold: Fold) -> Ingested:
    """Return a fold as training reads it: a quarter of the cards are the validation rows,
    the next week the test rows.
    """
    from rareclass.adapters.tables import Ingested

    rest = data.card[fold.train] % 4 == 0
    parts = (data.rows.take(part) for part in (fold.train[~rest], fold.train[rest], fold.test))
    return Ingested(*parts, data.rows.schema, {}, [], 1, 1.0, "grouped", {})


def handbook_xgboost(config: Any, ingested: Ingested, dev: Rows, seconds: float, seed: int) -> FloatArray:
    """The handbook's strongest model without tuning: XGBoost with the defaults of its time, exact splits and base score
    1/2.
    """
    from xgboost import XGBClassifier

    model = XGBClassifier(tree_method="exact", base_score=0.5, n_jobs=THREADS, random_state=seed)
    return np.asarray(model.fit(dev.x, dev.y).predict_proba(ingested.test.x)[:, 1], dtype=np.float64)


def forest(config: Any, ingested: Ingested, dev: Rows, seconds: float, seed: int) -> FloatArray:
    """RandomForestClassifier as it comes."""
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(n_jobs=THREADS, random_state=seed).fit(dev.x, dev.y)
    return np.asarray(model.predict_proba(ingested.test.x)[:, 1], dtype=np.float64)


def card_precision(data: Table, fold: Fold, score: FloatArray) -> float:
    """Mean share of compromised cards among the ``TOP`` highest of each day: a card counts by its highest score."""
    frame = pd.DataFrame(
        {"day": data.day[fold.test], "card": data.card[fold.test], "score": score, "y": data.rows.y[fold.test]}
    )
    daily = frame.groupby(["day", "card"], as_index=False).agg(score=("score", "max"), y=("y", "max"))
    top = daily.sort_values("score", ascending=False).groupby("day").head(TOP)
    return float(top.groupby("day")["y"].mean().mean())


def main(arguments: list[str] | None = None) -> list[Claim]:
    """Print the table and the claims; the last lines are JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", type=Path, help="Parquet or CSV; default: transactions are made")
    parser.add_argument("--time", default=_transactions.TIME)
    parser.add_argument("--card", default=_transactions.CARD)
    parser.add_argument("--target", default=_transactions.FRAUD)
    parser.add_argument("--drop", default="TRANSACTION_ID,TERMINAL_ID,TX_TIME_SECONDS,TX_TIME_DAYS,TX_FRAUD_SCENARIO")
    parser.add_argument("--train-days", type=int, default=7, help="7, or 28")
    parser.add_argument("--delay-days", type=int, default=7)
    parser.add_argument("--test-days", type=int, default=7)
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--cards", type=int, default=5000, help="cards of the transactions that are made")
    parser.add_argument("--seconds", type=float, default=60, help="wall-clock seconds of ours for each fold")
    options = parser.parse_args(arguments)
    drop = [name for name in options.drop.split(",") if name]
    if options.table is not None:
        data = read(options.table, options.time, options.card, options.target, drop)
    else:
        days = options.train_days + options.delay_days + options.folds * options.test_days
        made = _transactions.transactions(options.cards, 37 + days, delay=options.delay_days)
        made = made[made[_transactions.TIME] >= made[_transactions.TIME].min() + pd.Timedelta(days=37)]
        data = of(made, _transactions.TIME, _transactions.CARD, _transactions.FRAUD, drop)
    return measure(
        data,
        list(folds(data, options.train_days, options.delay_days, options.test_days, options.folds)),
        options.seconds,
    )


def measure(data: Table, parts: list[Fold], seconds: float) -> list[Claim]:
    """Fit every method on every fold, print, and return the claims."""
    from rareclass import config as settings
    from rareclass.core import ranking
    from rareclass.services.training import steps

    raw = {
        "name": "prequential",
        "data": {"path": "none.parquet", "target": "y", "entity": "card"},
        "split": {"kind": "grouped"},
        "search": {"seconds": 0.6 * seconds},
        "compute": {"threads": THREADS},
    }
    config = settings.parse(raw)
    methods: dict[str, Callable[..., FloatArray]] = {
        OURS: ours,
        DEFAULT: default_xgboost,
        CLASSIC: handbook_xgboost,
        FOREST: forest,
    }
    lines, values, draws = [], {name: [] for name in methods}, []
    for at, fold in enumerate(parts):
        known = ingested(data, fold)
        dev, _ = steps.development(config, known.train, known.validation)
        y, scores = known.test.y, {}
        for name, fit in methods.items():
            began = time.perf_counter()
            scores[name] = fit(config, known, dev, seconds, 0)
            took = time.perf_counter() - began
            ap = ranking.average_precision(y, scores[name])
            values[name].append(ap)
            top = card_precision(data, fold, scores[name])
            shown = [name, f"{ap:.4f}", f"{top:.3f}", f"{ranking.roc_auc(y, scores[name]):.3f}", f"{took:.0f}"]
            lines.append([at + 1, len(dev), dev.positives, len(y), int(y.sum()), *shown])
        block = data.day[fold.test]
        draws.append(
            ranking.bootstrap_average_precision(y, [scores[name] for name in methods], block=block, n_boot=500, seed=at)
        )
    table(
        [
            "fold",
            "fitted rows",
            "frauds",
            "judged rows",
            "frauds",
            "method",
            "AP",
            f"card precision@{TOP}",
            "ROC-AUC",
            "s",
        ],
        lines,
    )
    mean = {name: float(np.mean(each)) for name, each in values.items()}
    said = []
    for at, peer in list(enumerate(methods))[1:]:
        gains = np.mean([each[0] - each[at] for each in draws], axis=0)
        low, high = np.quantile(gains, (0.025, 0.975))
        text = (
            f"mean AP of {len(parts)} folds against {peer}: difference {mean[OURS] - mean[peer]:+.4f} [{low:+.4f}, "
            f"{high:+.4f}]"
        )
        said.append(claim("prequential", text, ours=mean[OURS], peer=mean[peer], goal=1.0, rule="at least"))
    return announce(said)


if __name__ == "__main__":
    main()
