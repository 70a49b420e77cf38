"""Make synthetic payments in the shape of the PaySim table: no row is real.

    python examples/card_fraud/generate.py            # writes payments.parquet beside this file
    python examples/card_fraud/generate.py --changes  # writes changed.parquet: 150 days, a new fraud from day 100 on

500,000 payments over 60 days in five types. Fraud happens in transfers and cash-outs only, about 1 in 600 of them: an
account is taken over and emptied, mostly at night, towards accounts opened lately. What makes it hard: many honest
customers empty an account too, one fraud in four is small and looks like any payment, and the balances carry no
arithmetic that gives fraud away (the published PaySim table has such a leak). Some rows came in empty, as failed
imports do, and a few honest payments have absurd amounts.

With ``--changes`` the fraudsters change their ways on day 100, because what they did is found by then: small payments,
one after the other, by day and in the app, to payees that look old. Nothing else changes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

TYPES = {"CASH_IN": 0.22, "CASH_OUT": 0.35, "DEBIT": 0.01, "PAYMENT": 0.33, "TRANSFER": 0.09}
DAYS = 60
CHANGED_ROWS, CHANGED_DAYS, CHANGE = 1_000_000, 150, 100
START = pd.Timestamp("2024-03-01")


def _amount(rng: np.random.Generator, kind: np.ndarray, balance: np.ndarray) -> np.ndarray:
    """A payment's amount: log-normal by type, one honest payment in 25 empties the account, one in 1,500 is absurd."""
    scale = pd.Series(kind).map({"CASH_IN": 5.0, "CASH_OUT": 5.2, "DEBIT": 4.0, "PAYMENT": 3.6, "TRANSFER": 5.8})
    amount = rng.lognormal(scale.to_numpy(), 1.1)
    empties = rng.random(len(kind)) < 0.04
    amount = np.where(empties, balance * rng.uniform(0.9, 1.0, len(kind)), amount)
    return np.where(rng.random(len(kind)) < 1 / 1500, amount * 200, amount)


def generate(rows: int = 500_000, seed: int = 0, *, days: int = DAYS, change: int | None = None) -> pd.DataFrame:
    """Return ``rows`` payments of ``days`` days, ordered in time; from day ``change`` on fraud is of another kind."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(list(TYPES), rows, p=list(TYPES.values()))
    daily = np.array([1, 1, 1, 1, 1, 2, 4, 7, 9, 10, 10, 10, 10, 9, 9, 9, 9, 10, 10, 9, 7, 5, 3, 2], dtype=float)
    hour = rng.choice(24, rows, p=daily / daily.sum())
    day = rng.integers(0, days, rows)
    balance = rng.lognormal(6.3, 1.3, rows)
    account_age = rng.gamma(1.6, 500, rows)
    payee_age = rng.gamma(1.3, 400, rows)
    recent = rng.poisson(rng.gamma(2, 1.0, rows))
    channel = rng.choice(["app", "web", "agent", "branch"], rows, p=[0.55, 0.25, 0.15, 0.05])
    amount = _amount(rng, kind, balance)

    open_to_fraud = np.flatnonzero(np.isin(kind, ["TRANSFER", "CASH_OUT"]))
    fraud = np.zeros(rows, dtype=bool)
    fraud[rng.choice(open_to_fraud, round(len(open_to_fraud) / 600), replace=False)] = True
    loud = fraud & (rng.random(rows) < 0.75)
    new = loud & (day >= (days if change is None else change))
    loud &= ~new
    n = int(loud.sum())
    balance[loud] = rng.lognormal(7.0, 1.1, n)
    amount[loud] = balance[loud] * rng.beta(8, 1.2, n)
    at_night = rng.random(n) < 0.45
    hour[loud] = np.where(at_night, rng.integers(0, 6, n), hour[loud])
    payee_age[loud] = np.where(rng.random(n) < 0.7, rng.gamma(1.0, 25, n), payee_age[loud])
    recent[loud] += rng.poisson(1.5, n)
    channel[loud] = np.where(rng.random(n) < 0.6, "web", channel[loud])
    if change is not None:
        n = int(new.sum())
        amount[new] = rng.lognormal(5.6, 0.4, n)
        balance[new] = amount[new] * rng.uniform(4, 30, n)
        hour[new] = rng.integers(10, 17, n)
        payee_age[new] = rng.gamma(8, 150, n)
        recent[new] += 4 + rng.poisson(3, n)
        channel[new] = np.where(rng.random(n) < 0.8, "app", channel[new])

    paid = np.minimum(amount, balance)
    frame = pd.DataFrame(
        {
            "time": START
            + pd.to_timedelta(day * 24 + hour, unit="h")
            + pd.to_timedelta(rng.integers(0, 3600, rows), unit="s"),
            "type": kind,
            "amount": amount.round(2),
            "nameOrig": [f"C{number}" for number in rng.integers(10**8, 10**9, rows)],
            "nameDest": [f"C{number}" for number in rng.integers(10**8, 10**9, rows)],
            "oldbalanceOrg": balance.round(2),
            "newbalanceOrig": (balance - paid).round(2),
            "share_of_balance": (amount / balance).round(3),
            "account_age_days": account_age.round(),
            "payee_age_days": payee_age.round(),
            "payments_last_day": recent,
            "hour": hour,
            "channel": channel,
            "isFraud": fraud.astype(int),
        }
    )
    measured = frame.columns.difference(["time", "type", "nameOrig", "nameDest", "isFraud"])
    lost = (rng.random(rows) < 0.002) & ~fraud
    frame[measured] = frame[measured].astype({"payments_last_day": float, "hour": float}).mask(pd.Series(lost))
    return frame.sort_values("time", ignore_index=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write synthetic payments beside this file")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--changes", action="store_true", help="150 days, with a new kind of fraud from day 100 on")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.changes:
        frame = generate(options.rows or CHANGED_ROWS, options.seed, days=CHANGED_DAYS, change=CHANGE)
    else:
        frame = generate(options.rows or 500_000, options.seed)
    out = options.out or Path(__file__).with_name("changed.parquet" if options.changes else "payments.parquet")
    frame.to_parquet(out, index=False)
    print(f"{out}: {len(frame):,} synthetic payments, {frame['isFraud'].sum():,} of them fraud")


if __name__ == "__main__":
    main()
