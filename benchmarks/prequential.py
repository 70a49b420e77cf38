"""The protocol of the Fraud Detection Handbook: fit on some days, wait for their labels, judge the days after, again and again.

    python -m benchmarks prequential [--full] [--days 7|28] [--folds N] [--seconds S] [TABLE]

TABLE : Parquet with the columns of the handbook's feature table (TX_DATETIME, CUSTOMER_ID, TX_FRAUD; all other numeric
columns but ids, times and the scenario are features). Without one such transactions are made here, by the handbook's description
(chapter 3: customers with habits, terminals near them, three kinds of fraud), with another generator and other seeds.

A fold fits on ``--days`` days, leaves out a delay of 7 days and judges the 7 after. On every day that is judged the cards
are left out whose fraud is known by then: those in the fit, and those that became known while waiting. Published there, on
its own data, mean AP over four folds: XGBoost .687 (exact splits, base score 1/2), random forest .678, SMOTE 1:1 .637,
class weight 100 .630, under-sampling 1:1 .471. Source: Le Borgne, Siblini, Lebichot and Bontempi, 2022.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmarks import quality
from benchmarks._common import THREADS, Claim, announce, claim, table

if TYPE_CHECKING:
    from rareclass.core.rows import FloatArray, Rows

DELAY, JUDGED = 7, 7
CLASSIC = "XGBoost of the handbook"
NOT_FEATURES = {
    "TRANSACTION_ID",
    "CUSTOMER_ID",
    "TERMINAL_ID",
    "TX_FRAUD",
    "TX_FRAUD_SCENARIO",
    "TX_TIME_SECONDS",
    "TX_TIME_DAYS",
}
SHORT = ["--folds", "2", "--seconds", "20", "--customers", "1500"]
FULL = ["--folds", "4", "--seconds", "60"]


# --- transactions ---------------------------------------------------------------------------------------------------


def transactions(customers: int, days: int, seed: int) -> pd.DataFrame:
    """Make payments of customers at terminals near them, with three kinds of fraud, and their rolling features.

    Amounts above 220 are fraud; now and then a terminal is compromised for 28 days (every payment there is fraud), and a
    customer for 14 (a third of the payments are fraud, of five times the amount).
    """
    rng = np.random.default_rng(seed)
    terminals = 2 * customers
    place, where = rng.uniform(0, 100, (customers, 2)), rng.uniform(0, 100, (terminals, 2))
    radius = 5 * np.sqrt(5000 / customers)  # as many terminals near as with the handbook's 5,000 customers
    near = [np.flatnonzero(((where - each) ** 2).sum(axis=1) < radius**2) for each in place]
    habit, rate = rng.uniform(5, 100, customers), rng.uniform(0, 4, customers)
    count = rng.poisson(rate[:, None], (customers, days)) * np.array([len(each) > 0 for each in near])[:, None]
    who, day = (np.repeat(axis.ravel(), count.ravel()) for axis in np.indices(count.shape))
    second = rng.normal(43_200, 20_000, len(who))
    second = np.where((second < 0) | (second >= 86_400), rng.uniform(0, 86_400, len(who)), second)
    amount = np.abs(rng.normal(habit[who], habit[who] / 2))
    size = np.array([len(each) for each in near])
    offset = np.concatenate([[0], np.cumsum(size)[:-1]])
    terminal = np.concatenate(near)[offset[who] + (rng.random(len(who)) * size[who]).astype(np.int64)]
    fraud = amount > 220
    scale = customers / 5000
    for start in range(days):
        for broken in rng.choice(terminals, rng.poisson(2 * scale), replace=False):
            fraud |= (terminal == broken) & (day >= start) & (day < start + 28)
        for stolen in rng.choice(customers, rng.poisson(3 * scale), replace=False):
            theirs = np.flatnonzero((who == stolen) & (day >= start) & (day < start + 14))
            taken = rng.choice(theirs, len(theirs) // 3, replace=False)
            amount[taken] *= 5
            fraud[taken] = True
    moment = pd.Timestamp("2026-01-01") + pd.to_timedelta(day * 86_400 + second, unit="s")
    found = pd.DataFrame({
        "TX_DATETIME": moment, "CUSTOMER_ID": who, "TERMINAL_ID": terminal, "TX_AMOUNT": amount.round(2), "TX_FRAUD": fraud.astype(int),
    })  # fmt: skip
    return with_features(found.sort_values("TX_DATETIME", ignore_index=True))


def with_features(rows: pd.DataFrame) -> pd.DataFrame:
    """Add weekend, night, the customer's count and mean amount, and the terminal's count and known risk, of 1, 7 and 30 days.

    rows : in order of time. What happened at a terminal is known ``DELAY`` days later.
    """
    moment = rows["TX_DATETIME"]
    rows = rows.assign(
        TX_DURING_WEEKEND=(moment.dt.weekday >= 5).astype(int), TX_DURING_NIGHT=(moment.dt.hour <= 6).astype(int)
    )
    at = moment.to_numpy().astype("datetime64[s]").astype(np.int64)
    for span in (1, 7, 30):
        past = (at - span * 86_400, at)
        count, total = sums(rows["CUSTOMER_ID"].to_numpy(), at, rows["TX_AMOUNT"].to_numpy(), *past)
        rows[f"CUSTOMER_ID_NB_TX_{span}DAY_WINDOW"] = count
        rows[f"CUSTOMER_ID_AVG_AMOUNT_{span}DAY_WINDOW"] = total / np.maximum(count, 1)
        known = tuple(each - DELAY * 86_400 for each in past)
        count, total = sums(rows["TERMINAL_ID"].to_numpy(), at, rows["TX_FRAUD"].to_numpy(), *known)
        rows[f"TERMINAL_ID_NB_TX_{span}DAY_WINDOW"] = count
        rows[f"TERMINAL_ID_RISK_{span}DAY_WINDOW"] = total / np.maximum(count, 1)
    return rows


def sums(key: Any, at: Any, value: Any, after: Any, until: Any) -> tuple[FloatArray, FloatArray]:
    """(n,) count and sum of ``value`` over the rows of the same key whose time is in (after, until]; times in seconds."""
    order = np.lexsort((at, key))
    line = key[order].astype(np.int64) * (1 << 40) + at[order]  # one sorted axis for all keys
    total = np.concatenate([[0.0], np.cumsum(value[order])])
    first = np.searchsorted(line, key.astype(np.int64) * (1 << 40) + np.maximum(after, 0), side="right")
    last = np.searchsorted(line, key.astype(np.int64) * (1 << 40) + np.maximum(until, 0), side="right")
    return (last - first).astype(np.float64), total[last] - total[first]


# --- folds ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Period:
    """Rows that fit and rows that are judged, as positions in the table."""

    name: str
    fit: Any
    judge: Any


def periods(frame: pd.DataFrame, days: int, folds: int) -> Iterator[Period]:
    """The last ``folds`` periods of the table, a week apart, the oldest first."""
    day = (frame["TX_DATETIME"] - frame["TX_DATETIME"].min()).dt.days.to_numpy()
    card, fraud = frame["CUSTOMER_ID"].to_numpy(), frame["TX_FRAUD"].to_numpy() == 1
    for number in reversed(range(folds)):
        first = int(day.max()) + 1 - (number + 1) * JUDGED
        start = first - DELAY - days
        if start < 0:
            raise SystemExit(
                f"the table has {int(day.max()) + 1} days; {folds} folds of {days} need more. Set --folds lower"
            )
        fit = (day >= start) & (day < start + days)
        judge = np.zeros(len(day), dtype=bool)
        for position in range(JUDGED):
            known = np.unique(card[fraud & (day >= start) & (day < start + days + position)])
            judge |= (day == first + position) & ~np.isin(card, known)
        yield Period(f"day {first} to {first + JUDGED - 1}", np.flatnonzero(fit), np.flatnonzero(judge))


def rows_of(frame: pd.DataFrame, index: Any) -> Rows:
    from rareclass.core.rows import Feature, Rows, Schema

    names = [name for name in frame.columns if name not in NOT_FEATURES and pd.api.types.is_numeric_dtype(frame[name])]
    part = frame.iloc[index]
    return Rows(
        Schema(tuple(Feature(name) for name in names)), part[names].to_numpy(np.float32), part["TX_FRAUD"].to_numpy(np.int64),
        index.astype(np.uint64), time=part["TX_DATETIME"].to_numpy().astype("datetime64[us]"),
    )  # fmt: skip


def classic(config: Any, parts: Any, dev: Rows, seconds: float, seed: int) -> FloatArray:
    """The handbook's strongest untuned model: XGBoost with the defaults of its time, exact splits and base score 1/2."""
    from xgboost import XGBClassifier

    model = XGBClassifier(n_jobs=THREADS, random_state=seed, tree_method="exact", base_score=0.5)
    return np.asarray(model.fit(dev.x, dev.y).predict_proba(parts.test.x)[:, 1], dtype=np.float64)


def forest(config: Any, parts: Any, dev: Rows, seconds: float, seed: int) -> FloatArray:
    """RandomForestClassifier as it comes."""
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(n_jobs=THREADS, random_state=seed).fit(dev.x, dev.y)
    return np.asarray(model.predict_proba(parts.test.x)[:, 1])


METHODS = {
    quality.OURS: quality.ours, quality.DEFAULT: quality.default_xgboost, CLASSIC: classic, "random forest": forest,
    "SMOTE + XGBoost": quality.smote_xgboost,
}  # fmt: skip


def measure(frame: pd.DataFrame, period: Period, seconds: float) -> dict[str, tuple[float, float]]:
    """Average precision and seconds of every method in one period."""
    from rareclass import config as settings
    from rareclass.core import evaluation

    known, test = rows_of(frame, period.fit), rows_of(frame, period.judge)
    cut = int(0.7 * len(known))
    parts = SimpleNamespace(
        train=known.take(np.arange(cut)), validation=known.take(np.arange(cut, len(known))), test=test, train_kept=1.0
    )
    config = settings.parse({
        "name": "prequential", "data": {"path": "given as rows", "target": "TX_FRAUD", "time": "TX_DATETIME"},
        "search": {"seconds": quality.SEARCH * seconds}, "compute": {"threads": THREADS},
    })  # fmt: skip
    found = {}
    for method, fit in METHODS.items():
        start = time.perf_counter()
        score = fit(config, parts, known, seconds, 0)
        found[method] = (evaluation.average_precision(test.y, score), time.perf_counter() - start)
        print(f"{period.name}: {method} AP {found[method][0]:.3f} in {found[method][1]:.0f} s", flush=True)
    return found


def main(arguments: list[str] | None = None) -> list[Claim]:
    """Print the table and the claims; the last lines are JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", type=Path, metavar="TABLE", help="Parquet; default: made here")
    parser.add_argument("--days", type=int, default=7, help="days that a fold fits on: 7 or 28")
    parser.add_argument("--folds", type=int, default=4, help="folds, a week apart")
    parser.add_argument("--seconds", type=float, default=60, help="wall-clock seconds of ours")
    parser.add_argument("--customers", type=int, default=5000, help="of the transactions that are made")
    parser.add_argument("--seed", type=int, default=0, help="of the transactions that are made")
    options = parser.parse_args(arguments)
    if options.table is not None:
        frame = pd.read_parquet(options.table).sort_values("TX_DATETIME", ignore_index=True)
    else:
        whole = 30 + options.days + DELAY + options.folds * JUDGED  # the first month only fills the windows
        frame = transactions(options.customers, whole, options.seed)
    found, lines = [], []
    for period in periods(frame, options.days, options.folds):
        found.append(measure(frame, period, options.seconds))
        fraud = frame["TX_FRAUD"].to_numpy()
        lines.append([
            period.name, f"{len(period.fit):,}", int(fraud[period.fit].sum()), f"{len(period.judge):,}", int(fraud[period.judge].sum()),
            *(f"{ap:.3f}" for ap, _ in found[-1].values()),
        ])  # fmt: skip
    mean = {method: float(np.mean([each[method][0] for each in found])) for method in METHODS}
    lines.append(["mean", "", "", "", "", *(f"{ap:.3f}" for ap in mean.values())])
    table(["judged", "rows to fit", "fraud", "rows judged", "fraud", *METHODS], lines)
    said = []
    for method in [each for each in METHODS if each != quality.OURS]:
        gains = [each[quality.OURS][0] - each[method][0] for each in found]
        wins = sum(gain > 0 for gain in gains)
        text = f"mean AP of {len(found)} folds, {options.days} days to fit, against {method}: {np.mean(gains):+.3f}, ahead in {wins}"
        said.append(claim("prequential", text, ours=mean[quality.OURS], peer=mean[method], goal=1.0, rule="at least"))
    return announce(said)


if __name__ == "__main__":
    main()
